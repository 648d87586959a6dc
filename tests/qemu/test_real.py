"""Real QEMU: a pair through its whole life."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from coloha.core.actions import Script
from coloha.core.events import Adopted, ColoMode, Committed, Failure
from coloha.errors import LaunchError
from coloha.qemu import command_line
from coloha.qemu.process import ChildLauncher
from coloha.qemu.steps import ScriptError
from tests.qemu import specs
from tests.qemu.loops import PATIENCE_S, Loop, eventually
from tests.qemu.pairs import Node, again, epochs, pair
from tests.qemu.specs import PRIMARY, SECONDARY

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("nics", [0, 1, 3])
def test_a_pair_from_first_to_last(run: Loop, folder: Path, nics: int) -> None:
    async def main() -> None:
        async with pair(folder, nics) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            await epochs(primary, 20)
            await eventually(lambda: secondary.vm.loaded == 21, "the last checkpoint to be loaded")
            await primary.do(Script.LEAVE_COLO)
            assert await primary.status() == "running"
            assert await primary.filters() == set()
            await primary.do(Script.CHECK)
            assert {type(event).__name__ for event in primary.events} <= {"ColoExited"}

    run(main())


def test_only_what_is_committed_is_said(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder, 2) as both:
            primary, secondary = await both.start_both()
            await primary.speak(3)
            assert await both.wire.frames(6) == 6, "unprotected, it speaks freely"
            await both.protect(primary, secondary)
            await both.wire.frames()
            await primary.speak(3)
            assert await both.wire.frames() == 0, "held"
            assert isinstance(await primary.do(Script.EPOCH), Committed)
            await primary.speak(2)
            assert await both.wire.frames() == 0, "committed, but not released"
            await primary.do(Script.RELEASE)
            assert await both.wire.frames(6) == 6, "released: what was said before the epoch alone"
            await epochs(primary, 1)
            assert await both.wire.frames(4) == 4
            await primary.speak(1)
            await primary.do(Script.LEAVE_COLO)
            assert await both.wire.frames(2) == 2, "nothing is forgotten"
            await primary.speak(1)
            assert await both.wire.frames(2) == 2

    run(main())


def test_a_nic_that_is_open_holds_nothing(run: Loop, folder: Path) -> None:
    """On the primary; the secondary's is swallowed like any other, and opened at its promotion."""
    nics = (specs.nic(0), specs.nic(1, output="open"))

    async def main() -> None:
        async with pair(folder, nics=nics) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            await both.wire.frames()
            await primary.speak(3)
            assert await both.wire.frames(3) == 3, "those of the open one alone"
            await secondary.speak(2)
            assert await both.wire.frames() == 0, "one voice"
            await epochs(primary, 1)
            assert await both.wire.frames(3) == 3
            primary.vm.kill()
            await eventually(primary.vm.dead.is_set, "the death of the primary")
            await secondary.do(Script.PROMOTE)
            await both.wire.frames(2)
            await secondary.speak(1)
            assert await both.wire.frames(2) >= 2, "both are heard"

    run(main())


def test_buffers_meet_the_output_in_the_right_order(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            text = await primary.command(
                "human-monitor-command", **{"command-line": "info network"}
            )
            assert isinstance(text, str)
            assert 0 < text.index("hold-b-net0") < text.index("hold-a-net0")

    run(main())


def test_the_secondary_takes_over_and_is_protected_again(run: Loop, folder: Path) -> None:
    """A to B to C: each takes over from the one before."""

    async def main() -> None:
        async with pair(folder) as both:
            elder, heir = await both.start_both()
            for number in (0x30, 0x31):
                await both.protect(elder, heir)
                await epochs(elder, 3)
                await heir.speak(2)
                assert heir.run.id not in await both.wire.heard(), "one voice"
                elder.vm.kill()
                await eventually(elder.vm.dead.is_set, "the death of the primary")
                await heir.do(Script.PROMOTE)
                assert await heir.status() == "running"
                assert await heir.filters() == set()
                assert set(await both.wire.heard(1)) == {heir.run.id}, "the network is told"
                await heir.do(Script.PROMOTE)  # again: it changes nothing
                assert await heir.status() == "running"
                elder, heir = heir, await both.start(again(number))

    run(main())


def test_leaving_twice(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await primary.do(Script.LEAVE_COLO)
            await both.protect(primary, secondary)
            for _ in range(2):
                await primary.do(Script.LEAVE_COLO)
                assert await primary.status() == "running"
            await primary.do(Script.ARM)
            await primary.command("stop")
            await primary.do(Script.LEAVE_COLO)
            assert await primary.status() == "running"
            assert await primary.filters() == set()

    run(main())


def test_a_qemu_is_found_and_adopted(run: Loop, folder: Path) -> None:
    """The daemon restarts: another one finds both, holds the output, goes on."""

    async def adopted(node: Node, mode: ColoMode) -> None:
        await node.vm.close()
        node.vm = node.watcher()
        prefix = command_line.mark(node.directory)
        for process, argv in ChildLauncher().find(prefix):
            if command_line.run_of(argv, node.directory) == node.run:
                node.vm.hold(process)
            else:
                process.close()
        assert node.vm.pid == node.pid
        await node.vm.connect(PATIENCE_S)
        assert await node.do(Script.ADOPT) == Adopted(mode)

    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await adopted(primary, ColoMode.NONE)
            await both.enter(primary, secondary)
            await adopted(primary, ColoMode.PRIMARY)
            await primary.do(Script.ARM)
            await epochs(primary, 2)
            await adopted(secondary, ColoMode.SECONDARY)
            await adopted(primary, ColoMode.PRIMARY)
            await epochs(primary, 2)
            await adopted(secondary, ColoMode.SECONDARY)
            primary.vm.kill()
            await eventually(primary.vm.dead.is_set, "the death")
            await secondary.do(Script.PROMOTE)
            await adopted(secondary, ColoMode.NONE)

    run(main())


@pytest.mark.parametrize("value", ["b off", "a off"])
def test_adopting_holds_what_a_dying_daemon_let_go(run: Loop, folder: Path, value: str) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            letter, _, state = value.partition(" ")
            path = f"/objects/hold-{letter}-net0"
            await primary.command("qom-set", path=path, property="status", value=state)
            await primary.do(Script.ADOPT)
            await both.wire.frames()
            await primary.speak(2)
            assert await both.wire.frames() == 0
            await epochs(primary, 1)
            assert await both.wire.frames(2) == 2

    run(main())


def test_a_stopped_qemu_is_silent_and_answers_later(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            os.kill(primary.pid, signal.SIGSTOP)
            for script in (Script.CHECK, Script.EPOCH):
                with pytest.raises(ScriptError) as caught:
                    await primary.do(script, 0.3)
                assert caught.value.failure is Failure.SILENT
            os.kill(primary.pid, signal.SIGCONT)
            await primary.do(Script.CHECK)
            # What it had not read is executed now: that checkpoint may spoil some epochs, not all.
            results: list[object] = []
            while not (results and isinstance(results[-1], Committed)):
                assert len(results) < 20, results
                results.append(await primary.do(Script.EPOCH))

    run(main())


def test_a_checkpoint_that_nobody_waited_for(run: Loop, folder: Path) -> None:
    """The daemon stops the guest and dies: QEMU's own timer makes a checkpoint, the guest runs."""

    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            await primary.command("stop")
            assert await primary.status() == "paused"
            before = secondary.vm.loaded
            async with asyncio.timeout(PATIENCE_S):
                while await primary.status() != "running":
                    await asyncio.sleep(0.05)
            await eventually(lambda: secondary.vm.loaded > before, "the checkpoint")
            await epochs(primary, 2)

    run(main())


# What it opens


def test_nothing_listens_on_a_network_port(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder, 2) as both:
            primary, secondary = await both.start_both()
            for node in (primary, secondary):
                assert listening(node.pid) == set()
            await both.protect(primary, secondary)
            for node in (primary, secondary):
                assert listening(node.pid) == set()
                assert len(sockets(node.pid, "tcp")) == 1, "the channel"

    run(main())


def sockets(pid: int, kind: str, state: str = "01") -> set[str]:
    """The inodes of a process's TCP sockets in a state."""
    rows = [line.split() for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == state}
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return {inode for inode in inodes if f"socket:[{inode}]" in links}


def listening(pid: int) -> set[str]:
    return sockets(pid, "tcp", "0A") | sockets(pid, "tcp6", "0A")


def test_the_channel_is_qemus_alone(run: Loop, folder: Path) -> None:
    """Else the death of one QEMU would not end the connection for the other."""

    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            assert sockets(os.getpid(), "tcp") == set()
            primary.vm.kill()
            await eventually(lambda: secondary.events, "COLO_EXIT")

    run(main())


def test_a_folder_with_a_comma(run: Loop, folder: Path) -> None:
    odd = folder / "a,server=off,b c"
    odd.mkdir()

    async def main() -> None:
        async with pair(odd) as both:
            primary = await both.start(PRIMARY)
            assert primary.files.qmp.exists()
            assert primary.files.console.exists()
            mark = command_line.mark(primary.directory)
            ((found, argv),) = ChildLauncher().find(mark)
            assert found.pid == primary.pid
            assert command_line.run_of(argv, primary.directory) == PRIMARY
            found.close()

    run(main())


# Starting


def test_another_client_holds_the_monitor(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary = await both.start(PRIMARY)
            await primary.vm.close()
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(primary.files.qmp))
                assert other.recv(1000)
                with pytest.raises(LaunchError, match="another client may hold its monitor"):
                    await primary.watcher().connect(0.3)
            vm = primary.vm = primary.watcher()
            await vm.connect(PATIENCE_S)
            await vm.perform(Script.CHECK, PATIENCE_S, None)
            os.kill(primary.pid, signal.SIGKILL)

    run(main())


@pytest.mark.parametrize("words", [("-device", "no-such-device"), ("-no-such-option",)])
def test_a_qemu_that_refuses_its_command_line(
    run: Loop, folder: Path, words: tuple[str, ...]
) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            with pytest.raises(LaunchError, match="no-such"):
                await both.start(SECONDARY, *words)
            (node,) = both.nodes
            await eventually(node.vm.dead.is_set, "its end")

    run(main())
