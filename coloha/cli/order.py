"""What the verbs that order something of a pair's daemon have in common."""

import argparse
import contextlib
from typing import Any

from coloha import config
from coloha.adapters.control import ControlClient
from coloha.cli import exits


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the pair."""
    parser.add_argument("pair", help="name of the pair")


def ask(arguments: argparse.Namespace, verb: str, **more: object) -> Any:
    """Send a request about the pair to the daemon; return its answer.

    :raises ControlError: with the daemon's reason, if it refuses.
    """
    control_socket = config.load(arguments.config).host.control_socket
    with contextlib.closing(ControlClient(control_socket)) as client:
        return client.ask(verb, pair=arguments.pair, **more)["ok"]


def give(arguments: argparse.Namespace, verb: str, done: str) -> int:
    """Give an order, say that it was taken."""
    ask(arguments, verb)
    print(f"{arguments.pair}: {done}")
    return exits.OK
