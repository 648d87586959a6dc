"""`coloha protect`: have a VM protected again, the next attempt at once."""

import argparse

from coloha.cli import order

EXAMPLE = """example:
  coloha protect vm1

For a VM whose protection an operator ended (coloha unprotect, coloha drain), and for one that waits
before the next attempt: because the last one failed, or it failed over too often
(recovery.flap_limit).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    return order.give(arguments, "protect", "the next attempt to protect is made now")
