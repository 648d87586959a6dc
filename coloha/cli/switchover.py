"""`coloha switchover`: have primary and secondary change roles, both being well."""

import argparse
import time
from typing import Any

from coloha.cli import exits, order

EXAMPLE = """examples:
  coloha switchover vm1
  coloha switchover vm1 --yes --timeout 120

Order it on the node that runs the VM. One more commit is made and its output let go; then the other
node runs the VM, and this one follows. Clients keep their connections. If the other node does not
take the VM within a second, everything stays as it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)
    order.add_yes(parser)
    order.add_timeout(parser)


def call(arguments: argparse.Namespace) -> int:
    """Print the plan; carry it out if that is wanted, and wait until the VM is protected again."""
    planned = order.ask(arguments, "failover", gently=True)
    print(f"{arguments.pair}:")
    if not order.confirmed(arguments, planned["plan"]):
        return exits.FAILED
    order.ask(arguments, "failover", gently=True, planned=planned["generation"])
    if not arguments.timeout:
        print("ordered (coloha status --watch shows how it goes)")
        return exits.OK
    return _await(arguments, planned["generation"])


def _await(arguments: argparse.Namespace, generation: int) -> int:
    began = time.monotonic()
    until = began + arguments.timeout
    name = arguments.pair

    def moved(pair: dict[str, Any]) -> bool:
        return bool(pair.get("generation", 0) > generation and pair.get("role") != "primary")

    pair = order.wait(arguments, name, moved, until)
    if pair is None:
        print(f"{name}: this node still runs the VM (coloha events tells why)")
        return exits.FAILED
    print(f"{name}: {pair['peer']} runs the VM")
    if order.wait(arguments, name, lambda pair: pair["protected"], until) is None:
        print(f"{name}: not protected again within {arguments.timeout:g} s (coloha status)")
        return exits.FAILED
    print(f"{name}: protected again after {time.monotonic() - began:.1f} s")
    return exits.OK
