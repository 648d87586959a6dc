"""`coloha start`: start a VM that its guest has shut down, or a pair that is halted."""

import argparse
import contextlib

from coloha import config
from coloha.adapters.control import ControlClient
from coloha.cli import exits

EXAMPLE = """example:
  coloha start vm1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("pair", help="name of the pair")


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon."""
    control_socket = config.load(arguments.config).host.control_socket
    with contextlib.closing(ControlClient(control_socket)) as client:
        client.ask("start", pair=arguments.pair)
    print(f"{arguments.pair}: starting (coloha status --watch shows how it goes)")
    return exits.OK
