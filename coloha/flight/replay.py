"""Repeating a record: the same machine, the same events, and, step by step, the same decisions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from coloha.core.actions import Action
from coloha.core.context import Settings
from coloha.core.events import Event
from coloha.core.machine import PairMachine, State
from coloha.core.snapshot import Snapshot
from coloha.flight.codec import codec
from coloha.flight.record import Begins, Entry, Header, Line, Raised, Start, Torn, other_rules

_STATE = codec(State)


@dataclass(frozen=True, slots=True)
class Began:
    """A header: from here on the steps follow one another. `at` is seconds since 1970."""

    at: float
    header: Header
    settings: Settings
    after: Snapshot


@dataclass(frozen=True, slots=True)
class Step:
    """One step, decided again as it was recorded. `at` is seconds since 1970."""

    at: float
    number: int
    now: float
    event: Event
    outcome: list[Action] | Raised
    before: Snapshot
    after: Snapshot


class DivergenceError(Exception):
    """A decision is not the one that is recorded; the message says where, and what may be why."""

    def __init__(self, problem: str, line: int, at: float, header: Header) -> None:
        rules = other_rules(header)
        why = (
            f"it was recorded by another coloha ({rules}), whose rules may differ: replay it with "
            "that one"
            if rules
            else "it was recorded by the same rules: the record was altered, or this is a bug of "
            "coloha: report it, with the record"
        )
        super().__init__(f"{problem}\n{why}")
        self.line = line
        self.at = at


class Replay:
    """Repeats the lines of a node's records, of one file after another.

    A header that continues the file before is compared with the state that was reached.
    """

    def __init__(self) -> None:
        self.steps = 0
        """How many steps were decided the same."""
        self.gaps = 0
        self.torn = False
        """The last file had no proper end."""
        self._machine: PairMachine | None = None
        self._header: Header | None = None
        self._offset = 0.0
        self._after: Snapshot | None = None

    def run(self, lines: Iterable[Line], *, follows: bool = False) -> Iterator[Began | Step]:
        """Yield what happened; `follows` says that the lines come right after the ones before.

        :raises DivergenceError: at the first decision that is another one now.
        """
        self.torn = False
        if not follows:
            self._machine = None
        for line in lines:
            match line:
                case Start():
                    yield self._begin(line)
                case Entry():
                    yield self._repeat(line)
                case Torn():
                    self.torn = True

    def _begin(self, start: Start) -> Began:
        header = start.header
        self._offset = datetime.fromisoformat(header.time).timestamp() - header.now
        at = header.now + self._offset
        if header.begins is Begins.CONTINUED and self._machine is not None:
            reached, found = _STATE.encode(self._machine.state()), _STATE.encode(start.state)
            if reached != found:
                raise DivergenceError(
                    f"the state at the end of the file before is not the one that this file begins "
                    f"with: {_first_difference(reached, found)}",
                    start.line, at, header,
                )  # fmt: skip
        self.gaps += header.begins is Begins.GAP
        self._machine, self._header = PairMachine.resume(start.state), header
        self._after = self._machine.snapshot()
        return Began(at, header, start.state.context.s, self._after)

    def _repeat(self, entry: Entry) -> Step:
        machine, header, before = self._machine, self._header, self._after
        assert machine is not None
        assert header is not None
        assert before is not None
        at = entry.now + self._offset
        decided = decide(machine, entry.event, entry.now)
        if decided != entry.outcome:
            raise DivergenceError(
                f"step {entry.number}, {entry.event}\nrecorded: {shown(entry.outcome)}\n"
                f"decided:  {shown(decided)}",
                entry.line, at, header,
            )  # fmt: skip
        self.steps += 1
        self._after = machine.snapshot()
        return Step(at, entry.number, entry.now, entry.event, entry.outcome, before, self._after)


def decide(machine: PairMachine, event: Event, now: float) -> list[Action] | Raised:
    """Return what the machine decides, or how it broke."""
    try:
        return machine.step(event, now)
    except Exception as error:
        return raised(error)


def raised(error: Exception) -> Raised:
    """Return what is recorded of an error of the machine."""
    return Raised(f"{type(error).__name__}: {error}")


def shown(outcome: list[Action] | Raised) -> str:
    """Return what a machine decided, in one line."""
    if isinstance(outcome, Raised):
        return f"it broke: {outcome.raised}"
    return ", ".join(map(str, outcome)) or "nothing"


def _first_difference(one: object, other: object, path: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one:
            if one[name] != other[name]:
                return _first_difference(one[name], other[name], f"{path}.{name}".lstrip("."))
    return f"{path}: {one!r}, and {other!r}"
