"""Records of machines as they live in a test, whatever it is that feeds them."""

import contextlib
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coloha.core.actions import Action
from coloha.core.context import Settings
from coloha.core.events import Event
from coloha.core.machine import PairMachine, State
from coloha.flight.codec import codec
from coloha.flight.explain import Story, explain
from coloha.flight.record import Begins, header, header_line, read, step_line
from coloha.flight.replay import Began, Replay, Step, raised

STATE = codec(State)
BEGAN = datetime(2026, 11, 1, 3, 12, tzinfo=UTC)
"""What the clocks on the wall say when the machines' clocks say 0."""


class Tape:
    """What one node's machines were told and decided."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.machine: PairMachine
        self.now = 0.0
        self._first: float | None = None
        """What the node's clock said at first: then it was BEGAN."""
        self._number = 0

    def head(self, begins: Begins, lost: int = 0) -> None:
        """Begin anew: with the machine's state as it is now."""
        self._number = 0
        settings = self.machine.state().context.s
        plain = header(settings.me, "vm", self.now, begins, lost, self.machine.state())
        passed = timedelta(seconds=self.now - (self._first or self.now))
        plain = {**plain, "time": (BEGAN + passed).isoformat()}
        self.lines.append(header_line(plain))

    def begin(self, machine: PairMachine, now: float) -> None:
        self.machine, self.now = machine, now
        self._first = self._first or now
        self.head(Begins.START)

    def take(self, now: float, event: Event, outcome: list[Action] | Exception) -> None:
        self.now = now
        self._number += 1
        found = raised(outcome) if isinstance(outcome, Exception) else outcome
        self.lines.append(step_line(self._number, now, event, found))

    def save(self, path: Path) -> Path:
        path.write_bytes(b"".join(self.lines))
        return path


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, Tape]]:
    """Record every machine that is made meanwhile, by its node's name."""
    tapes: dict[str, Tape] = {}
    make, step = PairMachine.__init__, PairMachine.step

    def making(self: PairMachine, settings: Settings, now: float) -> None:
        make(self, settings, now)
        tapes.setdefault(settings.me, Tape()).begin(self, now)

    def stepping(self: PairMachine, event: Event, now: float) -> list[Action]:
        tape = tapes.get(self.state().context.s.me)
        if tape is None or tape.machine is not self:
            return step(self, event, now)
        try:
            actions = step(self, event, now)
        except Exception as error:
            tape.take(now, event, error)
            raise
        tape.take(now, event, actions)
        return actions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairMachine, "__init__", making)
        patch.setattr(PairMachine, "step", stepping)
        yield tapes


class Twins:
    """From a random step on, a copy of a machine, made through JSON, takes every step too."""

    def __init__(self, seed: int) -> None:
        self.compared = 0
        self._random = random.Random(seed)
        self._twins: dict[str, tuple[PairMachine, PairMachine]] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        step = PairMachine.step

        def stepping(machine: PairMachine, event: Event, now: float) -> list[Action]:
            name = machine.state().context.s.me
            original, twin = self._twins.get(name, (None, None))
            actions = step(machine, event, now)
            if twin is not None and original is machine:
                assert step(twin, event, now) == actions
                assert twin.snapshot() == machine.snapshot()
                assert twin.deadline() == machine.deadline()
                self.compared += 1
            elif self._random.random() < 0.01:
                self._twins[name] = machine, copied(machine)
            if self._random.random() < 0.1:
                assert copied(machine).state() == machine.state()
            return actions

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PairMachine, "step", stepping)
            yield


def copied(machine: PairMachine) -> PairMachine:
    """A machine made from the JSON of another's state."""
    line = header_line({"state": STATE.encode(machine.state())})
    return PairMachine.resume(STATE.decode(json.loads(line)["state"]))


def replayed(path: Path) -> list[Began | Step]:
    """Repeat a record, which must decide the same."""
    return list(Replay().run(read(path)))


def story_of(path: Path) -> Story:
    return explain(replayed(path))


def texts(story: Story) -> list[str]:
    return [moment.text for moment in story.moments]
