"""The keeper: QEMU started, found and ended, channels made and dropped; all told by events."""

import asyncio
import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from coloha.adapters.channel import Request
from coloha.adapters.watchdog import Watchdog
from coloha.config import PairConfig
from coloha.core.actions import RunScript, Script
from coloha.core.events import (
    Failure,
    Invited,
    LaunchFailed,
    QemuExited,
    Role,
    Run,
    ScriptFailed,
)
from coloha.errors import LaunchError, StoreError
from coloha.qemu.command_line import mark
from coloha.qemu.process import Process
from coloha.qemu.vm import Vm
from coloha.runtime import keeper as keeper_module
from coloha.runtime.keeper import CONSOLE_BYTES
from coloha.runtime.watchman import Watchman
from tests.adapters.support import PATIENCE_S, Runner, eventually
from tests.adapters.watchdog_support import FakeDriver
from tests.runtime.daemon_support import children, exists
from tests.runtime.keeper_support import (
    PRIMARY,
    both,
    changed,
    program,
    run_qemu,
    side,
)

BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def _other_children() -> None:
    """Children of this process that other tests left, such as multiprocessing's tracker."""
    BEFORE.clear()
    BEFORE.update(children(os.getpid()))


def offspring() -> list[int]:
    """The processes that the test has started and that are not yet reaped."""
    return [pid for pid in children(os.getpid()) if pid not in BEFORE]


def test_a_program_that_is_missing(run: Runner, tmp_path: Path) -> None:
    def missing(pair: PairConfig) -> PairConfig:
        return changed(pair, "vm", qemu="/nowhere/qemu")

    async def main() -> None:
        async with side(tmp_path, "alpha", missing) as alpha:
            for _ in range(2):
                run_ = Run(f"p-{_}", Role.PRIMARY)
                alpha.keeper.launch(run_)
                failed = await alpha.told(LaunchFailed)
                reason = "cannot start /nowhere/qemu: No such file or directory"
                assert failed == LaunchFailed(run_, reason)
            assert alpha.failures == []

    run(main())


def test_a_program_that_ends_at_once_has_its_last_words_told(run: Runner, tmp_path: Path) -> None:
    path = program(tmp_path, "echo 'unknown machine type' >&2; exit 3")

    async def main() -> None:
        async with side(tmp_path, "alpha", lambda p: changed(p, "vm", qemu=path)) as alpha:
            alpha.keeper.launch(PRIMARY)
            failed = await alpha.told(LaunchFailed)
            assert "unknown machine type" in failed.reason
            assert all(isinstance(e, QemuExited) and e.run == PRIMARY for e in alpha.events)
            await eventually(lambda: not offspring(), "it is reaped")

    run(main())


def test_a_program_that_does_not_answer_is_killed_on_demand(run: Runner, tmp_path: Path) -> None:
    path = program(tmp_path, "exec sleep 1000")

    async def main() -> None:
        async with side(tmp_path, "alpha", lambda p: changed(p, "vm", qemu=path)) as alpha:
            alpha.keeper.launch(PRIMARY)
            await eventually(lambda: alpha.keeper.vm and alpha.keeper.vm.pid, "the process")
            assert alpha.keeper.vm is not None
            pid = alpha.keeper.vm.pid
            assert pid in offspring()
            alpha.keeper.kill(PRIMARY)
            exited = await alpha.told(QemuExited)
            assert exited.run == PRIMARY
            await eventually(lambda: not exists(pid or 0), "it is reaped")
            assert alpha.failures == []

    run(main())


def test_a_qemu_is_dead_only_when_it_is_seen_dead(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loser's node says that it stands by on the strength of this (R3)."""
    path = program(tmp_path, "exec sleep 1000")
    kills: list[int] = []
    monkeypatch.setattr(Process, "kill", lambda self: kills.append(self.pid))

    async def main() -> None:
        async with side(tmp_path, "alpha", lambda p: changed(p, "vm", qemu=path)) as alpha:
            alpha.keeper.launch(PRIMARY)
            await eventually(lambda: alpha.keeper.vm and alpha.keeper.vm.pid, "the process")
            (pid,) = offspring()
            alpha.keeper.kill(PRIMARY)
            assert kills == [pid]
            await asyncio.sleep(0.2)
            assert not any(isinstance(event, QemuExited) for event in alpha.events)
            os.kill(pid, signal.SIGKILL)
            exited = await alpha.told(QemuExited)
            assert exited.run == PRIMARY
            assert not exists(pid)

    run(main())


def test_a_process_that_is_slow_to_die_only_delays_the_next_launch(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path, "exec sleep 1000")
    kills: list[int] = []

    async def refuse(self: Vm, deadline_s: float = 0.0) -> None:
        raise LaunchError("QEMU 1.0 is too old")

    monkeypatch.setattr(keeper_module, "DEATH_S", 0.01)
    monkeypatch.setattr(Vm, "connect", refuse)
    monkeypatch.setattr(Process, "kill", lambda self: kills.append(self.pid))

    async def main() -> None:
        async with side(tmp_path, "alpha", lambda p: changed(p, "vm", qemu=path)) as alpha:
            alpha.keeper.launch(PRIMARY)
            assert (await alpha.told(LaunchFailed)).reason == "QEMU 1.0 is too old"
            assert alpha.keeper.vm is not None
            first = alpha.keeper.vm.pid or 0
            again = Run("p-2", Role.PRIMARY)
            alpha.keeper.launch(again)
            await asyncio.sleep(0.1)
            assert offspring() == [first]  # no second QEMU beside the first
            os.kill(first, signal.SIGKILL)
            assert (await alpha.told(LaunchFailed)).run == again
            second = alpha.keeper.vm.pid or 0
            assert first not in offspring()
            os.kill(second, signal.SIGKILL)
            await eventually(lambda: not offspring(), "both are reaped")
            assert kills == [first, second]

    run(main())


def test_a_launch_is_called_off_before_it_began(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            alpha.keeper.launch(PRIMARY)
            alpha.keeper.kill(PRIMARY)
            assert (await alpha.told(QemuExited)).run == PRIMARY
            await asyncio.sleep(0.05)
            assert not alpha.events
            assert not alpha.failures

    run(main())


def test_a_launch_that_waits_for_the_one_before_can_be_called_off(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path, "exec sleep 1000")

    async def main() -> None:
        async with side(tmp_path, "alpha", lambda p: changed(p, "vm", qemu=path)) as alpha:
            alpha.keeper.launch(PRIMARY)
            await eventually(lambda: alpha.keeper.vm and alpha.keeper.vm.pid, "the process")
            (first,) = offspring()
            again = Run("p-2", Role.PRIMARY)
            alpha.keeper.launch(again)
            await asyncio.sleep(0.05)
            alpha.keeper.kill(again)
            assert (await alpha.told(QemuExited)).run == again
            os.kill(first, signal.SIGKILL)
            assert (await alpha.told(QemuExited)).run == PRIMARY
            await eventually(lambda: not offspring(), "it is reaped")
            await asyncio.sleep(0.1)
            assert offspring() == []

    run(main())


def test_a_script_without_qemu_ends_in_silence(run: Runner, tmp_path: Path) -> None:
    """The death that explains it is on its way."""

    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            alpha.keeper.run_script(RunScript(1, Script.CHECK, 1.0))
            await asyncio.sleep(0.05)
            assert not alpha.events
            assert not alpha.failures

    run(main())


async def pretender(folder: Path, name: str) -> asyncio.subprocess.Process:
    """A process that looks like the QEMU of a run; QMP it does not speak."""
    argument = f"{mark(folder / 'alpha' / 'web')}{name}/qmp.sock,server=on,wait=off"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(1000)", argument
    )


def test_a_qemu_that_runs_is_found(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            assert alpha.keeper.find() is None
            process = await pretender(tmp_path, "s-1f")
            try:
                await eventually(lambda: alpha.keeper.find() is not None, "it is found")
                found = Run("s-1f", Role.SECONDARY, 0x1F)
                assert alpha.keeper.find() == found
                assert alpha.keeper.vm is not None
                assert alpha.keeper.vm.pid == process.pid
            finally:
                process.kill()
                await process.wait()
            assert (await alpha.told(QemuExited)).run == found

    run(main())


def test_several_qemus_are_for_an_operator_to_sort_out(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            processes = [await pretender(tmp_path, name) for name in ("p-1", "s-2")]
            try:
                for process in processes:  # until it is what it pretends to be
                    arguments = Path(f"/proc/{process.pid}/cmdline")
                    await eventually(lambda a=arguments: b"qmp.sock" in a.read_bytes(), "exec")  # type: ignore[misc]
                with pytest.raises(StoreError, match="several QEMUs") as caught:
                    alpha.keeper.find()
                assert all(str(process.pid) in str(caught.value) for process in processes)
                assert alpha.keeper.vm is None
                assert all(exists(process.pid) for process in processes)
            finally:
                for process in processes:
                    process.kill()
                    await process.wait()

    run(main())


def test_the_fingerprint_is_what_is_sent(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            request = Request("web", 7, 3, alpha.keeper._config.fingerprint(), (11, 1, 3))
            alpha.keeper.invite(7, 3, PATIENCE_S)
            await beta.told(Invited)
            assert beta.keeper._offers[7].request == request
            assert beta.keeper._offers[7].sender == "alpha"

    run(main())


def test_a_console_that_grows_is_emptied(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "TRIM_S", 0.01)

    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            alpha.keeper.find()
            run_qemu(alpha, PRIMARY, (11, 1, 3))
            assert alpha.keeper.vm is not None
            console = alpha.keeper.vm.files.console
            console.parent.mkdir(parents=True)
            with console.open("a") as guest:
                for size in (CONSOLE_BYTES + 1, 5):
                    guest.write("x" * size)
                    guest.flush()
                    await eventually(lambda: console.stat().st_size <= 5, "it is emptied")
            assert console.read_text() == "xxxxx"

    run(main())


def test_no_output_is_held_without_a_required_watchdog(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        driver = FakeDriver(failing=("open", errno.EBUSY))
        watchdog = Watchdog(Path("/dev/watchdog"), 5, driver)
        watchman = Watchman(watchdog, required=True, wards=tuple, tell=lambda *_: None)
        async with side(tmp_path, "alpha", watchman=watchman) as alpha:
            run_qemu(alpha, PRIMARY, (11, 1, 3))
            alpha.keeper.run_script(RunScript(1, Script.ARM, 1.0))
            failed = await alpha.told(ScriptFailed)
            assert failed.failure is Failure.REFUSED
            assert "the watchdog is not armed" in failed.reason
        await watchman.close()

    run(main())
