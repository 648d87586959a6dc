"""Fixtures of the documents' tests."""

from tests.runtime.daemon_support import alpha, daemons

__all__ = ["alpha", "daemons"]
