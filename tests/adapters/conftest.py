"""Fixtures of the adapters' tests."""

from tests.adapters.support import run

__all__ = ["run"]
