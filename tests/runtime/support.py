"""A pair's runtime on a stage: real store, events and queues; machine, QEMU and witness as told."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coloha.adapters.fence import Fencer, Report
from coloha.adapters.heartbeat import Heartbeats
from coloha.adapters.witness import Witness
from coloha.config import Config, load
from coloha.core.actions import Action
from coloha.core.context import Settings
from coloha.core.events import Durable, Event, PeerState, Run, Started
from coloha.core.machine import PairMachine, State
from coloha.core.record import Record
from coloha.core.snapshot import Snapshot
from coloha.durable import replace_file
from coloha.runtime import pair as pair_module
from coloha.runtime import store as store_module
from coloha.runtime.keeper import Keeper
from coloha.runtime.metrics import Metrics
from coloha.runtime.occurrences import Occurrences
from coloha.runtime.pair import PairRuntime, Services
from coloha.runtime.recorder import Recorder
from coloha.runtime.store import Store
from coloha.runtime.watchman import Watchman
from tests.adapters.support import PATIENCE_S, eventually, state
from tests.config.support import write

FAR_S = 3600.0
Reply = Callable[[Event], list[Action]]


class FakeMachine:
    """Returns the actions that the test wants, and keeps what it was told."""

    def __init__(self, stage: "Stage", settings: Settings, now: float) -> None:
        self.settings = settings
        self.events: list[Event] = []
        self._stage = stage
        self._deadline = now
        machine = PairMachine(settings, now)
        self._snapshot, self._state = machine.snapshot(), machine.state()

    def step(self, event: Event, now: float) -> list[Action]:
        self._stage.clock.append((now, time.monotonic()))
        self.events.append(event)
        self._deadline = now + self._stage.deadline_s
        return self._stage.reply(event)

    def deadline(self) -> float:
        return self._deadline

    def state(self) -> State:
        return self._state

    def snapshot(self) -> Snapshot:
        wire = state(pulse=len(self.events))
        return dataclasses.replace(self._snapshot, committed=len(self.events), wire=wire)


class FakeKeeper:
    """Keeps what it was asked to do."""

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.vm: SimpleNamespace | None = None
        self.storage = SimpleNamespace(torn=None)
        self.disk_bytes_left = 0
        self.found: Run | None = None
        self.trouble: Exception | None = None

    def find(self) -> Run | None:
        if self.trouble is not None:
            raise self.trouble
        return self.found

    def tend(self, now: float) -> None:
        """Once a step: not worth to be kept."""

    async def let_go(self) -> None:
        self.done.append("let go")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.done.append(name)


class FakeWitness:
    """Answers when the test says so, what the test says."""

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.answers: asyncio.Queue[Record | Exception | None] = asyncio.Queue()

    async def read(self, pair: str) -> Record | None:
        self.done.append("read")
        return await self._answer()

    async def swap(self, pair: str, expected: Record | None, new: Record, by: str) -> Record | None:
        self.done.append("swap")
        return await self._answer()

    async def _answer(self) -> Record | None:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def probe(self, pair: str) -> None:
        pass

    async def close(self) -> None:
        pass


class FakeFencer:
    """Reports when the test says so, what the test says."""

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.reports: asyncio.Queue[Report] = asyncio.Queue()

    async def fence(self) -> Report:
        self.done.append("fence")
        return await self.reports.get()


class FakeHeartbeats:
    """Keeps what a heartbeat would have said, at the moment it would have been sent."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage

    def beat(self, name: str) -> None:
        self._stage.done.append("beat")
        asyncio.get_running_loop().call_soon(self._stage.say)


class Stage:
    """All around one `PairRuntime`."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.done: list[str] = []
        """What was carried out, in order."""
        self.said: list[PeerState | None] = []
        """What heartbeats said."""
        self.reply: Reply = lambda event: []
        self.deadline_s = FAR_S
        self.machines: list[FakeMachine] = []
        self.clock: list[tuple[float, float]] = []
        """For each step: the time the machine was told, and the time it was."""
        self.store = Store(folder / "state")
        self.occurrences = Occurrences("alpha", folder / "events.jsonl")
        self.recorder = Recorder("alpha", folder / "flight", self.occurrences.add)
        self.keeper = FakeKeeper(self.done)
        self.witness = FakeWitness(self.done)
        self.fencer = FakeFencer(self.done)
        self.metrics = Metrics()
        heartbeats = cast("Heartbeats", FakeHeartbeats(self))
        services = Services(
            config.host, b"k" * 32, self.store, heartbeats, self.occurrences, self.metrics,
            self.recorder, cast("Mapping[str, Fencer]", {"beta": self.fencer}),
            Watchman(None, required=False, wards=tuple, tell=lambda *_: None),
        )  # fmt: skip
        self.pair = PairRuntime(config.pairs[0], cast("Witness", self.witness), services)
        self.pair.keeper = cast("Keeper", self.keeper)
        self.task: asyncio.Task[None] | None = None

    def make(self, settings: Settings, now: float) -> FakeMachine:
        self.machines.append(FakeMachine(self, settings, now))
        return self.machines[-1]

    def say(self) -> None:
        self.said.append(self.pair.wire)

    @property
    def machine(self) -> FakeMachine:
        return self.machines[-1]

    @property
    def events(self) -> list[Event]:
        """What the present machine was told."""
        return self.machine.events

    def told(self) -> list[str]:
        return [occurrence.text for occurrence in self.occurrences.since(0)]

    def start(self) -> None:
        self.task = asyncio.create_task(self.pair.run())

    async def begun(self, times: int = 1) -> None:
        """Wait until the pump has started so often, and the machine has had its first event."""
        await eventually(
            lambda: len(self.machines) == times and self.events, f"the pump's start {times}"
        )
        assert isinstance(self.events[0], Started)

    async def take(self, event: Event, actions: list[Action]) -> None:
        """Give the machine an event that it answers so; return once it has."""
        self.reply = lambda given: actions if given == event else []
        self.pair.post(event)
        await eventually(lambda: event in self.events, f"{event} is taken")

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        self.store.close()
        self.recorder.close()
        self.occurrences.close()


def configuration(folder: Path) -> Config:
    return load(write(folder, {}))


@contextlib.asynccontextmanager
async def staged(
    monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: Any
) -> AsyncIterator[Stage]:
    """A stage whose pump runs; `changes` are made before it starts."""
    stage = Stage(configuration(folder), folder)
    monkeypatch.setattr(pair_module, "PairMachine", stage.make)
    monkeypatch.setattr(pair_module, "START_OVER_S", 0.05)
    for name, value in changes.items():
        setattr(stage, name, value)
    stage.start()
    try:
        yield stage
    finally:
        await stage.end()


def saved(folder: Path) -> Durable:
    """What is on the disk."""
    store = Store(folder / "state")
    try:
        return store.load("web")
    finally:
        store.close()


class SlowDisk:
    """The disk of the store: a write takes as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.writing = threading.Event()
        monkeypatch.setattr(store_module, "replace_file", self._write)

    def _write(self, path: Path, data: bytes) -> None:
        self.writing.set()
        assert self.go_on.wait(PATIENCE_S)
        replace_file(path, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)
