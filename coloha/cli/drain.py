"""`coloha drain`: make this host free for maintenance, or, after it, take part again."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

from coloha.cli import exits, order
from coloha.errors import ControlError

MOVE_S = 20.0
"""A VM that has not changed over by then does not any more: the order has long lapsed."""

EXAMPLE = """examples:
  coloha drain
  coloha drain --yes --timeout 600
  coloha drain --undo

Every VM that runs here changes over to its other node; then no pair of this host has a secondary
here, until --undo. What cannot change over, since it is not protected, stays, and is told: exit
code 1. Nothing else is asked of a VM: coloha stop switches one off.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--undo", action="store_true", help="have all pairs protected again")
    order.add_yes(parser)
    order.add_timeout(parser)


def call(arguments: argparse.Namespace) -> int:
    """Print the plan; carry it out if that is wanted."""
    found = order.pairs(arguments)
    if arguments.undo:
        for name in found:
            order.request(arguments, "protect", pair=name)
            print(f"{name}: is protected again")
        return exits.OK
    if not found:
        print("this node has no pair")
        return exits.OK
    if not order.confirmed(arguments, list(_steps(found))):
        return exits.FAILED
    until = time.monotonic() + arguments.timeout
    stay = [name for name, pair in found.items() if not _moves(arguments, pair, until)]
    free = [name for name in found if name not in stay]
    late = [name for name in free if not _leaves(arguments, name, until)]
    for name in late:
        print(f"{name}: its secondary here has not ended within {arguments.timeout:g} s")
    return exits.FAILED if stay or late else exits.OK


def _steps(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, pair in found.items():
        if pair.get("role") != "primary":
            yield f"{name}: {pair.get('peer', 'its other node')} has no secondary here any more"
        elif pair["protected"]:
            yield f"{name}: {pair['peer']} runs the VM from now on, without a secondary"
        elif pair["phase"] == "off":
            yield f"{name}: stays off"
        else:
            yield f"{name}: STAYS HERE, not being protected ({pair['why_not']})"


def _moves(arguments: argparse.Namespace, pair: dict[str, Any], until: float) -> bool:
    """Have a pair's VM change over if it runs here; return whether it does not any more."""
    name = pair["pair"]
    if pair.get("role") != "primary" or pair["phase"] == "off":
        return True
    if time.monotonic() >= until:  # an order that nobody waits for would be told wrongly
        print(f"{name}: stays here: no time was left to move it (--timeout)")
        return False
    try:
        plan = order.request(arguments, "failover", pair=name, gently=True)
        planned = plan["generation"]
        order.request(arguments, "failover", pair=name, gently=True, planned=planned)
    except ControlError as error:
        print(f"{name}: stays here: {error}")
        return False
    moved_by = min(until, time.monotonic() + MOVE_S)
    if order.wait(arguments, name, lambda pair: pair.get("role") != "primary", moved_by) is None:
        print(f"{name}: stays here (coloha events tells why)")
        return False
    print(f"{name}: {pair['peer']} runs the VM")
    return True


def _leaves(arguments: argparse.Namespace, name: str, until: float) -> bool:
    """End the protection of a VM by this node; return whether nothing of it runs here any more."""
    order.request(arguments, "unprotect", pair=name)
    gone = order.wait(arguments, name, lambda pair: not pair.get("qemu", {}).get("run"), until)
    if gone is not None:
        print(f"{name}: nothing of it runs here")
    return gone is not None
