"""`coloha unprotect`: end a VM's protection in good order, until coloha protect."""

import argparse

from coloha.cli import order

EXAMPLE = """example:
  coloha unprotect vm1

One node is enough: the other one learns of it by its heartbeats. The VM goes on without a
secondary, also over restarts of the daemons, until coloha protect.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    return order.give(arguments, "unprotect", "goes on without a secondary until coloha protect")
