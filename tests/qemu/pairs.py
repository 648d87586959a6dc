"""Pairs of real QEMUs, with a wire that the test reads and a link that it can spoil.

`-accel qtest` runs no CPU. What the guest says comes from `announce-self`, whose frames leave by
the guest's NIC; what changes in its memory comes by the qtest protocol.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from coloha.config.model import Vm as Spec
from coloha.core.actions import Script
from coloha.core.events import Committed, Event, Role, Run
from coloha.qemu import command_line
from coloha.qemu.command_line import Files
from coloha.qemu.compare import Limits
from coloha.qemu.process import ChildLauncher
from coloha.qemu.steps import Command
from coloha.qemu.versions import Traits
from coloha.qemu.vm import Vm
from lab.assets import load_assets
from tests.qemu import specs
from tests.qemu.children import bury
from tests.qemu.loops import PATIENCE_S

SETTLE_S = 0.02
"""How long frames may take from QEMU to the wire."""


class Wire:
    """Where the frames of all NICs of a pair arrive."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "wire"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    async def heard(self, expected: int = 0) -> Counter[str]:
        """Wait for so many frames; count all that came since the last time, by who sent them."""
        heard: Counter[str] = Counter()
        end = time.monotonic() + PATIENCE_S
        while True:
            await asyncio.sleep(SETTLE_S)
            with contextlib.suppress(BlockingIOError):
                while True:
                    _, sender = self._socket.recvfrom(2000)
                    heard[Path(sender).parent.name] += 1
            if heard.total() >= expected or time.monotonic() > end:
                return heard

    async def frames(self, expected: int = 0) -> int:
        """How many came."""
        return (await self.heard(expected)).total()


class Node:
    """One run of the VM: a real QEMU."""

    def __init__(
        self,
        wire: Wire,
        run: Run,
        spec: Spec,
        *more: str,
        edit: Callable[[str], str] = str,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits
        self.folder = wire.path.parent
        self.directory = wire.path.parent / "web"
        self.run, self.spec = run, spec
        self.files = Files(command_line.directory_of(self.directory, run))
        self.events: list[Event] = []
        self.vm = self.watcher()
        self.files.directory.mkdir(parents=True)
        words = [
            edit(self._wired(word, wire))
            for word in command_line.build(
                "web", spec, run, self.files, self.folder, compared=limits is not None
            )
        ]
        qtest = quoted(self.files.directory / "qtest")
        words += ["-qtest", f"unix:{qtest},server=on,wait=off", *more]
        process = ChildLauncher().start(words, self.files.stderr)
        self.pid = process.pid
        self.vm.hold(process)

    def watcher(self) -> Vm:
        """A daemon's view of this run."""
        traits = Traits(self.spec.machine, self.spec.accelerator)
        plan = command_line.plan(self.spec, self.files, limits=self.limits)
        return Vm(self.run, self.files, plan, traits, self.events.append)

    def _wired(self, word: str, wire: Wire) -> str:
        """The same word, but on the test's wire instead of a tap."""
        if not word.startswith("tap,"):
            return word
        netdev = word.split("id=")[1].split(",", maxsplit=1)[0]
        local, remote = quoted(self.files.directory / netdev), quoted(wire.path)
        ends = f"local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"
        return f"dgram,id={netdev},{ends}"

    async def do(
        self,
        script: Script,
        timeout_s: float = PATIENCE_S,
        channel: socket.socket | None = None,
        images: Mapping[str, socket.socket] | None = None,
    ) -> object:
        """Run a script; the connections are QEMU's alone afterwards."""
        with contextlib.ExitStack() as stack:
            for connection in (*([] if channel is None else [channel]), *(images or {}).values()):
                stack.enter_context(connection)
            return await self.vm.perform(script, timeout_s, channel, images)

    async def command(self, name: str, **arguments: object) -> object:
        """One command."""
        assert self.vm._monitor is not None
        (reply,) = await self.vm._monitor.call((Command(name, arguments),), PATIENCE_S)
        assert reply.error is None, reply.error
        return reply.data

    async def status(self) -> object:
        """What query-status calls `status`."""
        state = await self.command("query-status")
        assert isinstance(state, dict)
        return state["status"]

    async def filters(self) -> set[str]:
        """The ids of its filters."""
        listed = await self.command("qom-list", path="/objects")
        assert isinstance(listed, list)
        return {entry["name"] for entry in listed if "filter" in entry["type"]}

    async def speak(self, frames: int = 1) -> None:
        """Have the guest's NICs send so many frames each; they are sent when this returns."""
        for _ in range(frames):
            await self.command("announce-self", initial=1, max=1, rounds=1, step=1)

    def scribble(self, pages: int) -> None:
        """Change so many pages of the guest's memory."""
        with socket.socket(socket.AF_UNIX) as qtest, contextlib.ExitStack() as stack:
            qtest.connect(str(self.files.directory / "qtest"))
            answers = stack.enter_context(qtest.makefile("r"))
            for page in range(pages):
                pattern = (page * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big").hex()
                qtest.sendall(f"write {0x200000 + page * 4096:#x} 8 0x{pattern}\n".encode())
                assert answers.readline().startswith("OK")

    async def end(self) -> None:
        """Kill it and let go of it."""
        self.vm.quiet = True
        self.vm.kill()
        if self.vm.pid is not None:
            async with asyncio.timeout(PATIENCE_S):
                await self.vm.dead.wait()
        await self.vm.close()


def quoted(path: Path) -> str:
    """A path in an option of QEMU."""
    return str(path).replace(",", ",,")


class Pair:
    """A primary, a secondary, and the wire that both could speak on."""

    def __init__(self, wire: Wire, spec: Spec) -> None:
        self.wire, self.spec = wire, spec
        self.nodes: list[Node] = []
        self.link: Link | None = None
        self.limits: Limits | None = None
        """Of mode `compare`."""

    async def start(self, run: Run, *more: str, edit: Callable[[str], str] = str) -> Node:
        """Start one more QEMU, each word of its command line edited, up to its first answer."""
        node = Node(self.wire, run, self.spec, *more, edit=edit, limits=self.limits)
        self.nodes.append(node)
        await node.vm.connect(PATIENCE_S)
        return node

    async def start_both(self) -> tuple[Node, Node]:
        """Start the usual two."""
        return await self.start(specs.PRIMARY), await self.start(specs.SECONDARY)

    async def enter(self, primary: Node, secondary: Node, link: "Link | None" = None) -> None:
        """Bring a VM and a fresh secondary into COLO."""
        ours, theirs = tcp() if link is None else link.ends
        await secondary.do(Script.ACCEPT_COLO, channel=theirs)
        entered = asyncio.create_task(secondary.do(Script.AWAIT_COLO))
        try:
            await primary.do(Script.ENTER_COLO, channel=ours)
            await entered
        finally:
            entered.cancel()
            await asyncio.gather(entered, return_exceptions=True)

    async def protect(self, primary: Node, secondary: Node, link: "Link | None" = None) -> None:
        """Bring both into COLO and hold the output."""
        await self.enter(primary, secondary, link)
        await primary.do(Script.ARM)

    async def end(self) -> None:
        """End everything."""
        for node in self.nodes:
            await node.end()
            bury(node.pid)
        if self.link is not None:
            self.link.close()
        self.wire.close()


@contextlib.asynccontextmanager
async def pair(folder: Path, count: int = 1, **settings: Any) -> AsyncIterator[Pair]:
    """A pair to be started, which ends with the test."""
    spec = specs.vm(count, **{"qemu": str(load_assets().qemu), "accelerator": "qtest", **settings})
    made = Pair(Wire(folder), spec)
    try:
        yield made
    finally:
        await made.end()


async def epochs(primary: Node, count: int) -> None:
    """So many committed epochs."""
    for _ in range(count):
        result = await primary.do(Script.EPOCH)
        assert isinstance(result, Committed), result
        await primary.do(Script.RELEASE)


def again(number: int) -> Run:
    """A fresh secondary."""
    return Run(f"s-{number:x}", Role.SECONDARY, number)


def tcp() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


Spoil = Callable[[bytes], bytes | None]
"""Given what the primary sends; returns what arrives, or None to hold it back for ever."""


class Link:
    """A connection through two threads, which pass on what the primary sends through `spoil`."""

    def __init__(self) -> None:
        primary, near = tcp()
        far, secondary = tcp()
        self.ends = primary, secondary
        self.spoil: Spoil = lambda data: data
        self._sockets = (near, far)
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._forward, args=(near, far)),
            threading.Thread(target=self._backward, args=(far, near)),
        ]
        for thread in self._threads:
            thread.start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                passed = self.spoil(data)
                if passed is None:
                    self._closed.wait()
                    break
                target.sendall(passed)
        self.cut()

    def _backward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
        self.cut()

    def cut(self) -> None:
        """Break the connection, for both."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the threads."""
        self._closed.set()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in (*self._sockets, *self.ends):
            each.close()


class After:
    """Lets so many bytes through, then does something once: `cut`, or hold back the rest."""

    def __init__(self, link: Link, count: int, then: str) -> None:
        self.link, self.left, self.then = link, count, then
        self.reached = False

    def __call__(self, data: bytes) -> bytes | None:
        if len(data) < self.left:
            self.left -= len(data)
            return data
        data, self.left, self.reached = data[: self.left], 0, True
        if self.then == "hold":
            target = self.link._sockets[1]
            target.sendall(data)
            return None
        target = self.link._sockets[1]
        target.sendall(data)
        self.link.cut()
        return b""


class Damage:
    """Changes, once, the version of a device's section in a checkpoint."""

    def __init__(self, device: bytes) -> None:
        self._key = bytes([len(device)]) + device
        self.done = False

    def __call__(self, data: bytes) -> bytes:
        place = data.find(self._key)
        if self.done or place < 0:
            return data
        version = place + len(self._key) + 4  # behind the instance number
        self.done = True
        return data[:version] + (99).to_bytes(4, "big") + data[version + 4 :]
