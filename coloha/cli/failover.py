"""`coloha failover`: have the other node run the VM, or, by force, this one."""

import argparse

from coloha.cli import exits, order

EXAMPLE = """examples:
  coloha failover vm1
  coloha failover vm1 --yes
  coloha failover vm1 --force

It prints the plan and asks. Order it on the node that runs the VM; with failover paused and that
node silent, on the other one. While both nodes are well, coloha switchover is kinder. Force is for
a node that shall run the VM of one that is dead for good, and, without a witness, for one that
cannot know whether the other is. With fencing the other host is switched off first; if that fails,
the order lapses.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)
    parser.add_argument("--force", action="store_true", help="take the VM from a dead node")
    parser.add_argument(
        "--host-is-off",
        action="store_true",
        help="with --force: the dead node's host is off for certain, it need not be fenced first",
    )
    order.add_yes(parser)


def call(arguments: argparse.Namespace) -> int:
    """Print the plan; carry it out if that is wanted."""
    wanted = {"forced": arguments.force, "vouched": arguments.host_is_off}
    planned = order.ask(arguments, "failover", **wanted)
    print(f"{arguments.pair}:")
    if not order.confirmed(arguments, planned["plan"]):
        return exits.FAILED
    order.ask(arguments, "failover", **wanted, planned=planned["generation"])
    print("ordered (coloha status --watch shows how it goes)")
    return exits.OK
