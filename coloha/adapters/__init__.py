"""One port each between the daemon and the outside."""
