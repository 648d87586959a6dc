"""The recorder never holds up the pump, never lies, and says what it lost."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coloha.core.actions import Severity
from coloha.core.context import Settings
from coloha.core.events import Durable, Event, Heard, Started, Timer
from coloha.core.machine import PairMachine
from coloha.core.phases import Phase
from coloha.flight.record import Begins, Entry, files, read
from coloha.flight.replay import Began, Replay, Step, raised
from coloha.runtime import recorder as module
from coloha.runtime.recorder import Flight, Recorder
from tests.adapters.support import PATIENCE_S, state

SETTINGS = Settings("web", "alpha", "beta", first=True, incarnation=5)


class Told(list[tuple[str, str, Severity, str, int]]):
    """What an operator was told."""

    def __call__(self, *said: Any) -> None:
        self.append(said)

    @property
    def kinds(self) -> list[str]:
        return [kind for _, kind, *_ in self]


class Deck:
    """A recorder, and a machine that flies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "web"
        self.told = Told()
        self.recorder = Recorder("alpha", folder, self.told)
        self.now = 1000.0
        self.begin()

    def begin(self) -> Flight:
        self.machine = PairMachine(SETTINGS, self.now)
        self.flight = self.recorder.begin("web", self.machine)
        self.fly(1, Started(Durable(), None))
        return self.flight

    def fly(self, steps: int = 1, event: Event | None = None) -> None:
        for number in range(steps):
            self.now += 0.01
            beat = Heard(state(pulse=number + int(self.now * 1e3)))
            self.flight.step(event or (Timer() if number % 3 else beat), self.now)

    def written(self) -> None:
        """Wait until all that was handed over is written."""
        track = self.recorder._tracks["web"]
        eventually(lambda: not track.waiting)
        goal = track.written + track.unwritten
        self.fly()
        eventually(lambda: track.written + track.unwritten > goal)

    def replayed(self) -> list[Began | Step]:
        """All that is on the disk, decided the same again."""
        replay = Replay()
        items: list[Began | Step] = []
        for place, path in enumerate(files(self.folder)):
            items += replay.run(read(path), follows=place > 0)
        return items


def eventually(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(module, "SPARE_BYTES", 0)


@contextlib.contextmanager
def flying(folder: Path) -> Iterator[Deck]:
    deck = Deck(folder)
    try:
        yield deck
    finally:
        deck.recorder.close()


def steps(items: list[Began | Step]) -> list[Step]:
    return [item for item in items if isinstance(item, Step)]


def heads(items: list[Began | Step]) -> list[Begins]:
    return [item.header.begins for item in items if isinstance(item, Began)]


def test_what_was_flown_is_recorded(tmp_path: Path) -> None:
    with flying(tmp_path) as deck:
        deck.fly(100)
    items = deck.replayed()
    assert heads(items) == [Begins.START]
    assert len(steps(items)) == 101
    assert items[-1].after == deck.machine.snapshot()
    assert deck.recorder.lost == 0
    assert deck.told == []
    (path,) = files(deck.folder)
    assert (path.stat().st_mode & 0o077, deck.folder.stat().st_mode & 0o077) == (0o044, 0)


def test_each_daemon_begins_a_file_each_machine_a_header(tmp_path: Path) -> None:
    for _ in range(2):
        with flying(tmp_path) as deck:
            deck.fly(5)
            deck.begin()
            deck.fly(5)
    assert len(files(deck.folder)) == 2
    items = deck.replayed()
    assert heads(items) == [Begins.START] * 4
    assert len(steps(items)) == 24


def test_full_files_follow_one_another_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 3000)
    monkeypatch.setattr(module, "KEPT_FILES", 3)
    with flying(tmp_path) as deck:
        for _ in range(40):
            deck.fly(40)
            deck.written()
    found = files(deck.folder)
    assert 3 <= len(found) <= 5
    assert int(found[0].name[:8]) > 3
    assert sum(path.stat().st_size for path in found) < 6 * 3000
    items = deck.replayed()  # every file begins with the very state in which the one before ended
    assert set(heads(items)) == {Begins.CONTINUED}
    assert items[-1].after == deck.machine.snapshot()
    assert deck.recorder.lost == 0


def test_a_daemon_that_starts_again_and_again_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 5)
    for _ in range(8):
        with flying(tmp_path) as deck:
            deck.fly(3)
    assert [path.name[:8] for path in files(deck.folder)] == [
        f"{number:08}" for number in range(4, 9)
    ]


def test_a_file_that_a_killed_daemon_left_is_good_as_far_as_it_goes(tmp_path: Path) -> None:
    with flying(tmp_path) as deck:
        deck.fly(50)
        deck.written()
        shutil.copytree(deck.folder, tmp_path / "as-killed")
    (path,) = files(tmp_path / "as-killed")
    replay = Replay()
    items = list(replay.run(read(path)))
    assert replay.torn
    assert len(steps(items)) >= 51


def test_a_machine_that_breaks_is_recorded_with_the_step_that_broke_it(tmp_path: Path) -> None:
    with flying(tmp_path) as deck:
        deck.fly(3)
        deck.machine.state().context.phase = Phase.LEAVE  # the core has no way to there
        with pytest.raises(AssertionError) as caught:
            deck.fly(1, Timer())
    (path,) = files(deck.folder)
    *_, last = read(path)
    assert isinstance(last, Entry)
    assert (last.event, last.outcome) == (Timer(), raised(caught.value))


class Disk:
    """What the recorder writes to, as slow or as full as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.free.set()
        self.full = False
        self._stat = os.fstatvfs
        monkeypatch.setattr(os, "fstatvfs", self._look)

    def _look(self, descriptor: int) -> os.statvfs_result:
        assert self.free.wait(PATIENCE_S)
        if self.full:
            raise OSError(28, "No space left on device")
        return self._stat(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_slow_disk_leaves_a_gap_not_a_wrong_record(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 100)
    with flying(tmp_path) as deck:
        deck.written()
        disk.free.clear()
        deck.fly(500)  # the pump does not wait
        lost = deck.recorder.lost
        assert 300 < lost < 500
        assert deck.told.kinds == ["record-gap"]
        disk.free.set()
        eventually(lambda: not deck.recorder._tracks["web"].waiting)
        deck.now += module.RETRY_S
        deck.fly(10)
        deck.written()
        deck.fly(2)
        assert deck.told.kinds == ["record-gap", "record-goes-on"]
        assert f"{deck.recorder.lost} steps were lost" in deck.told[-1][3]
    items = deck.replayed()
    assert heads(items) == [Begins.START, Begins.GAP]
    (gap,) = [item for item in items if isinstance(item, Began) and item.header.lost]
    assert gap.header.lost == deck.recorder.lost
    assert items[-1].after == deck.machine.snapshot()


def test_a_full_disk_is_told_once_and_the_record_comes_back(tmp_path: Path, disk: Disk) -> None:
    with flying(tmp_path) as deck:
        deck.written()
        disk.full = True
        for _ in range(5):
            deck.fly(20)
            eventually(lambda: deck.recorder._tracks["web"].failed or deck.flight._retry_at)
            deck.fly(20)
            deck.now += module.RETRY_S
        assert deck.told.kinds == ["record-gap"]
        assert "No space left on device" in deck.told[0][3]
        disk.full = False
        deck.now += module.RETRY_S
        deck.fly(5)
        deck.written()
        deck.fly(5)
        assert deck.told.kinds == ["record-gap", "record-goes-on"]
    items = deck.replayed()
    assert heads(items) == [Begins.START, Begins.GAP]
    assert items[-1].after == deck.machine.snapshot()
    assert deck.recorder.lost > 100


def test_nothing_is_written_after_steps_that_could_not_be(tmp_path: Path, disk: Disk) -> None:
    """The disk fails once, as a file is full: what waits behind its next header is lost as well."""
    with flying(tmp_path / "aside") as deck:
        track = module._Track(tmp_path)
        writer = module._Writer(track)
        deck.flight = Flight("alpha", "web", deck.machine, track, deck.told, fresh=True)
        deck.fly(5)
        writer.drain()
        track.full += 1
        deck.fly(3)
        disk.full = True
        writer.drain()
        disk.full = False
        writer.drain()
        assert (track.written, track.unwritten) == (5, 3)
        deck.fly(1)
        deck.now += module.RETRY_S
        deck.fly(3)
        writer.drain()
        writer.close()
    deck.folder = tmp_path
    items = deck.replayed()
    assert heads(items) == [Begins.START, Begins.GAP]
    assert len(steps(items)) == 5 + 2
    assert items[-1].after == deck.machine.snapshot()


def test_a_full_file_is_followed_even_if_the_machine_is_made_anew_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 100)
    with flying(tmp_path / "aside") as deck:
        track = module._Track(tmp_path)
        writer = module._Writer(track)
        for _ in range(3):
            deck.flight = Flight("alpha", "web", deck.machine, track, deck.told, fresh=False)
            deck.now += 1.0
            writer.drain()
        writer.close()
    assert files(tmp_path)[-1].name.startswith("00000003-")


def test_a_disk_that_hangs_costs_no_memory_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 20)
    with flying(tmp_path / "aside") as deck:
        track = module._Track(tmp_path)
        for _ in range(50):
            deck.flight = Flight("alpha", "web", deck.machine, track, deck.told, fresh=False)
            deck.fly(3)
    assert len(track.waiting) <= 22
    assert track.lost > 100


def test_the_last_space_on_the_disk_is_left_to_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 60)
    with flying(tmp_path) as deck:
        eventually(lambda: deck.recorder._tracks["web"].failed)
        deck.fly()
    assert deck.told.kinds == ["record-gap"]
    assert "are free on the disk" in deck.told[0][3]


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "flight").write_text("in the way")
    with flying(tmp_path / "flight") as deck:
        eventually(lambda: deck.recorder._tracks["web"].failed)
        deck.fly(10)
    assert deck.told.kinds == ["record-gap"]


def test_a_bug_of_the_recorder_is_none_of_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*anything: object) -> bytes:
        raise TypeError("a bug")

    with flying(tmp_path) as deck:
        deck.written()
        monkeypatch.setattr(module, "step_line", broken)
        deck.fly(5)
        eventually(lambda: deck.recorder._tracks["web"].failed)
        monkeypatch.setattr(module, "header", broken)
        deck.fly(5)
        deck.now += module.RETRY_S
        deck.fly(5)
        assert deck.told.kinds == ["record-gap"]
    assert "the flight recorder failed" in caplog.text


def test_the_end_of_the_daemon_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.1)
    with flying(tmp_path) as deck:
        deck.written()
        disk.free.clear()
        deck.fly(10)
        deck.recorder.close()
        assert deck.recorder._thread.is_alive()
        disk.free.set()
        eventually(lambda: not deck.recorder._thread.is_alive())


def test_the_pump_pays_little(tmp_path: Path) -> None:
    """What the recorder adds to a step, next to the step itself, in one run."""
    with flying(tmp_path) as deck:
        bare, beat = PairMachine(SETTINGS, deck.now), Heard(state())
        bare.step(Started(Durable(), None), deck.now)
        shares = []
        for _ in range(40):
            began = time.thread_time()
            for number in range(50):
                bare.step(beat, deck.now + number * 0.01)
            between = time.thread_time()
            for number in range(50):
                deck.flight.step(beat, deck.now + number * 0.01)
            shares.append((time.thread_time() - between) / (between - began) - 1)
            deck.now += 0.5
            deck.written()
    assert sorted(shares)[len(shares) // 2] < 0.5, shares
