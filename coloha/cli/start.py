"""`coloha start`: start a VM that its guest has shut down, or a pair that is halted."""

import argparse

from coloha.cli import order

EXAMPLE = """example:
  coloha start vm1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    return order.give(arguments, "start", "starting (coloha status --watch shows how it goes)")
