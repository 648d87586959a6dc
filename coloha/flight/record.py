"""The flight record: a file of JSON lines, compressed.

    {"flight": 1, "coloha": ..., "core": ..., "node": ..., "pair": ..., "time": ..., "now": ...,
     "begins": "start" | "continued" | "gap", "lost": 0, "state": {...}}
    [1, 2954.213, {"Heard": {...}}, []]
    [2, 2954.231, {"Timer": {}}, [{"RunScript": {...}}]]

A header holds the machine's state before the steps that follow; a step its number since the header,
the time, the event, and the actions, or {"raised": "..."} if the machine broke. Another header may
follow: the machine was made anew, or steps are missing before it. A file that has no proper end is
still being written, or its daemon was killed: it is good as far as it goes.
"""

import functools
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import coloha.core
from coloha import __version__
from coloha.core.actions import Action
from coloha.core.events import Event
from coloha.core.machine import State
from coloha.errors import FlightError
from coloha.flight.codec import FormError, codec

FORMAT = 1
SUFFIX = ".jsonl.gz"
STAMP = "%Y%m%dT%H%M%SZ"
"""How a file's name says when it was begun: 00000017-20261101T031207Z.jsonl.gz, UTC."""
MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 14
_GZIP = b"\x1f\x8b"


class Begins(StrEnum):
    """Why a header stands where it stands."""

    START = "start"
    """A new machine: the daemon started, or its pump started over."""
    CONTINUED = "continued"
    """The file before was full; nothing is missing."""
    GAP = "gap"
    """Steps before this are missing: the disk was too slow, or full."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a reader must know before the first step.

    `time` is UTC in ISO 8601, `now` the monotonic seconds of the same instant. `core` tells apart
    versions of the rules; `lost` counts the steps missing before this header.
    """

    coloha: str
    core: str
    node: str
    pair: str
    time: str
    now: float
    begins: Begins
    lost: int


@dataclass(frozen=True, slots=True)
class Raised:
    """Instead of actions: the machine broke with this error."""

    raised: str


@dataclass(frozen=True, slots=True)
class Start:
    """A header and the state in it, read from line `line`."""

    line: int
    header: Header
    state: State


@dataclass(frozen=True, slots=True)
class Entry:
    """One step, read from line `line`."""

    line: int
    number: int
    now: float
    event: Event
    outcome: list[Action] | Raised


@dataclass(frozen=True, slots=True)
class Torn:
    """The record ends here without a proper end; `line` is the last good one."""

    line: int


Line = Start | Entry | Torn

_HEADER = codec(Header)
_STATE = codec(State)
_NOW = codec(float)
_EVENT = codec(Event)
_OUTCOME = codec(list[Action] | Raised)


@functools.cache
def core_digest() -> str:
    """Return what the rules of this coloha are told apart by, whatever its version says."""
    digest = hashlib.sha256()
    for path in sorted(Path(coloha.core.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def header(
    node: str, pair: str, now: float, begins: Begins, lost: int, state: State
) -> Mapping[str, Any]:
    """Return the header of what follows `state`, as plain data: later steps do not change it."""
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    made = Header(__version__, core_digest(), node, pair, time, now, begins, lost)
    return {"flight": FORMAT, **_HEADER.encode(made), "state": _STATE.encode(state)}


def header_line(plain: Mapping[str, Any]) -> bytes:
    """Return the line of a header."""
    return _line(plain)


def step_line(number: int, now: float, event: Event, outcome: list[Action] | Raised) -> bytes:
    """Return the line of a step.

    :raises FormError: if a value is not what its type hint says.
    """
    return _line([number, _NOW.encode(now), _EVENT.encode(event), _OUTCOME.encode(outcome)])


def _line(plain: object) -> bytes:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read(path: Path) -> Iterator[Line]:
    """Yield what a record holds; `Torn` at the end if it has no proper one.

    :raises FlightError: at the first line that cannot be understood.
    """
    number = 0
    begun: Header | None = None
    steps = 0
    for text in _lines(path):
        number += 1
        if text is None:
            yield Torn(number - 1)
            return
        plain = _parsed(text, path, number)
        if type(plain) is dict:
            start = _start(plain, path, number)
            begun, steps = start.header, 0
            yield start
        elif begun is None:
            raise FlightError(f"{path}:{number}: no flight record: it must begin with a header")
        else:
            steps += 1
            yield _entry(plain, path, number, steps, begun)
    if number == 0:
        yield Torn(0)


def _lines(path: Path) -> Iterator[bytes | None]:
    """Yield the lines without their ends, and None at the end if that is not a proper one."""
    rest = b""
    for data in inflated(path):
        if not data:
            yield None
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE_BYTES:
            raise FlightError(f"{path}: no flight record: a line is longer than {MAX_LINE_BYTES}")
    if rest:
        yield None


def inflated(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, compressed or not, in parts; an empty one if it is cut short.

    :raises FlightError: if the file cannot be read, or what it holds is damaged.
    """
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            while data := file.read(_CHUNK_BYTES):
                if part := inflate.decompress(data) if packed else data:
                    yield part
    except OSError as error:
        raise FlightError(f"{path}: {error.strerror}") from error
    except zlib.error as error:
        raise FlightError(f"{path}: damaged ({error}): copy it from the host again") from error
    if inflate.unused_data:
        raise FlightError(f"{path}: something follows the record: give each file by itself")
    if packed and not inflate.eof:
        yield b""


def _parsed(text: bytes, path: Path, number: int) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name stands twice in one object")
        return made

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FlightError(
            f"{path}:{number}: no flight record, or a damaged one ({error}): copy it again"
        ) from error


def _start(plain: dict[str, Any], path: Path, line: int) -> Start:
    place = f"{path}:{line}"
    if plain.pop("flight", None) != FORMAT:
        raise FlightError(
            f"{place}: no flight record of format {FORMAT}: replay it with the coloha that made it"
        )
    state = plain.pop("state", None)
    try:
        made = _HEADER.decode(plain)
        if datetime.fromisoformat(made.time).tzinfo is None:
            raise ValueError(f"the time {made.time} lacks its zone")
    except ValueError as error:
        raise FlightError(f"{place}: header: {error}: the file is damaged") from error
    try:
        return Start(line, made, _STATE.decode(state))
    except FormError as error:
        raise FlightError(f"{place}: state.{error}: {_advice(made)}") from error


def _entry(plain: Any, path: Path, line: int, number: int, begun: Header) -> Entry:
    place = f"{path}:{line}"
    if type(plain) is not list or len(plain) != 4 or type(plain[0]) is not int:
        raise FlightError(f"{place}: neither a header nor a step: the file is damaged")
    if plain[0] != number:
        raise FlightError(
            f"{place}: step {plain[0]} stands where step {number} must: lines are missing or moved"
        )
    try:
        now = _NOW.decode(plain[1])
        event = _EVENT.decode(plain[2])
        outcome = _OUTCOME.decode(plain[3])
    except FormError as error:
        raise FlightError(f"{place}: step {number}: {error}: {_advice(begun)}") from error
    if not math.isfinite(now):
        raise FlightError(f"{place}: step {number}: {now} is no time: the file is damaged")
    return Entry(line, number, now, event, outcome)


def _advice(begun: Header) -> str:
    """Say what to do about a record whose values this coloha does not understand."""
    if begun.core == core_digest():
        return "the file is damaged"
    return f"replay it with the coloha that made it ({other_rules(begun)})"


def other_rules(begun: Header) -> str | None:
    """Say how the coloha that made a record differs from this one, or None if it does not."""
    if begun.core == core_digest():
        return None
    if begun.coloha == __version__:
        return f"also {__version__}, but with another core: {begun.core}, not {core_digest()}"
    return f"{begun.coloha}; this is {__version__}"


def compressed(lines: bytes) -> bytes:
    """Return the content of a whole file of these lines; the same lines give the same bytes."""
    return gzip.compress(lines, 9, mtime=0)


def files(folder: Path) -> list[Path]:
    """Return the files of a pair's record, oldest first.

    :raises OSError: if the folder cannot be read.
    """
    return sorted((path for path in folder.iterdir() if _number(path)), key=_number)


def next_file(folder: Path, present: Sequence[Path]) -> Path:
    """Return the path of a file that follows those `present`, begun now."""
    number = _number(present[-1]) + 1 if present else 1
    return folder / f"{number:08}-{datetime.now(UTC).strftime(STAMP)}{SUFFIX}"


def is_next(path: Path, other: Path) -> bool:
    """Whether `other` is the file right after `path`, by their names."""
    number = _number(path)
    return number > 0 and path.parent == other.parent and _number(other) == number + 1


def _number(path: Path) -> int:
    """Return the number in a record's name; 0 if it has none."""
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isdecimal() and path.name.endswith(SUFFIX) else 0
