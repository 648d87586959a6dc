"""Where things are on a host, as its units know it."""

from pathlib import Path

RUNTIME = Path("/run/coloha")
"""Folder for sockets and runs."""
