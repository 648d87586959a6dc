"""The shell: it feeds the machines with events and does what they ask."""
