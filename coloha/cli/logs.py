"""`coloha logs`: what was told of a pair on this node, and what its QEMUs complained about."""

import argparse
import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coloha import config
from coloha.adapters.control import ControlClient
from coloha.cli import events, exits, order
from coloha.errors import ControlError

EXAMPLE = """examples:
  coloha logs vm1
  coloha logs vm1 --follow

QEMU gives its complaints no time: they follow the events, run by run. The journal has the daemon's
own: journalctl -u coloha.
"""

LOOK_S = 0.5
LINES = 50
CHUNK_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    order.add_pair(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what comes next")
    parser.add_argument(
        "--lines",
        "-n",
        type=int,
        default=LINES,
        metavar="N",
        help="the last N events, and the last N lines of each QEMU (default: %(default)s)",
    )


def call(arguments: argparse.Namespace) -> int:
    """Print what there is, and, if asked to, what comes."""
    runtime, state = config.folders(arguments.config)
    complaints = _Complaints(runtime / arguments.pair)
    told = 0
    first = True
    while True:
        found = list(_events(arguments, state, told))
        told = max((event["number"] for event in found), default=told)
        of_pair = [event for event in found if event["pair"] == arguments.pair]
        for event in of_pair[-arguments.lines :] if first else of_pair:
            print(events.line(event), flush=True)
        for line in complaints.news(arguments.lines if first else None):
            print(line, flush=True)
        if not arguments.follow:
            return exits.OK
        first = False
        time.sleep(LOOK_S)


def _events(arguments: argparse.Namespace, state: Path, since: int) -> Iterator[dict[str, Any]]:
    """Yield the events after a number, from the daemon, or from its disk if none answers."""
    try:
        client = ControlClient(config.control_socket(arguments.config))
    except ControlError:
        yield from _written(state / "events.jsonl", since)
        return
    with contextlib.closing(client):
        answer = client.ask("events", since=since)
        while "ok" in answer:
            yield answer["ok"]
            answer = client.next()


def _written(file: Path, since: int) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["number"] > since:
                    yield event


class _Complaints:
    """What QEMUs wrote to their standard error, run by run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def news(self, most: int | None) -> Iterator[str]:
        """Yield lines that are new, at most so many of each run."""
        files = sorted(self._folder.glob("*/stderr.log"), key=_time)
        for file in files:
            with contextlib.suppress(OSError), file.open("rb") as stream:
                begin = self._read.get(file, max(0, file.stat().st_size - CHUNK_BYTES))
                stream.seek(begin)
                whole, newline, _ = stream.read(CHUNK_BYTES).rpartition(b"\n")
                self._read[file] = begin + len(whole) + len(newline)
                lines = whole.decode(errors="replace").splitlines()
                yield from (f"qemu {file.parent.name}: {line}" for line in deque(lines, most))


def _time(file: Path) -> float:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return 0.0
