"""What the daemon tells the guard of a run."""

import fcntl
import time
from pathlib import Path

import pytest

from coloha.core.actions import Script
from coloha.qemu.command_line import Files
from coloha.qemu.process import ChildLauncher
from coloha.runtime.guards import Guard
from tests.adapters.support import Runner
from tests.runtime.keeper_support import side


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def guard(files: Files) -> Guard:
    return Guard(files, 1, 600.0, ChildLauncher())


def noted(files: Files) -> float:
    return files.switched.stat().st_mtime


def test_the_time_begins_when_output_is_first_held(guard: Guard, files: Files) -> None:
    before = time.monotonic()
    guard.mark()
    first = noted(files)
    assert before - 1 <= first <= time.monotonic() + 1
    guard.mark()  # a daemon that starts anew finds the buffers as they were
    assert noted(files) == first
    assert files.held.exists()


def test_it_goes_on_with_each_release(guard: Guard, files: Files) -> None:
    guard.mark()
    guard.switched(1234.5)
    assert noted(files) == pytest.approx(1234.5)
    guard.mark()
    assert noted(files) == pytest.approx(1234.5)


def test_what_holds_nothing_has_no_time(guard: Guard, files: Files) -> None:
    guard.mark()
    guard.release()
    assert not files.held.exists()
    assert not files.switched.exists()
    guard.release()


def test_looking_after_it_is_no_switch(guard: Guard, files: Files) -> None:
    guard.mark()
    guard.switched(1234.5)
    guard._launcher = None  # type: ignore[assignment]  # it would start one
    files.guard_lock.touch()
    with files.guard_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        guard.tend(time.monotonic())
    assert noted(files) == pytest.approx(1234.5)


def test_a_release_counts_from_the_epoch_before(
    run: Runner, tmp_path: Path, guard: Guard, files: Files
) -> None:
    """It switches B; A was switched when that epoch began, and may be close to its end."""

    async def main() -> None:
        async with side(tmp_path / "node", "alpha") as alpha:
            alpha.keeper._guard = guard
            guard.mark()
            alpha.keeper._see_guarded(Script.EPOCH, None, 100.0)
            alpha.keeper._see_guarded(Script.RELEASE, None, 700.0)
            assert noted(files) == pytest.approx(100.0)
            alpha.keeper._see_guarded(Script.EPOCH, None, 800.0)
            assert noted(files) == pytest.approx(100.0)
            alpha.keeper._guard = None

    run(main())
