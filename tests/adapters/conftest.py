"""Fixtures of the adapters' tests."""

from tests.adapters.etcd_support import etcd, pair
from tests.adapters.support import run

__all__ = ["etcd", "pair", "run"]
