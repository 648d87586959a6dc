"""`coloha resume`: automatic failover of a pair again."""

import argparse

from coloha.cli import order

EXAMPLE = """example:
  coloha resume vm1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    return order.give(arguments, "resume", "resumed")
