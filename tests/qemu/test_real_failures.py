"""Real QEMU: deaths, silence, cut and damaged links, and guests that switch themselves off."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from coloha.core.actions import Script
from coloha.core.events import CopyBad, Failure, GuestShutdown, QemuExited
from coloha.qemu.steps import Command, ScriptError
from tests.qemu import firmware
from tests.qemu.loops import PATIENCE_S, Loop, eventually
from tests.qemu.pairs import After, Damage, Link, Node, Pair, again, epochs, pair
from tests.qemu.specs import PRIMARY, SECONDARY

pytestmark = pytest.mark.qemu

SHORT_S = 2.0
"""A timeout that is meant to run out."""


async def failing(node: Node, script: Script, timeout_s: float = PATIENCE_S) -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        await node.do(script, timeout_s)
    return caught.value


async def goes_on_alone(both: Pair, primary: Node) -> None:
    """The primary leaves COLO, lets go what it held, and can be protected again."""
    await primary.speak(1)
    await both.wire.frames()
    await primary.do(Script.LEAVE_COLO)
    assert await primary.status() == "running"
    assert await primary.filters() == set()
    await primary.speak(1)
    assert primary.run.id in await both.wire.heard(1)
    fresh = await both.start(again(0x99))
    await both.protect(primary, fresh)
    await epochs(primary, 2)


# The secondary fails


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_secondary_dies_or_hangs_between_epochs(
    run: Loop, folder: Path, number: signal.Signals
) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            await epochs(primary, 5)
            os.kill(secondary.pid, number)
            error = await failing(primary, Script.EPOCH, SHORT_S)
            assert error.failure in (Failure.BROKEN, Failure.STALLED)
            await primary.speak(1)
            assert await both.wire.frames() == 0, "what was not committed is held"
            await goes_on_alone(both, primary)

    run(main())


def test_the_secondary_dies_amid_a_checkpoint(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            link = both.link = Link()
            await both.protect(primary, secondary, link)
            await epochs(primary, 2)
            primary.scribble(64)
            spoil = link.spoil = After(link, 100_000, "hold")
            epoch = asyncio.create_task(failing(primary, Script.EPOCH))
            await eventually(lambda: spoil.reached, "the middle of the checkpoint")
            os.kill(secondary.pid, signal.SIGKILL)
            link.close()
            assert (await epoch).failure in (Failure.BROKEN, Failure.STALLED)
            await goes_on_alone(both, primary)

    run(main())


@pytest.mark.parametrize(
    ("count", "then"), [(1, "cut"), (5_000, "cut"), (60_000, "cut"), (1, "hold"), (60_000, "hold")]
)
def test_the_link_fails_during_the_first_copy(
    run: Loop, folder: Path, count: int, then: str
) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            primary.scribble(64)
            link = both.link = Link()
            link.spoil = After(link, count, then)
            ours, theirs = link.ends
            await secondary.do(Script.ACCEPT_COLO, channel=theirs)
            with pytest.raises(ScriptError) as caught:
                await primary.do(Script.ENTER_COLO, SHORT_S, channel=ours)
            expected = Failure.BROKEN if then == "cut" else Failure.STALLED
            assert caught.value.failure is expected
            await goes_on_alone(both, primary)

    run(main())


CUTS = [1, 5, 8, 12, 16, 25, 40, 1_000, 100_000, 135_000, 150_000]
"""In the order of a checkpoint: the request, RAM, the size and the state of the devices."""

SPOILED = [(count, "cut") for count in CUTS] + [(count, "hold") for count in CUTS[::5]]


@pytest.mark.parametrize(("count", "then"), SPOILED)
def test_a_checkpoint_that_is_cut_leaves_two_that_could_go_on(
    run: Loop, folder: Path, count: int, then: str
) -> None:
    """Whoever wins: the secondary has the checkpoint before, the primary its own state."""

    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            link = both.link = Link()
            await both.protect(primary, secondary, link)
            await epochs(primary, 2)
            primary.scribble(32)
            spoil = link.spoil = After(link, count, then)
            error = await failing(primary, Script.EPOCH, SHORT_S)
            assert error.failure in (Failure.BROKEN, Failure.STALLED)
            assert spoil.reached
            await secondary.do(Script.PROMOTE)
            assert await secondary.status() == "running"
            assert not any(isinstance(event, CopyBad) for event in secondary.events)
            assert secondary.run.id in await both.wire.heard(1)
            await secondary.end()
            await goes_on_alone(both, primary)

    run(main())


def test_a_blocked_main_loop_answers_out_of_band_alone(run: Loop, folder: Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        async with pair(folder) as both:
            primary = await both.start(PRIMARY)
            monitor = primary.vm._monitor
            assert monitor is not None
            save = primary.command("pmemsave", val=0, size=16, filename=str(fifo))
            blocked = asyncio.create_task(save)  # until someone reads
            await asyncio.sleep(0.05)
            assert (await failing(primary, Script.CHECK, SHORT_S)).failure is Failure.SILENT
            (reply,) = await monitor.call((Command("query-yank", oob=True),), PATIENCE_S)
            assert reply.error is None
            assert not blocked.done()
            assert len(await asyncio.to_thread(fifo.read_bytes)) == 16
            await blocked
            await primary.do(Script.CHECK)

    run(main())


@pytest.mark.parametrize("device", [b"timer", b"i8254", b"0000:00:02.0/virtio-net"])
def test_a_half_loaded_secondary_says_so_and_is_not_promoted(
    run: Loop, folder: Path, device: bytes
) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            link = both.link = Link()
            await both.protect(primary, secondary, link)
            await epochs(primary, 2)
            damage = link.spoil = Damage(device)
            error = await failing(primary, Script.EPOCH, SHORT_S)
            assert error.failure in (Failure.BROKEN, Failure.STALLED)
            assert damage.done
            await eventually(lambda: len(secondary.events) == 2, "word of it")
            bad, _ = secondary.events
            assert isinstance(bad, CopyBad)
            assert device.decode() in bad.reason
            assert (await failing(secondary, Script.PROMOTE)).failure is Failure.BROKEN
            await secondary.speak(1)
            assert secondary.run.id not in await both.wire.heard()
            await goes_on_alone(both, primary)

    run(main())


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10])
def test_a_secondary_that_is_promoted_while_it_loads_a_spoilt_checkpoint(
    run: Loop, folder: Path, delay_ms: int
) -> None:
    """Either it has what was before, or it says so and is not promoted."""

    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            link = both.link = Link()
            await both.protect(primary, secondary, link)
            await epochs(primary, 2)
            damage = link.spoil = Damage(b"timer")
            epoch = asyncio.create_task(failing(primary, Script.EPOCH, SHORT_S))
            await eventually(lambda: damage.done, "the spoilt checkpoint")
            await asyncio.sleep(delay_ms / 1000)
            failure = None
            try:
                await secondary.do(Script.PROMOTE)
            except ScriptError as error:
                failure = error.failure
            bad = any(isinstance(event, CopyBad) for event in secondary.events)
            assert failure is (Failure.BROKEN if bad else None)
            assert await secondary.status() == ("colo" if bad else "running")
            await epoch

    run(main())


# The primary fails


def test_the_primary_dies_in_the_middle_of_an_epoch(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            await epochs(primary, 3)
            primary.scribble(64)
            epoch = asyncio.create_task(primary.do(Script.EPOCH))
            await asyncio.sleep(0)
            primary.vm.kill()
            with contextlib.suppress(ScriptError):
                await epoch
            await secondary.do(Script.PROMOTE)
            assert await secondary.status() == "running"
            await eventually(lambda: primary.events, "word of the death")

    run(main())


def test_what_waits_when_qemu_dies_is_lost(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary = await both.start(PRIMARY)
            os.kill(primary.pid, signal.SIGSTOP)
            check = asyncio.create_task(failing(primary, Script.CHECK))
            await asyncio.sleep(0.05)
            primary.vm.kill()
            assert (await check).failure is Failure.LOST
            assert (await failing(primary, Script.EPOCH)).failure is Failure.LOST

    run(main())


# The guest and QEMU itself


def guest(code: bytes, folder: Path, *devices: str) -> dict[str, Any]:
    """Settings of a VM that does this when it is let go."""
    words = tuple(word for device in devices for word in ("-device", device))
    image = firmware.image(folder / "image", code)
    return {"accelerator": "tcg", "firmware": image, "extra_arguments": words}


async def ended(node: Node) -> None:
    await eventually(
        lambda: any(isinstance(event, QemuExited) for event in node.events), "word of the end"
    )
    await eventually(node.vm.dead.is_set, "the end")


@pytest.mark.parametrize("attempt", range(5))
def test_a_guest_that_switches_itself_off(run: Loop, folder: Path, attempt: int) -> None:
    async def main() -> None:
        async with pair(folder, **guest(firmware.SWITCH_OFF, folder)) as both:
            primary = await both.start(PRIMARY, "-S")
            with contextlib.suppress(ScriptError):
                await primary.command("cont")
            await ended(primary)
            assert primary.events == [GuestShutdown(), QemuExited(PRIMARY)]

    run(main())


def test_a_guest_that_switches_itself_off_under_protection(run: Loop, folder: Path) -> None:
    """It is let go by COLO, which starts every guest that it finds paused."""

    async def main() -> None:
        async with pair(folder, **guest(firmware.SWITCH_OFF, folder)) as both:
            primary = await both.start(PRIMARY, "-S")
            secondary = await both.start(SECONDARY)
            with contextlib.suppress(ScriptError):
                await both.protect(primary, secondary)
                await epochs(primary, 3)
            await ended(primary)
            assert GuestShutdown() in primary.events
            assert isinstance(primary.events[-1], QemuExited)

    run(main())


def test_a_guest_that_panics(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder, **guest(firmware.PANIC, folder, "pvpanic")) as both:
            primary = await both.start(PRIMARY, "-S")
            with contextlib.suppress(ScriptError):
                await primary.command("cont")
            await ended(primary)
            assert primary.events == [GuestShutdown(panicked=True), QemuExited(PRIMARY)]

    run(main())


def test_a_guest_that_resets_itself_goes_on(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder, **guest(firmware.RESET, folder)) as both:
            primary = await both.start(PRIMARY)
            await asyncio.sleep(0.3)
            assert await primary.status() == "running"
            assert primary.events == []

    run(main())


@pytest.mark.parametrize("reason", ["quit", "SIGTERM", "SIGINT", "SIGKILL", "SIGABRT"])
def test_ends_that_are_not_the_guests(run: Loop, folder: Path, reason: str) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary = await both.start(PRIMARY)
            if reason == "quit":
                with contextlib.suppress(ScriptError):
                    await primary.command("quit")
            else:
                os.kill(primary.pid, signal.Signals[reason])
            await ended(primary)
            assert [type(event) for event in primary.events] == [QemuExited]

    run(main())


def test_a_power_button_is_the_guests_to_answer(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary = await both.start(PRIMARY)
            await primary.command("system_powerdown")
            await primary.command("system_reset")
            await primary.do(Script.CHECK)
            assert primary.events == []

    run(main())
