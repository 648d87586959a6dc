"""Replicated disks on real QEMUs: copies, checkpoints, failover both ways, errors."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coloha.config.disk import Disk
from coloha.core.actions import Script
from coloha.core.events import DiskFailed, Failure, Run
from coloha.qemu import command_line, disks
from coloha.qemu.process import ChildLauncher, Process
from coloha.qemu.steps import ScriptError
from lab.assets import load_assets
from tests.qemu import specs
from tests.qemu.loops import Loop, eventually
from tests.qemu.pairs import Node, Pair, Wire, again, epochs, tcp

SIZE = 8 * 2**20
AREA = 64 * 1024


def qemu_img(*words: str) -> str:
    program = str(load_assets().qemu_img)
    return subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout


class Disks(Pair):
    """A pair with disks; each of its two hosts has images of its own."""

    def __init__(self, wire: Wire, formats: tuple[str, ...], **settings: Any) -> None:
        usual = {"qemu": str(load_assets().qemu), "accelerator": "qtest"}
        spec = specs.vm(1, **usual | settings)
        super().__init__(wire, spec)
        self.folder = wire.path.parent
        self.formats = formats
        self.broken: Path | None = None
        """An image whose last area cannot be written, or not be read."""
        self.fault: dict[str, object] = {}
        self.relays: list[Process] = []
        for host in "ab":
            for number, form in enumerate(formats):
                qemu_img("create", "-q", "-f", form, str(self.image(host, number)), str(SIZE))

    def image(self, host: str, number: int = 0) -> Path:
        return self.folder / f"{host}{number}"

    async def on(self, host: str, run: Run) -> Node:
        """Start one more QEMU on a host."""
        made = tuple(
            Disk(image=self.image(host, number), format=form)
            for number, form in enumerate(self.formats)
        )
        self.spec = self.spec.model_copy(update={"disks": made})
        if run.session is not None:
            for disk in command_line.replicated(self.spec):
                for name in (disks.active(disk), disks.hidden(disk)):
                    path = command_line.overlay(self.folder, "web", run, name)
                    qemu_img("create", "-q", "-f", "qcow2", str(path), str(SIZE))
        return await self.start(run, edit=self._broken)

    def _broken(self, word: str) -> str:
        """Let QEMU's blkdebug make the errors of a broken image."""
        if self.broken is None or f'"{self.broken}"' not in word:
            return word
        node = json.loads(word)
        rule = {"event": "none", "sector": 3 * AREA // 512, "errno": errno.EIO, **self.fault}
        node["file"] = {"driver": "blkdebug", "image": node["file"], "inject-error": [rule]}
        return json.dumps(node)

    async def start_both(self) -> tuple[Node, Node]:
        return await self.on("a", specs.PRIMARY), await self.on("b", specs.SECONDARY)

    async def join(self, primary: Node, secondary: Node) -> None:
        """Copy disks and memory, enter COLO, hold the output."""
        near, far = tcp()
        await secondary.do(Script.ACCEPT_COLO, channel=far)
        entered = asyncio.create_task(secondary.do(Script.AWAIT_COLO))
        try:
            await primary.do(
                Script.ENTER_COLO,
                channel=near,
                images={
                    disks.peer(str(n)): self.relay(secondary) for n in range(len(self.formats))
                },
            )
            await entered
        finally:
            entered.cancel()
            await asyncio.gather(entered, return_exceptions=True)
        await primary.do(Script.ARM)

    def relay(self, secondary: Node) -> socket.socket:
        near, far = tcp()
        argv = [sys.executable, "-m", "coloha.qemu.relay", str(secondary.files.exports)]
        with far:
            process = ChildLauncher().start(argv, secondary.files.stderr, far.fileno())
        process.watch(lambda: None, lambda _: None)
        self.relays.append(process)
        return near

    async def end(self) -> None:
        for process in self.relays:
            process.kill()
            process.close()
        await super().end()


@contextlib.asynccontextmanager
async def disk_pair(folder: Path, *formats: str, **settings: Any) -> AsyncIterator[Disks]:
    made = Disks(Wire(folder), formats or ("raw",), **settings)
    try:
        yield made
    finally:
        await made.end()


async def io(node: Node, words: str, number: int = 0) -> None:
    """Use a disk the way the guest's device does. What comes of it is not said."""
    device = f"/machine/peripheral/vd{number}/virtio-backend"
    line = f'qemu-io -d {device} "{words}"'
    await node.command("human-monitor-command", **{"command-line": line})


async def write(node: Node, area: int, value: int, number: int = 0) -> None:
    await io(node, f"write -P {value} {area * AREA} {AREA}", number)


async def areas(node: Node, number: int = 0) -> list[int]:
    """What the guest would read: the first byte of each of the first areas, each of one kind."""
    path = node.files.directory / "read.sock"
    top, address = disks.top(str(number)), {"type": "unix", "data": {"path": str(path)}}
    await node.command("nbd-server-start", addr=address)
    export = {"type": "nbd", "id": "read", "node-name": top}
    await node.command("block-export-add", **export)
    copy = node.files.directory / "read"
    source = f"nbd+unix:///{top}?socket={path}"
    await asyncio.to_thread(qemu_img, "convert", "-f", "raw", "-O", "raw", source, str(copy))
    await node.command("nbd-server-stop")
    content = copy.read_bytes()
    parts = [content[start : start + AREA] for start in range(0, 4 * AREA, AREA)]
    assert all(len(set(part)) == 1 for part in parts)
    return [part[0] for part in parts]


async def die(node: Node) -> None:
    node.vm.kill()
    await eventually(node.vm.dead.is_set, "its death")


@pytest.mark.parametrize("formats", [("raw",), ("raw", "qcow2")])
def test_the_secondary_has_what_was_committed(
    run: Loop, folder: Path, formats: tuple[str, ...]
) -> None:
    """What was on the disks before, what was committed, and nothing that came after; then back."""

    async def main() -> None:
        async with disk_pair(folder, *formats) as both:
            every = range(len(formats))
            elder, heir = await both.start_both()
            for n in every:
                await write(elder, 0, 1, n)
            await both.join(elder, heir)
            for hosts, number in (("ab", 0x30), ("ba", 0x31)):
                for n in every:
                    await write(elder, 1, number, n)
                await epochs(elder, 2)
                for n in every:
                    await write(elder, 1, 99, n)
                    await write(heir, 2, 98, n)  # what its guest does ahead of the checkpoint
                await die(elder)
                await heir.do(Script.PROMOTE)
                for n in every:
                    # Nothing newer than the commit, but what its own guest has done since.
                    assert await areas(heir, n) == [1, number, 98, 0]
                elder, heir = heir, await both.on(hosts[0], again(number))
                await both.join(elder, heir)
            await epochs(elder, 1)
            await elder.do(Script.LEAVE_COLO)
            await die(heir)
            await die(elder)
            for n, form in enumerate(formats):
                same = ("compare", "-f", form, "-F", form)
                qemu_img(*same, str(both.image("a", n)), str(both.image("b", n)))

    run(main())


def test_the_primary_goes_on_alone(run: Loop, folder: Path) -> None:
    """The secondary dies with a write on its way; again with its disk's connection silent."""

    async def main() -> None:
        async with disk_pair(folder) as both:
            primary = await both.on("a", specs.PRIMARY)
            for number in (0x40, 0x41):
                secondary = await both.on("b", again(number))
                await both.join(primary, secondary)
                await epochs(primary, 1)
                await die(secondary)
                await write(primary, 3, number)
                await primary.do(Script.LEAVE_COLO)
                assert await primary.status() == "running"
                assert (await areas(primary))[3] == number
                await primary.do(Script.LEAVE_COLO)  # again: it changes nothing

    run(main())


def test_a_write_that_the_secondary_missed_is_never_committed(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = (
                await both.on("a", specs.PRIMARY),
                await both.on("b", specs.SECONDARY),
            )
            await both.join(primary, secondary)
            await epochs(primary, 1)
            loaded = secondary.vm.loaded
            both.relays[0].kill()
            await write(primary, 1, 7)  # for the guest it is well
            await eventually(lambda: any(isinstance(e, DiskFailed) for e in primary.events), "it")
            (failed,) = (e for e in primary.events if isinstance(e, DiskFailed))
            assert not failed.behind
            with pytest.raises(ScriptError) as caught:
                await primary.do(Script.EPOCH)
            assert caught.value.failure is Failure.BROKEN
            assert secondary.vm.loaded == loaded
            await primary.do(Script.LEAVE_COLO)
            assert (await areas(primary))[1] == 7

    run(main())


def test_a_write_is_missed_during_the_epoch(run: Loop, folder: Path) -> None:
    """QEMU makes the checkpoint all the same: it does not count, and the connection is cut."""

    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = (
                await both.on("a", specs.PRIMARY),
                await both.on("b", specs.SECONDARY),
            )
            await both.join(primary, secondary)
            both.relays[0].kill()
            writing = asyncio.create_task(write(primary, 1, 7))
            with pytest.raises(ScriptError):
                await epochs(primary, 20)
            await writing

    run(main())


def refuse_writes(node: Node) -> None:
    """From now on no file may grow, and no write go, beyond the first areas."""
    words = ["prlimit", f"--fsize={2 * AREA}", "--pid", str(node.pid)]
    subprocess.run(words, check=True)


async def failure(node: Node) -> DiskFailed:
    await eventually(lambda: any(isinstance(e, DiskFailed) for e in node.events), "the failure")
    return next(e for e in node.events if isinstance(e, DiskFailed))


@pytest.mark.parametrize("whose", ["primary", "secondary"])
def test_an_image_that_takes_no_writes(run: Loop, folder: Path, whose: str) -> None:
    """The guest does not hear of it; what it wrote is on the other image."""

    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.join(primary, secondary)
            await epochs(primary, 1)
            loaded = secondary.vm.loaded
            refuse_writes(primary if whose == "primary" else secondary)
            await write(primary, 3, 7)
            failed = await failure(primary)
            assert failed.behind == (whose == "primary")
            if whose == "primary":
                assert "this node's image missed a write" in failed.reason
                await epochs(primary, 1)  # the other image has it: this commit is whole
                await die(primary)
                await heir_has(secondary, 7)
            else:
                with pytest.raises(ScriptError, match="the other node's image missed a write"):
                    await primary.do(Script.EPOCH)
                assert secondary.vm.loaded == loaded
                await primary.do(Script.LEAVE_COLO)
                assert (await areas(primary))[3] == 7

    async def heir_has(heir: Node, value: int) -> None:
        await heir.do(Script.PROMOTE)
        assert (await areas(heir))[3] == value

    run(main())


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("host", ["a", "b"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_write_error_of_either_disk_on_either_side(
    run: Loop, folder: Path, number: int, host: str, error: int
) -> None:
    """QEMU's own fault injection. The guest hears of none; no copy lacks what it believes in."""

    async def main() -> None:
        async with disk_pair(folder, "raw", "raw") as both:
            both.broken = both.image(host, number)
            both.fault = {"iotype": "write", "errno": error}
            primary, secondary = await both.start_both()
            await both.join(primary, secondary)
            await write(primary, 1, 5, number)
            await epochs(primary, 1)
            loaded = secondary.vm.loaded
            await write(primary, 3, 7, number)
            failed = await failure(primary)
            assert failed.behind == (host == "a")
            if host == "a":  # the other image has it: it is the better one
                await epochs(primary, 1)
                await die(primary)
                await secondary.do(Script.PROMOTE)
                assert await areas(secondary, number) == [0, 5, 0, 7]
                return
            with pytest.raises(ScriptError, match="the other node's image missed a write"):
                await primary.do(Script.EPOCH)
            assert secondary.vm.loaded == loaded, "no commit covers it"
            await primary.do(Script.LEAVE_COLO)
            assert await areas(primary, number) == [0, 5, 0, 7]

    run(main())


def test_a_read_error_of_the_primarys_image(run: Loop, folder: Path) -> None:
    """The other image answers instead: the guest hears of no error, and protection goes on."""

    async def main() -> None:
        async with disk_pair(folder) as both:
            both.broken, both.fault = both.image("a"), {"iotype": "read"}
            primary, secondary = await both.start_both()
            await both.join(primary, secondary)
            await write(primary, 3, 7)
            assert await areas(primary) == [0, 0, 0, 7]
            await epochs(primary, 1)
            assert not any(isinstance(event, DiskFailed) for event in primary.events)
            await primary.do(Script.LEAVE_COLO)
            with pytest.raises(subprocess.CalledProcessError):
                await areas(primary)  # now there is no other one

    run(main())


def test_a_silent_way_to_the_other_image(run: Loop, folder: Path) -> None:
    """QEMU's main loop waits for the write, and answers nothing, until the way is cut."""

    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.join(primary, secondary)
            await epochs(primary, 1)
            os.kill(both.relays[0].pid, signal.SIGSTOP)
            writing = asyncio.create_task(write(primary, 1, 7))
            await asyncio.sleep(0.1)
            with pytest.raises(ScriptError) as caught:
                await primary.do(Script.CHECK, 0.3)
            assert caught.value.failure is Failure.SILENT
            await primary.do(Script.LEAVE_COLO)
            await writing
            assert (await areas(primary))[1] == 7

    run(main())


def test_an_overlay_that_is_full(run: Loop, folder: Path) -> None:
    """The secondary's guest sees an error that the primary's does not: it is no copy any more."""

    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = (
                await both.on("a", specs.PRIMARY),
                await both.on("b", specs.SECONDARY),
            )
            await both.join(primary, secondary)
            await epochs(primary, 1)
            secondary.events.clear()
            refuse_writes(secondary)
            await io(secondary, f"write -P 5 0 {4 * 2**20}")
            await eventually(lambda: bool(secondary.events), "what it says of it")
            assert isinstance(secondary.events[0], DiskFailed)

    run(main())


@pytest.mark.parametrize("end", ["connection", "script"])
def test_a_copy_that_is_interrupted_begins_anew(run: Loop, folder: Path, end: str) -> None:
    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = await both.start_both()
            await io(primary, f"write -P 5 0 {SIZE}")
            fast = primary.vm._plan
            primary.vm._plan = replace(fast, sync_rate=4 * 2**20)
            near, far = tcp()
            await secondary.do(Script.ACCEPT_COLO, channel=far)
            way = {"peer0": both.relay(secondary)}
            copying = asyncio.create_task(primary.do(Script.ENTER_COLO, channel=near, images=way))
            await eventually(lambda: primary.vm.progress is not None, "the copy")
            if end == "connection":
                both.relays[0].kill()
            else:
                copying.cancel()
            (ended,) = await asyncio.gather(copying, return_exceptions=True)
            assert isinstance(ended, ScriptError if end == "connection" else BaseException)
            await primary.do(Script.LEAVE_COLO)
            assert await primary.status() == "running"
            primary.vm._plan = fast
            await die(secondary)
            heir = await both.on("b", again(0x51))
            await both.join(primary, heir)
            await epochs(primary, 1)
            await die(primary)
            await heir.do(Script.PROMOTE)
            assert await areas(heir) == [5, 5, 5, 5]

    run(main())


def test_a_copy_that_cannot_be_made(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with disk_pair(folder) as both:
            primary, secondary = (
                await both.on("a", specs.PRIMARY),
                await both.on("b", specs.SECONDARY),
            )
            near, far = tcp()
            await secondary.do(Script.ACCEPT_COLO, channel=far)
            silent, silenced = tcp()
            with silenced, pytest.raises(ScriptError):
                await primary.do(Script.ENTER_COLO, 1.0, near, {"peer0": silent})
            await primary.do(Script.LEAVE_COLO)
            assert await primary.status() == "running"
            await write(primary, 0, 3)
            await die(secondary)
            await both.join(primary, await both.on("b", again(0x50)))
            await epochs(primary, 1)

    run(main())
