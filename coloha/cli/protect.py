"""`coloha protect`: try at once to protect a pair that waits before the next attempt."""

import argparse

from coloha.cli import order

EXAMPLE = """example:
  coloha protect vm1

A pair that failed over too often (recovery.flap_limit) waits for this, or for its time.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    return order.give(arguments, "protect", "the next attempt to protect is made now")
