"""`coloha stop`: switch a VM off, and leave it off until coloha start."""

import argparse
import time
from typing import Any

from coloha.cli import exits, order

EXAMPLE = """examples:
  coloha stop vm1
  coloha stop vm1 --timeout 300
  coloha stop vm1 --now

Order it on the node that runs the VM. The guest is asked to switch itself off (its power button is
pressed); --now does not ask: the guest loses what it has not written to a disk.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)
    parser.add_argument("--now", action="store_true", help="switch it off without asking the guest")
    order.add_timeout(parser)


def call(arguments: argparse.Namespace) -> int:
    """Ask the daemon, wait until the VM is off."""
    order.ask(arguments, "stop", hard=arguments.now)
    name = arguments.pair
    if not arguments.timeout:
        print(f"{name}: ordered (coloha status --watch shows how it goes)")
        return exits.OK
    if order.wait(arguments, name, _is_off, time.monotonic() + arguments.timeout) is None:
        help_ = "" if arguments.now else ": does it heed its power button? --now does not ask it"
        print(f"{name}: not off within {arguments.timeout:g} s{help_}")
        return exits.FAILED
    print(f"{name}: off (coloha start starts it)")
    return exits.OK


def _is_off(pair: dict[str, Any]) -> bool:
    return pair["phase"] == "off" and pair["qemu"]["run"] is None
