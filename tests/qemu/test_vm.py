"""A run's process and monitor together, with a fake QEMU in a process of its own."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coloha.core.actions import Script
from coloha.core.events import (
    ColoExited,
    CopyBad,
    Event,
    Failure,
    GuestShutdown,
    QemuExited,
    Run,
)
from coloha.errors import LaunchError
from coloha.qemu.command_line import Files
from coloha.qemu.process import ChildLauncher
from coloha.qemu.scripts import Plan
from coloha.qemu.steps import Command, ScriptError
from coloha.qemu.versions import Traits
from coloha.qemu.vm import STDERR_READ_BYTES, Vm
from tests.qemu import fake_child
from tests.qemu.children import bury, patiently, state_of
from tests.qemu.loops import PATIENCE_S, Loop, eventually
from tests.qemu.specs import PRIMARY, SECONDARY

KVM = Traits("pc", "kvm")


class Node:
    """A run with the fake QEMU, and what it posts."""

    def __init__(self, folder: Path, run: Run, traits: Traits) -> None:
        self.events: list[Event] = []
        self.files = Files(folder / run.id)
        self.vm = Vm(run, self.files, Plan(("net0",)), traits, self.events.append)

    async def order(self, name: str, **arguments: object) -> object:
        """Have the fake do something."""
        assert self.vm._monitor is not None
        (reply,) = await self.vm._monitor.call((Command(name, arguments),), PATIENCE_S)
        assert reply.error is None, reply.error
        return reply.data

    async def die(self, **how: object) -> None:
        """Have it die; wait until that is told."""
        with contextlib.suppress(ScriptError):
            await self.order("die", **how)
        await eventually(self.exits, "word of the death")
        await eventually(self.vm.dead.is_set, "the death")

    def exits(self) -> list[QemuExited]:
        return [event for event in self.events if isinstance(event, QemuExited)]


@contextlib.asynccontextmanager
async def node(
    folder: Path,
    run: Run = PRIMARY,
    *,
    version: str = "11.1.3",
    first_words: str = "",
    traits: Traits = KVM,
    connected: bool = True,
) -> AsyncIterator[Node]:
    made = Node(folder, run, traits)
    process = fake_child.start(made.files, version, first_words)
    pid = process.pid
    made.vm.hold(process)
    try:
        if connected:
            await made.vm.connect(PATIENCE_S)
        yield made
    finally:
        await made.vm.close()
        bury(pid)


# Connecting


@pytest.mark.parametrize(
    ("version", "traits", "reason"),
    [
        ("7.1.0", KVM, "QEMU 7.1.0 is too old"),
        ("9.0.4", KVM, "QEMU 9.0.4 asserts"),
        ("10.2.2", Traits("pc", "tcg"), "under TCG"),
        ("10.2.2", Traits("q35", "kvm"), "q35"),
    ],
)
def test_a_version_that_must_not_be_used(
    run: Loop, folder: Path, version: str, traits: Traits, reason: str
) -> None:
    async def main() -> None:
        async with node(folder, version=version, traits=traits, connected=False) as one:
            with pytest.raises(LaunchError, match=reason):
                await one.vm.connect(PATIENCE_S)
            assert one.events == []
            assert one.vm.answered_at is None

    run(main())


@pytest.mark.parametrize("version", ["7.2.22", "10.2.2", "11.1.3"])
def test_the_return_path_is_asked_for_where_it_is_needed(
    run: Loop, folder: Path, version: str
) -> None:
    async def main() -> None:
        async with node(folder, version=version) as one:
            assert one.vm._plan is not None
            assert one.vm._plan.return_path is (version == "11.1.3")

    run(main())


def test_a_qemu_that_does_not_start(run: Loop, folder: Path) -> None:
    async def main() -> None:
        one = Node(folder, PRIMARY, KVM)
        one.files.directory.mkdir()
        complaint = "qemu: could not open '/x': No such file"
        argv = ["/bin/sh", "-c", f'echo "{complaint}" >&2; exit 1']
        one.vm.hold(ChildLauncher().start(argv, one.files.stderr))
        with pytest.raises(LaunchError, match="could not open"):
            await one.vm.connect(PATIENCE_S)
        await eventually(one.exits, "word of the death")
        assert one.exits() == [QemuExited(PRIMARY, complaint)]
        await one.vm.close()

    run(main())


def test_connecting_again(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, connected=False) as one:
            with pytest.raises(LaunchError):
                await one.vm.connect(0.0001)
            await one.vm.connect(PATIENCE_S)
            monitor = one.vm._monitor
            await one.vm.connect(PATIENCE_S)
            assert one.vm._monitor is monitor
            await one.vm.perform(Script.CHECK, PATIENCE_S, None)

    run(main())


# The end


@pytest.mark.parametrize("attempt", range(8))
def test_a_guests_shutdown_is_told_before_the_exit(run: Loop, folder: Path, attempt: int) -> None:
    async def main() -> None:
        async with node(folder) as one:
            shutdown = ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
            await one.die(events=[("STOP", None)] * attempt + [shutdown])
            assert one.events == [GuestShutdown(), QemuExited(PRIMARY)]

    run(main())


def dead_unheard(one: Node) -> None:
    """Let its guest switch itself off while nobody listens: the loop does not run meanwhile."""
    assert one.vm._monitor is not None
    connection = one.vm._monitor._main.socket
    assert connection is not None
    events = [("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})]
    order = {"execute": "die", "arguments": {"events": events}}
    connection.sendall(json.dumps(order).encode())
    patiently(lambda: state_of(one.vm.pid or 0) == "Z", "the death")


@pytest.mark.parametrize("busy", [False, True])
def test_a_guests_shutdown_is_told_by_a_daemon_that_looks_late(
    run: Loop, folder: Path, busy: bool
) -> None:
    """All is found at once, perhaps by a command that cannot be written any more."""

    async def main() -> None:
        async with node(folder) as one:
            dead_unheard(one)
            if busy:
                assert one.vm._monitor is not None
                await one.vm._monitor._main.issue(Command("query-status"))
            await eventually(one.exits, "word of the death")
            assert one.events == [GuestShutdown(), QemuExited(PRIMARY)]

    run(main())


@pytest.mark.parametrize("script", [Script.CHECK, Script.EPOCH])
def test_a_script_that_fails_is_told_after_the_last_words(
    run: Loop, folder: Path, script: Script
) -> None:
    """Else a guest that switched itself off would be taken for one that hangs."""

    async def main() -> None:
        async with node(folder) as one:
            dead_unheard(one)
            with pytest.raises(ScriptError) as caught:
                await one.vm.perform(script, PATIENCE_S, None)
            assert caught.value.failure is Failure.LOST
            assert one.events[:1] == [GuestShutdown()]

    run(main())


@pytest.mark.parametrize(
    "reason",
    [
        *("host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-error", "host-ui"),
        *("guest-reset", "subsystem-reset", None),
    ],
)
def test_any_other_shutdown_is_a_death(run: Loop, folder: Path, reason: str | None) -> None:
    async def main() -> None:
        async with node(folder) as one:
            data = {"guest": False, "reason": reason} if reason else None
            await one.die(events=[("SHUTDOWN", data)])
            assert one.events == [QemuExited(PRIMARY)]

    run(main())


@pytest.mark.parametrize(
    "how", [{"status": 1}, {"signal": signal.SIGABRT}, {"signal": signal.SIGKILL}]
)
def test_a_death_is_told_once_with_the_complaint(
    run: Loop, folder: Path, how: dict[str, object]
) -> None:
    async def main() -> None:
        async with node(folder) as one:
            await one.order("complain", text="Assertion `x' failed.")
            await one.die(**how)
            await asyncio.sleep(0.05)
            assert one.events == [QemuExited(PRIMARY, "Assertion `x' failed.")]
            assert one.vm.pid is None

    run(main())


def test_killing(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder) as one:
            assert one.vm.pid is not None
            one.vm.kill()
            await eventually(one.exits, "word of the death")
            await eventually(one.vm.dead.is_set, "the death")
            one.vm.kill()
            assert one.events == [QemuExited(PRIMARY)]

    run(main())


def test_what_runs_when_it_dies_is_lost(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder) as one:
            assert one.vm._monitor is not None
            tape = one.vm._monitor.begin()
            until = asyncio.create_task(
                one.vm._monitor.until(tape, frozenset({"RESUME"}), PATIENCE_S, "it")
            )
            one.vm.kill()
            with pytest.raises(ScriptError) as caught:
                await until
            assert caught.value.failure is Failure.LOST
            await eventually(one.vm.dead.is_set, "the death")

    run(main())


def test_a_quiet_one_says_nothing(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            one.vm.quiet = True
            await one.order("complain", text="COLO: load device state failed")
            await one.order("say", event="COLO_EXIT")
            one.vm.kill()
            await eventually(one.vm.dead.is_set, "the death")
            await asyncio.sleep(0.05)
            assert one.events == []

    run(main())


def test_closing_lets_it_live(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder) as one:
            pid = one.vm.pid
            assert pid is not None
            await one.vm.close()
            await one.vm.close()
            one.vm.kill()
            await asyncio.sleep(0.05)
            assert state_of(pid) not in ("", "Z")
            assert one.events == []

    run(main())


# What it says


def test_colo_exit_and_resume(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            for _ in range(3):
                await one.order("say", event="RESUME")
            await one.order("say", event="COLO_EXIT", data={"reason": "error"})
            await one.order("say", event="NIC_RX_FILTER_CHANGED")
            assert one.vm.loaded == 3
            assert one.events == [ColoExited()]
            assert one.vm.answered_at is not None

    run(main())


POISON = [
    # 7.2
    "qemu-system-x86_64: COLO: load device state failed",
    "qemu-system-x86_64: error while loading state section id 5(cpu_common)",
    "qemu-system-x86_64: error while loading state for instance 0x0 of device 'i8259'",
    # 10 and later, and as 11.1.3 said when a checkpoint was damaged on its way
    "qemu: error while loading state for instance 0x0 of device '0000:00:02.0/virtio-net'",
    "qemu-system-x86_64: error while loading state for instance 0x0 of device "
    "'0000:00:02.0/virtio-net': Failed to load element of type virtio for virtio",
    "qemu: error while loading state for instance 0x1 of device 'ramfb': Invalid argument",
    "qemu: error while loading state section id 9(ramfb)",
    "qemu-system-x86_64: unsupported version 99 for 'timer' v2",
    "qemu-system-x86_64: savevm: unsupported version 3 for 'cpu' v12",
    "qemu-system-x86_64: Unknown section or instance 'XXXXX' 0. Make sure that your current VM "
    "setup matches your saved VM setup, including any hotplugged devices",
    "qemu-system-x86_64: Unknown savevm section or instance 'XXXXX' 0.",
    "qemu-system-x86_64: Unknown section type 238",
    "qemu-system-x86_64: Missing section footer for timer",
    "qemu: Mismatched section id in footer for i8254 - read 0x1 expected 0x2",
]

HARMLESS = [
    # 7.2, when the transfer of RAM into the cache was cut
    "qemu-system-x86_64: error while loading state section id 2(ram)",
    "qemu-system-x86_64: Load VM's live state (ram) error",
    # 11.1.3, when the connection was cut, from the first byte of a checkpoint to its last
    "qemu-system-x86_64: Can't receive COLO message: Input/output error",
    "qemu: Failed to load section ID: stream error: -5: Channel error: Input/output error",
    "qemu-system-x86_64: Failed to read section ID: -5",
    "qemu-system-x86_64: Getting RAM address failed",
    "qemu-system-x86_64: Can't find block pc.",
    "qemu-system-x86_64: Illegal RAM offset 200000",
    "qemu-system-x86_64: Failed to load vmstate version_id: 4, ret: -5",
    "qemu-system-x86_64: Got 4330 VMState data, less than expected 59114",
    "qemu-system-x86_64: Unable to shutdown socket: Transport endpoint is not connected",
    "qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.01H:ECX.vmx",
    "qemu: error while loading state for instance 0x0 of device 'ram': Input/output error",
    "qemu-system-x86_64: ram: Read section footer failed: -5",
    "qemu-system-x86_64: Missing section footer for ram",
]


@pytest.mark.parametrize("text", POISON)
def test_a_secondary_that_is_half_loaded(run: Loop, folder: Path, text: str) -> None:
    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            await one.order("complain", text=f"before\n{text}\nafter")
            await one.order("say", event="COLO_EXIT")
            assert one.events == [CopyBad(text), ColoExited()]

    run(main())


def test_all_that_is_harmless(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            for text in HARMLESS:
                await one.order("complain", text=text)
                await one.order("say", event="COLO_EXIT")
            assert one.events == [ColoExited()] * len(HARMLESS)

    run(main())


def test_a_primary_has_no_copy_to_lose(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, PRIMARY) as one:
            await one.order("complain", text=POISON[0])
            await one.order("say", event="COLO_EXIT")
            assert one.events == [ColoExited()]

    run(main())


def test_poison_at_the_end_of_much_talk(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            await one.order("complain", text="é" * STDERR_READ_BYTES)
            await one.order("complain", text=POISON[0])
            await one.order("say", event="COLO_EXIT")
            assert one.events == [CopyBad(POISON[0]), ColoExited()]

    run(main())


def test_a_half_loaded_secondary_is_never_promoted(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            await one.order("complain", text=POISON[0])
            with pytest.raises(ScriptError) as caught:
                await one.vm.perform(Script.PROMOTE, PATIENCE_S, None)
            assert caught.value.failure is Failure.BROKEN
            assert one.events == [CopyBad(POISON[0])]
            executed = await one.order("executed")
            assert isinstance(executed, list)
            assert "x-colo-lost-heartbeat" not in executed

    run(main())


def test_a_secondary_that_is_spoilt_while_it_is_promoted(run: Loop, folder: Path) -> None:
    """A checkpoint that had arrived is loaded after the stream was cut, and fails."""

    async def main() -> None:
        async with node(folder, SECONDARY) as one:
            await one.order("spoil", text=POISON[0])
            with pytest.raises(ScriptError) as caught:
                await one.vm.perform(Script.PROMOTE, PATIENCE_S, None)
            assert caught.value.failure is Failure.BROKEN
            assert CopyBad(POISON[0]) in one.events
            executed = await one.order("executed")
            assert isinstance(executed, list)
            assert "yank" in executed
            assert "x-colo-lost-heartbeat" not in executed

    run(main())


def test_a_half_loaded_secondary_that_is_found_running(run: Loop, folder: Path) -> None:
    """COLO_EXIT came while no daemon listened."""

    async def main() -> None:
        async with node(folder, SECONDARY, first_words=POISON[0]) as one:
            await one.vm.perform(Script.ADOPT, PATIENCE_S, None)
            assert one.events == [CopyBad(POISON[0])]

    run(main())


def test_complaints(run: Loop, folder: Path) -> None:
    async def main() -> None:
        one = Node(folder, PRIMARY, KVM)
        assert one.vm.complaint() == ""
        one.files.directory.mkdir()
        one.files.stderr.write_bytes(b"one\n\n two \nthree\n\xff four\n")
        assert one.vm.complaint() == "two; three; \ufffd four"
        one.files.stderr.write_bytes(b"x" * 10_000)
        assert len(one.vm.complaint()) == 500

    run(main())
