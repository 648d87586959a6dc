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

from coloha.qemu.guard import GUARDED, guard, is_guarded, main

LOOK_S = 0.01
AFTER_S = 0.3


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with the run's folder on its command line."""
    argv = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "qmp.sock")]
    with subprocess.Popen(argv) as process:
        yield process
        process.kill()


def watched(process: "subprocess.Popen[bytes]", held: Path) -> "Watch":
    return Watch(process, held)


class Watch(threading.Thread):
    """A guard in a thread."""

    def __init__(self, process: "subprocess.Popen[bytes]", held: Path) -> None:
        super().__init__(daemon=True)
        self.killed: bool | None = None
        self._held, self._pidfd = held, os.pidfd_open(process.pid)
        self.start()

    def run(self) -> None:
        self.killed = guard(self._held, self._pidfd, AFTER_S, LOOK_S)


def test_what_nobody_looks_after_is_killed(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    watch = watched(qemu, held)
    assert qemu.wait(10) == -9
    watch.join(10)
    assert watch.killed is True


def test_what_is_looked_after_lives(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    held = tmp_path / "held"
    watch = watched(qemu, held)
    end = time.monotonic() + 5 * AFTER_S
    while time.monotonic() < end:
        held.touch()
        os.utime(held)
        time.sleep(LOOK_S)
    assert qemu.poll() is None
    # It is taken over, and left again: the time begins anew.
    assert qemu.wait(10) == -9
    watch.join(10)


def test_what_holds_nothing_lives(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    watch = watched(qemu, held)
    held.unlink()
    time.sleep(5 * AFTER_S)
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
        assert main(str(tmp_path), str(os.getpid()), "60") == GUARDED
    assert not is_guarded(lock)


def test_one_who_only_looks_does_not_keep_a_guard_away(tmp_path: Path) -> None:
    with (tmp_path / "guard.lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with subprocess.Popen(["true"]) as gone:
            gone.wait()
        assert main(str(tmp_path), str(gone.pid), "0") == 0


def test_another_process_with_the_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "held").touch()
        assert main(str(tmp_path), str(stranger.pid), "0") == 0
        assert stranger.poll() is None
        stranger.kill()


def test_a_process_that_is_gone_needs_no_guard(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert main(str(tmp_path), str(gone.pid), "0") == 0
