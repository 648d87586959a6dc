"""`coloha pause`: no automatic failover of a pair, until resumed."""

import argparse

from coloha.cli import order

EXAMPLE = """example:
  coloha pause vm1

One node is enough: the other one learns of it by its heartbeats.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    return order.give(arguments, "pause", "nothing fails over by itself until coloha resume")
