"""`coloha replay`: repeat a flight record's decisions, and say why the VM failed over."""

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from coloha.cli import exits
from coloha.errors import FlightError
from coloha.flight import words
from coloha.flight.explain import Story, explain
from coloha.flight.record import (
    STAMP,
    SUFFIX,
    Begins,
    Header,
    files,
    is_next,
    other_rules,
    read,
)
from coloha.flight.replay import Began, DivergenceError, Replay, Step, shown

EXAMPLE = """examples:
  coloha replay /var/lib/coloha/flight/vm1
  coloha replay --from 03:10 --to 03:25 /var/lib/coloha/flight/vm1
  coloha replay --steps 00000017-20261101T031207Z.jsonl.gz

The files of one host at a time: each saw it from its own side. Times are UTC.
"""

WIDTH = 100
_CLOCK = "00:00:00.000  "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a flight record, or a pair's folder"
    )
    for option, name, side in (("--from", "since", "after"), ("--to", "until", "before")):
        parser.add_argument(
            option, dest=name, type=_time, metavar="TIME", help=f"tell only what came {side}, UTC"
        )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for machines")
    form.add_argument("--steps", action="store_true", help="print every step instead")


def _time(text: str) -> datetime:
    """Return a time of day, or a date and a time, as UTC."""
    try:
        if "-" not in text:
            text = f"{datetime.now(UTC).date()} {text}"
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time (03:10) nor a date and a time (2026-11-01T03:10)"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def call(arguments: argparse.Namespace) -> int:
    """Repeat, compare, and tell."""
    try:
        since, until = _seconds(arguments.since, -math.inf), _seconds(arguments.until, math.inf)
        run = _Run(_chosen(arguments.files, since, until))
        items = _within(run.items(), since, until)
        if arguments.steps:
            for item in items:
                print(_step(item))
            _print(run.summary())
        else:
            story = explain(items)
            print(_json(run, story)) if arguments.json else _print(_told(run, story))
    except FlightError as error:
        print(error, file=sys.stderr)
        return exits.BAD_CONFIG
    if run.divergence is None:
        return exits.OK
    print(run.divergence, file=sys.stderr)
    return exits.FAILED


def _seconds(time: datetime | None, default: float) -> float:
    return default if time is None else time.timestamp()


def _chosen(given: Iterable[Path], since: float, until: float) -> list[Path]:
    """Return the files to repeat; of a folder, those that may hold something of that time.

    :raises FlightError: if there are none.
    """
    chosen: list[Path] = []
    for path in given:
        if not path.is_dir():
            chosen.append(path)
            continue
        try:
            found = files(path)
        except OSError as error:
            raise FlightError(f"{path}: {error.strerror}") from error
        if not found:
            raise FlightError(f"{path}: no flight record is in this folder: give a pair's folder")
        times = [_begins_at(file) for file in found]
        ends = [*times[1:], math.inf]
        chosen += [
            file
            for file, begin, end in zip(found, times, ends, strict=True)
            if begin <= until and end >= since
        ]
    if not chosen:
        raise FlightError("the record holds nothing of that time (times are UTC)")
    return chosen


def _begins_at(path: Path) -> float:
    """Return the time in a file's name, seconds since 1970; 0 if there is none."""
    stamp = path.name.partition("-")[2].removesuffix(SUFFIX)
    try:
        return datetime.strptime(stamp, STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


class _Run:
    """One replay of all files, and what there is to say of it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.replay = Replay()
        self.header: Header | None = None
        self.began_at = self.ended_at = 0.0
        self.torn: list[Path] = []
        self.divergence: str | None = None

    def items(self) -> Iterator[Began | Step]:
        """Yield what happened, up to a divergence."""
        last: Path | None = None
        for path in self._paths:
            follows = last is not None and is_next(last, path)
            last = path
            try:
                for item in self.replay.run(read(path), follows=follows):
                    self._look(item, path)
                    yield item
            except DivergenceError as error:
                at = f"{words.day(error.at)} {words.clock(error.at)}"
                self.divergence = (
                    f"{path}:{error.line}: at {at} UTC this coloha decides otherwise\n{error}"
                )
                return
            if self.replay.torn:
                self.torn.append(path)

    def _look(self, item: Began | Step, path: Path) -> None:
        if isinstance(item, Began):
            if self.header is None:
                self.header, self.began_at = item.header, item.at
            elif (item.header.node, item.header.pair) != (self.header.node, self.header.pair):
                raise FlightError(
                    f"{path}: the record of {item.header.pair} on {item.header.node}, not of "
                    f"{self.header.pair} on {self.header.node}: give the files of one at a time"
                )
        self.ended_at = item.at

    def summary(self) -> Iterator[str]:
        """Yield what was repeated, and how that went."""
        if self.header is None:
            yield "the record is empty"
            return
        header, replay = self.header, self.replay
        began, ended = self.began_at, self.ended_at
        same = "all decided the same again" if self.divergence is None else "then one differs"
        yield (
            f"{header.pair} on {header.node}, recorded by coloha {header.coloha}, "
            f"{words.day(began)} {words.clock(began)} to {words.day(ended)} {words.clock(ended)} "
            f"UTC: {replay.steps} steps, {same}"
        )
        rules = other_rules(header)
        if rules and self.divergence is None:
            yield f"it was recorded by another coloha ({rules}), which decided the same"
        if replay.gaps:
            yield f"the record has {replay.gaps} gaps: the disk was too slow, or full"
        for path in self.torn:
            yield (
                f"{path.name} has no proper end: it is still being written, or its daemon was "
                "killed; the last steps may be missing"
            )


def _within(items: Iterable[Began | Step], since: float, until: float) -> Iterator[Began | Step]:
    """Yield what lies in that time, and before it the state in which the pair then was."""
    began: Began | None = None
    told = False
    for item in items:
        if isinstance(item, Began):
            began = item
        if not since <= item.at <= until:
            continue
        if not told and isinstance(item, Step) and began is not None:
            header = replace(began.header, begins=Begins.CONTINUED)
            yield replace(began, at=item.at, header=header, after=item.before)
        told = True
        yield item


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + (len(_CLOCK) if line[:1] == " " else 0))
        print(textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False))


def _told(run: _Run, story: Story) -> Iterator[str]:
    yield from run.summary()
    failovers = [incident for incident in story.incidents if incident.failover]
    others = [incident for incident in story.incidents if not incident.failover]
    yield ""
    yield "Why did it fail over?" if failovers else "It did not fail over in this time."
    for incident in failovers:
        yield incident.paragraph()
        yield ""
    if others:
        yield "What else ended protection?"
    for incident in others:
        yield incident.paragraph()
        yield ""
    node = run.header.node if run.header else "this host"
    if not story.incidents:
        yield ""
    yield f"What {node} saw and decided (UTC)"
    day = ""
    for moment in story.moments:
        if words.day(moment.at) != day:
            day = words.day(moment.at)
            yield f" {day}"
        yield f" {words.clock(moment.at)}  {moment.text}"


def _step(item: Began | Step) -> str:
    at = f"{words.day(item.at)} {words.clock(item.at)}"
    if isinstance(item, Began):
        return f"{at} --- {item.header.begins}: phase {item.after.phase}"
    phase = str(item.before.phase)
    if item.after.phase is not item.before.phase:
        phase += f" -> {item.after.phase}"
    return f"{at} #{item.number} {phase}: {item.event}: {shown(item.outcome)}"


def _json(run: _Run, story: Story) -> str:
    header = run.header
    made = {
        "pair": header.pair if header else None,
        "node": header.node if header else None,
        "coloha": header.coloha if header else None,
        "from": run.began_at,
        "to": run.ended_at,
        "steps": run.replay.steps,
        "same": run.divergence is None,
        "divergence": run.divergence,
        "gaps": run.replay.gaps,
        "without_end": [str(path) for path in run.torn],
        "incidents": [
            {"failover": each.failover, "text": each.paragraph(), **asdict(each)}
            for each in story.incidents
        ],
        "moments": [asdict(moment) for moment in story.moments],
    }
    return json.dumps(made)
