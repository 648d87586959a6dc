"""`coloha status`: how the pairs of this node are."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from coloha import config
from coloha.adapters.control import ControlClient
from coloha.cli import exits
from coloha.errors import ControlError
from coloha.flight.words import length
from coloha.runtime.page import DOING

EXAMPLE = """examples:
  coloha status
  coloha status --watch
  coloha status --json | jq '.pairs[].protected'

Exit code 1 means that a pair is not protected.
"""

WEAKER = (
    "compare: output is released when both copies answer alike, before a checkpoint; after a"
    " failover the VM may lack what only the primary's copy did since the last one"
)
"""What the mode costs, in a sentence; docs/design.md has it all."""

REFRESH_S = 0.5
KEPT, SHOWN = 200, 8
"""Events that are kept while somebody looks on, and how many are shown."""
_CLEAR = "\x1b[H\x1b[J"
_GREEN, _RED, _BOLD, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    parser.add_argument("--watch", "-w", action="store_true", help="show it again and again")
    parser.add_argument("pair", nargs="?", help="only this pair")


def call(arguments: argparse.Namespace) -> int:
    """Print the status, once or until interrupted."""
    socket_path = config.control_socket(arguments.config)
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    news = _News()
    while True:
        try:
            status = _asked(socket_path, news if arguments.watch else None)
        except ControlError as error:
            if not arguments.watch:
                raise
            text = str(error)  # it may be restarting
        else:
            if arguments.pair is not None:
                status["pairs"] = [p for p in status["pairs"] if p["pair"] == arguments.pair]
                if not status["pairs"]:
                    print(f"coloha: no pair {arguments.pair!r} on this node", file=sys.stderr)
                    return exits.FAILED
            lines = [*render(status, colours=colours), *news.shown(arguments.pair)]
            text = json.dumps(status) if arguments.json else "\n".join(lines)
        clear = arguments.watch and sys.stdout.isatty() and not arguments.json
        print((_CLEAR if clear else "") + text, flush=True)
        if not arguments.watch:
            return exits.OK if all(p.get("protected") for p in status["pairs"]) else exits.FAILED
        time.sleep(REFRESH_S)


class _News:
    """The last events, for who looks on."""

    def __init__(self) -> None:
        self.number = 0
        self._last: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def add(self, event: dict[str, Any]) -> None:
        self.number = event["number"]
        self._last.append(event)

    def shown(self, pair: str | None) -> Iterator[str]:
        """Yield the last events of a pair, or of all."""
        chosen = [event for event in self._last if pair in (None, event["pair"])][-SHOWN:]
        if chosen:
            yield ""
        for event in chosen:
            at = datetime.fromisoformat(event["at"]).strftime("%H:%M:%S")
            yield f"{at} UTC  {event['pair']}: {event['kind']}: {event['text']}"


def _asked(socket_path: Path, news: _News | None) -> dict[str, Any]:
    """Return the daemon's status; take in what is new.

    :raises ControlError: if no daemon answers.
    """
    with contextlib.closing(ControlClient(socket_path)) as client:
        status: dict[str, Any] = client.ask("status")["ok"]
    if news is not None:
        with contextlib.closing(ControlClient(socket_path)) as client:
            answer = client.ask("events", since=news.number)
            while "ok" in answer:
                news.add(answer["ok"])
                answer = client.next()
    return status


def render(status: dict[str, Any], *, colours: bool) -> Iterator[str]:
    """Yield the lines that show a status to people."""
    yield f"node {status['node']}   coloha {status['version']}   up {_time(status['uptime_s'])}"
    yield from _keys(status.get("keys"))
    for pair in status["pairs"]:
        yield ""
        yield from _pair(pair, colours)


def _keys(keys: dict[str, Any] | None) -> Iterator[str]:
    """Yield what is to be known while keys are changed."""
    if keys is None:
        return
    of_peers = keys["of_peers"].items()
    if keys["accepted"] or any(name != keys["used"] for _, name in of_peers):
        accepted = "".join(f", accepts {name}" for name in keys["accepted"])
        heard = "".join(f"; {peer} uses {name}" for peer, name in of_peers)
        yield f"keys: this node uses {keys['used']}{accepted}{heard}"


def _pair(pair: dict[str, Any], colours: bool) -> Iterator[str]:
    colour = _GREEN if pair.get("protected") else _RED
    state = "protected" if pair.get("protected") else "NOT PROTECTED"
    if colours:
        state = f"{colour}{_BOLD}{state}{_PLAIN}"
    phase = f"{pair.get('role', '?')}, phase {pair['phase']}"
    yield f"{pair['pair']}: {state}   ({phase} for {_time(pair.get('phase_age_s'))})"
    yield f"  this node     {DOING.get(pair['phase'], '-')}"
    if pair["why_not"]:
        yield f"  why not       {pair['why_not']}"
    if "peer" not in pair:
        return
    if pair["mode"] == "compare":
        yield f"  mode          {WEAKER}"
    if pair["paused"]:
        warning = "PAUSED by an operator: nothing fails over by itself (coloha resume)"
        yield f"  failover      {_RED + _BOLD + warning + _PLAIN if colours else warning}"
    yield f"  waits for     {_waiting(pair)}"
    yield f"  generation    {pair['generation']}, the record says {pair['record']}"
    if pair["last_pause_s"] is not None or pair["role"] == "primary":
        yield (
            f"  epochs        {pair['epochs']} committed, last pause {_time(pair['last_pause_s'])},"
            f" period {_time(pair['period_s'])}"
        )
        yield from _output(pair)
        for mac in pair["open_nics"]:
            yield f"  NIC           {mac}: never held, nothing is promised there"
    if pair["loaded"] is not None:
        yield f"  checkpoints   {pair['loaded']} loaded"
    yield f"  heartbeat     {pair['peer']} {_heard(pair['heartbeat_age_s'])}"
    if pair["disks"] is not None:
        yield f"  disks         {_copying(pair['disks'])}"
    if pair["disks_torn"] is not None:
        yield f"  disks         not whole on this node: {pair['disks_torn']}"
    if pair["witness_error"]:
        yield f"  witness       UNREACHABLE: {pair['witness_error']}"
    qemu = pair["qemu"]
    if qemu["pid"] is not None:
        yield f"  qemu          pid {qemu['pid']}, run {qemu['run']}"


def _copying(disks: dict[str, Any]) -> str:
    copied, total = disks["copied_bytes"], disks["total_bytes"]
    share = f"{copied / total:.0%}" if total else "-"
    rate = f"{disks['bytes_per_s'] / 2**20:.1f} MiB/s"
    return (
        f"{share} of {total / 2**20:.0f} MiB copied, {rate}, {_time(disks['left_s'])} left at least"
    )


def _waiting(pair: dict[str, Any]) -> str:
    left_s = pair["waits_at_most_s"]
    until = f" (at most {_time(left_s)})" if left_s is not None and left_s > 1 else ""
    return f"{pair['waits_for'] or '-'}{until}"


def _output(pair: dict[str, Any]) -> Iterator[str]:
    if pair["held_age_s"] is None:
        how = "open"
    elif pair["mode"] == "compare":
        how = "compared; what differs waits for a checkpoint"
    else:
        how = f"held until committed, oldest {_time(pair['held_age_s'])}"
    yield f"  output        {how}"
    if pair["demanded"] is not None:
        yield f"  differences   {pair['demanded']} checkpoints that QEMU asked for by itself"


def _heard(age_s: float | None) -> str:
    return "not heard yet" if age_s is None else f"heard {_time(age_s)} ago"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else length(seconds)
