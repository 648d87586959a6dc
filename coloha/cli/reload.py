"""`coloha reload`: have the daemon read its configuration again, and say what it makes of it."""

import argparse

from coloha.cli import exits, order

EXAMPLE = """example:
  coloha reload

A configuration that is refused changes nothing. What needs a restart is said.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    del parser


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    for line in order.request(arguments, "reload"):
        print(line)
    return exits.OK
