"""The shipped units, under a real systemd."""
