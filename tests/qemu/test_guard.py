"""A guard kills what nobody looks after, and nothing else."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloha.qemu import guard as guarding
from coloha.qemu.guard import GUARDED, SWITCHED, UNSWITCHED_S, guard, is_guarded, main
from coloha.qemu.scripts import HOLD_US

LOOK_S = 0.01
AFTER_S = 1.0
LIMIT_S = 2.0


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with the run's folder on its command line."""
    argv = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "qmp.sock")]
    with subprocess.Popen(argv) as process:
        yield process
        process.kill()


class Watch(threading.Thread):
    """A guard in a thread."""

    def __init__(self, process: "subprocess.Popen[bytes]", held: Path) -> None:
        super().__init__(daemon=True)
        self.killed: bool | None = None
        self._held, self._pidfd = held, os.pidfd_open(process.pid)
        self.start()

    def run(self) -> None:
        self.killed = guard(self._held, self._pidfd, AFTER_S, LOOK_S, LIMIT_S)


class Pump(threading.Thread):
    """A daemon that looks after its QEMU; with `epochs` it also switches the buffers."""

    def __init__(self, folder: Path, *, epochs: bool) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._held, self._switched, self._epochs = folder / "held", folder / SWITCHED, epochs
        self.switch()
        self._held.touch()
        self.start()

    def switch(self, ago_s: float = 0.0) -> None:
        """Note that the buffers were switched."""
        at = time.monotonic() - ago_s
        if not self._switched.exists():
            self._switched.touch()
        os.utime(self._switched, (at, at))

    def run(self) -> None:
        while not self.over.wait(LOOK_S):
            os.utime(self._held)
            if self._epochs:
                self.switch()


def test_what_nobody_looks_after_is_killed(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    watch = Watch(qemu, held)
    assert qemu.wait(10) == -9
    watch.join(10)
    assert watch.killed is True


def test_what_is_looked_after_lives(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    watch = Watch(qemu, tmp_path / "held")
    pump = Pump(tmp_path, epochs=True)
    time.sleep(2 * AFTER_S)
    assert qemu.poll() is None
    pump.over.set()
    # It is taken over, and left again: the time begins anew.
    assert qemu.wait(10) == -9
    watch.join(10)


def test_qemus_own_limit_is_well_above() -> None:
    assert UNSWITCHED_S + 300 < HOLD_US / 1e6


def test_what_nobody_switches_is_killed_although_somebody_is_there(
    qemu: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    pump = Pump(tmp_path, epochs=False)
    began = time.monotonic()
    watch = Watch(qemu, tmp_path / "held")
    assert qemu.wait(10) == -9
    assert time.monotonic() - began > 0.9 * LIMIT_S
    watch.join(10)
    assert watch.killed is True
    pump.over.set()


def test_what_is_switched_lives(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    pump = Pump(tmp_path, epochs=True)
    watch = Watch(qemu, tmp_path / "held")
    time.sleep(2 * LIMIT_S)
    assert qemu.poll() is None
    pump.over.set()
    qemu.kill()
    watch.join(10)
    assert watch.killed is False


def test_a_switch_while_the_guard_looks_is_not_of_the_future(
    qemu: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump = Pump(tmp_path, epochs=False)

    def switch_and_look(path: Path) -> int | None:
        if path.name == SWITCHED:
            pump.switch()
        return look(path)

    look = guarding._stamp
    monkeypatch.setattr(guarding, "_stamp", switch_and_look)
    watch = Watch(qemu, tmp_path / "held")
    time.sleep(2 * LIMIT_S)
    assert qemu.poll() is None
    pump.over.set()
    qemu.kill()
    watch.join(10)
    assert watch.killed is False


def test_a_guard_that_comes_late_knows_how_late_it_is(
    qemu: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    """The guard before it died: the time does not begin anew."""
    pump = Pump(tmp_path, epochs=False)
    pump.switch(ago_s=LIMIT_S)
    began = time.monotonic()
    Watch(qemu, tmp_path / "held").join(10)
    assert qemu.wait(10) == -9
    assert time.monotonic() - began < 0.9 * LIMIT_S
    pump.over.set()


@pytest.mark.parametrize("noted", [None, time.time()], ids=["none", "the future"])
def test_a_time_that_cannot_be_is_none(
    qemu: "subprocess.Popen[bytes]", tmp_path: Path, noted: float | None
) -> None:
    """An earlier version of the daemon noted none: it counts from when output is held."""
    pump = Pump(tmp_path, epochs=False)
    switched = tmp_path / SWITCHED
    if noted is None:
        switched.unlink()
    else:
        os.utime(switched, (noted, noted))
    began = time.monotonic()
    Watch(qemu, tmp_path / "held").join(10)
    assert qemu.wait(10) == -9
    assert time.monotonic() - began > 0.9 * LIMIT_S
    pump.over.set()


def test_what_holds_nothing_lives(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    watch = Watch(qemu, held)
    held.unlink()
    time.sleep(2 * AFTER_S)
    assert qemu.poll() is None
    qemu.kill()
    watch.join(10)
    assert watch.killed is False


def test_there_is_one_guard_for_a_run(tmp_path: Path) -> None:
    lock = tmp_path / "guard.lock"
    assert not is_guarded(lock)
    with lock.open("w") as mine:
        assert not is_guarded(lock)
        fcntl.flock(mine, fcntl.LOCK_EX)
        assert is_guarded(lock)
        assert main(str(tmp_path), str(os.getpid()), "0", "60") == GUARDED
    assert not is_guarded(lock)


def test_one_who_only_looks_does_not_keep_a_guard_away(tmp_path: Path) -> None:
    with (tmp_path / "guard.lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with subprocess.Popen(["true"]) as gone:
            gone.wait()
        assert main(str(tmp_path), str(gone.pid), "1", "0") == 0


def test_another_process_with_the_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "held").touch()
        assert main(str(tmp_path), str(stranger.pid), "1", "0") == 0
        assert stranger.poll() is None
        stranger.kill()


def test_a_process_that_is_gone_needs_no_guard(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert main(str(tmp_path), str(gone.pid), "1", "0") == 0
