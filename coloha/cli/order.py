"""What the verbs that order something of a pair's daemon have in common."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from coloha import config
from coloha.adapters.control import ControlClient
from coloha.cli import exits
from coloha.errors import ControlError

LOOK_S = 0.1
PATIENCE_S = 60.0


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the pair."""
    parser.add_argument("pair", help="name of the pair")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add the argument of those who know the plan."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says for how long to wait."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=PATIENCE_S,
        metavar="SECONDS",
        help=f"wait so long until it is done, 0 for not at all (default: {PATIENCE_S:g})",
    )


def request(arguments: argparse.Namespace, verb: str, **more: object) -> Any:
    """Send a request to the daemon; return its answer.

    :raises ControlError: with the daemon's reason, if it refuses.
    """
    control_socket = config.control_socket(arguments.config)
    with contextlib.closing(ControlClient(control_socket)) as client:
        return client.ask(verb, **more)["ok"]


def ask(arguments: argparse.Namespace, verb: str, **more: object) -> Any:
    """Send a request about the pair to the daemon; return its answer.

    :raises ControlError: with the daemon's reason, if it refuses.
    """
    return request(arguments, verb, pair=arguments.pair, **more)


def give(arguments: argparse.Namespace, verb: str, done: str) -> int:
    """Give an order, say that it was taken."""
    ask(arguments, verb)
    print(f"{arguments.pair}: {done}")
    return exits.OK


def pairs(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the status of every pair, by name."""
    return {pair["pair"]: pair for pair in request(arguments, "status")["pairs"]}


def wait(
    arguments: argparse.Namespace,
    name: str,
    reached: Callable[[dict[str, Any]], bool],
    until: float,
) -> dict[str, Any] | None:
    """Wait for a pair until monotonic second `until`; return its status then, or None if late.

    :raises ControlError: if the daemon has no such pair.
    """
    while True:
        pair = pairs(arguments).get(name)
        if pair is None:
            raise ControlError(f"no pair {name!r} on this node")
        if reached(pair):
            return pair
        if time.monotonic() >= until:
            return None
        time.sleep(LOOK_S)


def confirmed(arguments: argparse.Namespace, steps: list[str]) -> bool:
    """Print a plan; return whether it is to be carried out."""
    for number, step in enumerate(steps, 1):
        print(f"  {number}. {step}")
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        print("nobody can be asked here: add --yes to do it")
    elif input("do it? [yes/no] ").strip() == "yes":
        return True
    print("nothing was done")
    return False
