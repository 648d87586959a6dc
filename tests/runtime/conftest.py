"""Fixtures of the runtime's tests."""

from tests.adapters.support import run
from tests.runtime.daemon_support import alpha, beta, daemons
from tests.runtime.support import disk

__all__ = ["alpha", "beta", "daemons", "disk", "run"]
