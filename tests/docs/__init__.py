"""The documents: what they say is so, and what they tell to type works."""
