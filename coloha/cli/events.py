"""`coloha events`: what happened on this node."""

import argparse
import contextlib
import json
from typing import Any

from coloha import config
from coloha.adapters.control import ControlClient
from coloha.cli import exits

EXAMPLE = """examples:
  coloha events
  coloha events --follow --pair vm1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what happens next")
    parser.add_argument("--pair", help="only events of this pair")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def call(arguments: argparse.Namespace) -> int:
    """Print the events."""
    control_socket = config.control_socket(arguments.config)
    with contextlib.closing(ControlClient(control_socket)) as client:
        answer = client.ask("events", follow=arguments.follow)
        while "end" not in answer:
            event = answer["ok"]
            if arguments.pair in (None, event["pair"]):
                print(json.dumps(event) if arguments.json else line(event), flush=True)
            answer = client.next(timeout_s=None)
    return exits.OK


def line(event: dict[str, Any]) -> str:
    """Return an event on one line."""
    mark = {"info": " ", "warning": "!", "error": "X"}[event["severity"]]
    return (
        f"{event['at']} {mark} {event['pair']} gen {event['generation']} "
        f"{event['kind']}: {event['text']}"
    )
