"""When a process counts as gone: as soon as it can never run again, and not before."""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from coloha.qemu.process import Process
from tests.qemu.children import BIG, SLEEP, THREADS, patiently, started, state_of
from tests.qemu.loops import Loop, eventually


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the kernel's pidfds of threads away, or leave them."""
    if request.param == "looking":
        real = os.pidfd_open

        def old_kernel(pid: int, flags: int = 0) -> int:
            if flags:
                raise OSError(22, "Invalid argument")
            return real(pid)

        monkeypatch.setattr(os, "pidfd_open", old_kernel)
    return str(request.param)


BOTH_WAYS = pytest.mark.parametrize("way", ["threads", "looking"], indirect=True)


class Watch:
    """What is said of a process's end, and the state it was in then."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: list[tuple[str, str]] = []
        process.watch(lambda: self._say("gone"), self._say)
        process.watch_threads()

    def _say(self, what: str) -> None:
        self.said.append((what, state_of(self.process.pid)))

    async def end(self) -> None:
        await eventually(lambda: len(self.said) == 2, "the death")


def on(program: str, folder: Path, run: Loop, main: Callable[[Process], object]) -> None:
    """Run `main` with a child that has reached its place."""
    with started(program, folder) as process:
        patiently((folder / "ready").exists, "its start")

        async def whole() -> None:
            result = main(process)
            assert asyncio.iscoroutine(result)
            await result

        run(whole())


@BOTH_WAYS
def test_a_big_process_is_gone_long_before_it_is_dead(run: Loop, tmp_path: Path, way: str) -> None:
    """The kernel frees its memory in between; a test that was itself held up may miss that."""
    early: list[bool] = []

    async def main(process: Process) -> None:
        watch = Watch(process)
        process.kill()
        await eventually(lambda: watch.said, "the first word")
        early.append(len(watch.said) == 1)
        await watch.end()
        assert [what for what, _ in watch.said] == ["gone", "killed by SIGKILL"]

    for attempt in range(8):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        on(BIG.replace("{megabytes}", "1024"), folder, run, main)
        if early[-1]:
            break
    assert early[-1]


@BOTH_WAYS
def test_gone_is_said_once(run: Loop, tmp_path: Path, way: str) -> None:
    async def main(process: Process) -> None:
        watch = Watch(process)
        process.kill()
        await watch.end()
        await asyncio.sleep(0.1)
        assert [what for what, _ in watch.said] == ["gone", "killed by SIGKILL"]

    on(THREADS, tmp_path, run, main)


def fewer(process: Process, count: int) -> bool:
    return len(process._threads) < count


@BOTH_WAYS
def test_the_end_of_threads_is_not_the_end(run: Loop, tmp_path: Path, way: str) -> None:
    async def main(process: Process) -> None:
        watch = Watch(process)
        assert len(process._threads) == (4 if way == "threads" else 0)
        for number in range(3):
            (tmp_path / f"end-{number}").touch()
            await eventually((tmp_path / f"ended-{number}").exists, "the thread's end")
            await eventually(partial(fewer, process, 4 - number), "word of it")
            await asyncio.sleep(0.05)
            assert watch.said == []
        process.kill()
        await watch.end()

    on(THREADS, tmp_path, run, main)


@BOTH_WAYS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT, signal.SIGKILL])
def test_any_deadly_signal(run: Loop, tmp_path: Path, way: str, number: signal.Signals) -> None:
    async def main(process: Process) -> None:
        watch = Watch(process)
        os.kill(process.pid, number)
        await watch.end()
        assert [what for what, _ in watch.said] == ["gone", f"killed by {number.name}"]

    on(THREADS, tmp_path, run, main)


@BOTH_WAYS
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGCONT, signal.SIGURG])
def test_other_signals_are_no_end(
    run: Loop, tmp_path: Path, way: str, number: signal.Signals
) -> None:
    async def main(process: Process) -> None:
        watch = Watch(process)
        os.kill(process.pid, number)
        await asyncio.sleep(0.1)
        assert watch.said == []
        process.kill()
        await watch.end()

    on(THREADS, tmp_path, run, main)


@BOTH_WAYS
def test_a_process_that_nobody_collects(run: Loop, tmp_path: Path, way: str) -> None:
    """A zombie is dead: a daemon that is not its parent cannot wait for more."""

    async def main(process: Process) -> None:
        stranger = Process(
            process.pid, os.pidfd_open(process.pid), whose="somebody else started it"
        )
        watch = Watch(stranger)
        process.kill()
        await watch.end()
        assert watch.said[0][0] == "gone"
        assert watch.said[1][1] == "Z"

    on(THREADS, tmp_path, run, main)


def test_it_is_gone_before_its_threads_could_be_watched(run: Loop, tmp_path: Path) -> None:
    async def main(process: Process) -> None:
        process.kill()
        watch = Watch(process)
        await watch.end()

    with started(SLEEP, tmp_path) as process:

        async def whole() -> None:
            await main(process)

        run(whole())
