"""The world of tests/core/world.py with a flight recorder on each node."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from coloha.core.actions import Action
from coloha.core.events import Event
from coloha.core.machine import PairMachine, State
from coloha.flight.codec import codec
from coloha.flight.explain import Story, explain
from coloha.flight.record import Begins, header, header_line, read, step_line
from coloha.flight.replay import Began, Replay, Step
from tests.core.model import Node
from tests.core.test_world import QUICK, happen, heal
from tests.core.world import World

STATE = codec(State)
BEGAN = datetime(2026, 11, 1, 3, 12, tzinfo=UTC)
"""What the clocks on the wall say as the world begins."""


class RecordedWorld(World):
    """Keeps the lines of each node's record."""

    def __init__(self, seed: int, **settings: Any) -> None:
        self.lines: dict[str, list[bytes]] = {"alpha": [], "beta": []}
        self._lives: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._actions: list[Action] = []
        super().__init__(seed, **settings)

    def feed(self, node: Node, event: Event) -> None:
        assert node.machine is not None
        if self._lives.get(node.name) != node.life:
            self._lives[node.name] = node.life
            self.head(node, Begins.START)
        self._actions = []
        now = self.now
        super().feed(node, event)
        self._numbers[node.name] += 1
        self.lines[node.name].append(step_line(self._numbers[node.name], now, event, self._actions))

    def act(self, node: Node, action: Action) -> None:
        self._actions.append(action)
        super().act(node, action)

    def head(self, node: Node, begins: Begins, lost: int = 0) -> None:
        """Begin a segment: with the machine's state as it is now."""
        assert node.machine is not None
        self._numbers[node.name] = 0
        plain = header(node.name, "vm", self.now, begins, lost, node.machine.state())
        plain = {**plain, "time": (BEGAN + timedelta(seconds=self.now)).isoformat()}
        self.lines[node.name].append(header_line(plain))

    def save(self, name: str, path: Path) -> Path:
        path.write_bytes(b"".join(self.lines[name]))
        return path


class TwinnedWorld(World):
    """From a random step on, a copy of each machine, made through JSON, takes every step too."""

    def __init__(self, seed: int, **settings: Any) -> None:
        self.twins: dict[str, tuple[int, PairMachine]] = {}
        self.compared = 0
        self._choose = random.Random(seed)
        self._actions: list[Action] = []
        super().__init__(seed, **settings)

    def feed(self, node: Node, event: Event) -> None:
        assert node.machine is not None
        life, twin = self.twins.get(node.name, (0, None))
        if life != node.life:
            twin = None
        if twin is None and self._choose.random() < 0.01:
            twin = copied(node.machine)
            self.twins[node.name] = node.life, twin
        self._actions = []
        now = self.now
        super().feed(node, event)
        if twin is not None and node.machine is not None:
            assert twin.step(event, now) == self._actions
            assert twin.snapshot() == node.machine.snapshot()
            assert twin.deadline() == node.machine.deadline()
            self.compared += 1

    def act(self, node: Node, action: Action) -> None:
        self._actions.append(action)
        super().act(node, action)


def copied(machine: PairMachine) -> PairMachine:
    """A machine made from the JSON of another's state."""
    line = header_line({"state": STATE.encode(machine.state())})
    return PairMachine.resume(STATE.decode(json.loads(line)["state"]))


W = TypeVar("W", bound=World)


def live(kind: Callable[..., W], seed: int) -> W:
    """Live through a history that the seed decides, as tests/core/test_world.py does, and heal."""
    choose = random.Random(seed)
    world = kind(seed, **QUICK)
    world.loss = choose.choice([0.0, 0.0, 0.1, 0.3])
    world.ack_loss = choose.choice([0.0, 0.02])
    world.witness_doubt = choose.choice([0.0, 0.0, 0.3])
    for _ in range(choose.randint(1, 10)):
        world.run(choose.expovariate(1 / choose.choice([0.05, 0.5, 2.0])))
        happen(world, choose)
    heal(world)
    return world


def replayed(path: Path) -> list[Began | Step]:
    """Repeat a record, which must decide the same."""
    return list(Replay().run(read(path)))


def story_of(path: Path) -> Story:
    return explain(replayed(path))


def texts(story: Story) -> list[str]:
    return [moment.text for moment in story.moments]
