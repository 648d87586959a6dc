"""Mode `compare` on real QEMUs whose guests run no CPU: filters, failovers both ways, what hangs.

Their frames are RARP, which QEMU does not compare: they pass. What is compared is in
`e2e/test_compare`.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coloha.core.actions import Script
from coloha.core.commit import Message
from coloha.core.events import Committed, Failure, Kept
from coloha.qemu import command_line, compare
from coloha.qemu.compare import Limits
from coloha.qemu.scripts import TRIGGER
from coloha.qemu.steps import Call, ScriptError, Steps
from lab.assets import load_assets
from tests.qemu import specs
from tests.qemu.loops import Loop
from tests.qemu.pairs import Node, Pair, Wire, again, epochs, tcp

LIMITS = Limits(100, 50, 1024)
FILTERS = {"mirror", "agreed", "divert"}


class Compared(Pair):
    """A pair whose streams the test joins; `far` are the secondary's ends of them."""

    def __init__(self, wire: Wire, nics: int, qemu: str, accelerator: str) -> None:
        super().__init__(wire, specs.vm(nics, qemu=qemu, accelerator=accelerator))
        self.limits = LIMITS

    def links(self, secondary: Node) -> dict[str, socket.socket]:
        """Return what the primary is given."""
        made = {}
        for netdev in command_line.netdevs(self.spec, "held"):
            for name, stream in compare.streams(netdev).items():
                made[name] = socket.socket(socket.AF_UNIX)
                made[name].connect(str(secondary.files.stream(stream)))
            for pair in compare.pairs(netdev):
                made |= dict(zip(pair, socket.socketpair(), strict=True))
        return made

    async def join(self, primary: Node, secondary: Node) -> None:
        """Copy the memory, enter COLO, compare the output."""
        near, far = tcp()
        await secondary.do(Script.ACCEPT_COLO, channel=far)
        entered = asyncio.create_task(secondary.do(Script.AWAIT_COLO))
        try:
            await primary.do(Script.ENTER_COLO, channel=near, images=self.links(secondary))
            await entered
        finally:
            entered.cancel()
            await asyncio.gather(entered, return_exceptions=True)
        await primary.do(Script.ARM)


@contextlib.asynccontextmanager
async def compared(
    folder: Path, nics: int = 1, qemu: str | None = None, accelerator: str = "qtest"
) -> AsyncIterator[Compared]:
    made = Compared(Wire(folder), nics, qemu or str(load_assets().qemu), accelerator)
    try:
        yield made
    finally:
        await made.end()


async def order(node: Node, netdev: str) -> list[str]:
    """The filters of a netdev: input meets them in this order, output in the opposite one."""
    text = await node.command("human-monitor-command", **{"command-line": "info network"})
    _, _, mine = str(text).partition(f"\\ {netdev}: ")
    lines = [line.strip() for line in mine.split("\\ net")[0].splitlines()]
    return [line[2:].split(":")[0] for line in lines if line.startswith("- ")]


async def devices(node: Node) -> set[str]:
    """The character devices that a node has but for its own."""
    listed = await node.command("query-chardev")
    assert isinstance(listed, list)
    own = ("compat_monitor", "console", "qtest", "null-", "parallel", "serial")
    return {d["label"] for d in listed if not d["label"].startswith(own)}


@pytest.mark.qemu
@pytest.mark.parametrize("nics", [1, 2])
def test_both_failovers_and_a_promoted_one_protected(run: Loop, folder: Path, nics: int) -> None:
    async def main() -> None:
        async with compared(folder, nics) as both:
            primary, second = await both.start_both()
            names = [f"net{number}" for number in range(nics)]
            await both.join(primary, second)
            assert await primary.filters() == {f"{f}-{n}" for f in FILTERS for n in names}
            await epochs(primary, 3)
            await primary.do(Script.ARM)  # as a daemon does that found it
            await epochs(primary, 1)
            await both.wire.frames()
            await second.speak(2)
            assert await both.wire.frames() == 0, "its words go to the primary"

            await primary.end()
            await second.do(Script.PROMOTE)
            assert await second.filters() == {f"rewrite-{n}" for n in names}
            assert await devices(second) == set()
            await both.wire.frames()
            await second.speak(1)
            assert await both.wire.frames(nics) >= nics, "it announces itself besides"

            third = await both.start(again(3))
            await both.join(second, third)
            kinds = ("mirror", "agreed", "divert", "rewrite")
            assert await order(second, "net0") == [f"{kind}-net0" for kind in kinds]
            await epochs(second, 3)
            await both.wire.frames()
            await second.speak(1)
            assert await both.wire.frames(nics) >= nics, "what is not compared passes"
            await third.end()
            await second.do(Script.LEAVE_COLO)
            await second.do(Script.LEAVE_COLO)  # as a daemon does that found it
            assert await second.filters() == {f"rewrite-{n}" for n in names}
            assert await devices(second) == set()
            assert await second.status() == "running"

            fourth = await both.start(again(4))
            await both.join(second, fourth)
            await epochs(second, 1)

    run(main())


def open_nic(node: Node) -> None:
    """Have the guest's e1000 take in some hundred frames: what its driver would do."""
    slot, bar, ring = 2, 0xFEB00000, 0x300000
    config = 0x80000000 | slot << 11
    orders = [f"outl 0xcf8 {config | 0x10:#x}", f"outl 0xcfc {bar:#x}"]
    orders += [f"outl 0xcf8 {config | 0x04:#x}", "outl 0xcfc 0x7"]
    registers = {0x2800: ring, 0x2804: 0, 0x2808: 1024 * 16, 0x2810: 0, 0x2818: 1023, 0x100: 0x801A}
    orders += [f"writel {bar + register:#x} {value:#x}" for register, value in registers.items()]
    orders.append("clock_step 2000000000")  # it takes in nothing for a second
    with socket.socket(socket.AF_UNIX) as qtest, qtest.makefile("r") as answers:
        qtest.connect(str(node.files.directory / "qtest"))
        for order in orders:
            qtest.sendall(f"{order}\n".encode())
            assert answers.readline().startswith("OK"), order


async def flood(nic: Path) -> int:
    """Send to a NIC until it takes nothing for a while; return how many frames it took."""
    frame = bytes.fromhex("525400000001 525400000099 0800") + bytes(1400)
    taken = refused = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        while refused < 20:
            try:
                sender.sendto(frame, str(nic))
                taken, refused = taken + 1, 0
            except BlockingIOError:
                refused += 1
                await asyncio.sleep(0.01)
    return taken


@pytest.mark.qemu
def test_mirroring_to_a_secondary_that_takes_nothing_is_cut(run: Loop, folder: Path) -> None:
    """It blocks the primary's main loop. The epoch says whose fault it is, and frees it."""

    async def main() -> None:
        async with compared(folder) as both:
            both.spec = specs.vm(
                nics=(specs.nic(0, model="e1000"),), qemu=both.spec.qemu, accelerator="qtest"
            )
            primary, secondary = await both.start_both()
            open_nic(primary)
            await both.join(primary, secondary)
            await epochs(primary, 1)
            os.kill(secondary.pid, signal.SIGSTOP)
            assert await flood(primary.files.directory / "net0") > 20
            with pytest.raises(ScriptError) as failed:
                await primary.do(Script.EPOCH, 1.0)
            assert failed.value.failure is Failure.BROKEN, failed.value
            assert "takes no input" in failed.value.reason
            await primary.do(Script.CHECK)
            await primary.do(Script.LEAVE_COLO)
            assert await primary.status() == "running"

    run(main())


class Blocked:
    """A QEMU whose main loop waits for the other node until that is cut, or for ever."""

    def __init__(self, steps: Steps, *, freed: bool) -> None:
        self.steps, self.freed = steps, freed
        self.yanked: list[object] = []

    def run(self) -> None:
        """Run the steps to their end."""
        op = next(self.steps)
        while True:
            assert isinstance(op, Call)
            (command,) = op.commands
            if not command.oob and not (self.freed and self.yanked):
                op = self.steps.throw(ScriptError(Failure.SILENT, "no answer"))
                continue
            data: object = {}
            if command.name == "query-yank":
                data = [
                    {"type": "chardev", "id": name} for name in ("compat_monitor0", "to-peer-net0")
                ]
            elif command.name == "yank":
                self.yanked.append(command.arguments["instances"])
            op = self.steps.send([Message(command.name, 0.0, reply=True, data=data)])


@pytest.mark.parametrize(("freed", "expected"), [(True, Failure.BROKEN), (False, Failure.SILENT)])
def test_a_secondary_that_takes_no_input_is_no_hung_primary(freed: bool, expected: Failure) -> None:
    """Mirroring to it blocks QEMU's main loop: whose fault it is shows when that is cut."""
    blocked = Blocked(compare.unblocked(("net0",), TRIGGER, 1.0), freed=freed)
    with pytest.raises(ScriptError) as failed:
        blocked.run()
    assert failed.value.failure is expected
    assert blocked.yanked == [[{"type": "chardev", "id": "to-peer-net0"}]], "never a monitor"


def said(*names: str) -> list[Message]:
    """A stream; a name in brackets is a reply."""
    return [Message(n.strip("()"), float(at), reply="(" in n) for at, n in enumerate(names)]


@pytest.mark.parametrize(
    ("stream", "pause_s"),
    [
        (("(set)", "STOP", "RESUME"), 1.0),
        (("STOP", "(set)", "RESUME"), 2.0),
        (("(set)", "RESUME"), None),
        (("RESUME",), None),
    ],
)
def test_a_round_commits_if_its_checkpoint_began_in_it(
    stream: tuple[str, ...], pause_s: float | None
) -> None:
    result = compare.end_of_round(said(*stream))
    if pause_s is None:
        assert isinstance(result, Kept)
    else:
        assert result == Committed(pause_s)


@pytest.mark.parametrize("end", ["COLO_EXIT", "MIGRATION", "QUORUM_REPORT_BAD"])
def test_a_round_in_which_colo_ended_is_broken(end: str) -> None:
    with pytest.raises(ScriptError) as failed:
        compare.end_of_round(said("(set)", "STOP", end, "RESUME"))
    assert failed.value.failure is Failure.BROKEN
