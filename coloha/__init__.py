"""The half of COLO that QEMU leaves to others: heartbeat, output commit, arbitration, failover."""

__version__ = "0.1.0"
