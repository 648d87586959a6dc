"""The two QMP connections: how they begin and end, and descriptors passed over them."""

import asyncio
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from coloha.core.actions import Script
from coloha.core.events import Failure
from coloha.errors import QmpError
from coloha.qemu import qmp
from coloha.qemu.conductor import conduct
from coloha.qemu.qmp import Monitor
from coloha.qemu.scripts import Plan
from coloha.qemu.steps import Command, ScriptError
from tests.qemu.fake import Endpoint, FakeQemu, RefusalError
from tests.qemu.loops import PATIENCE_S, Loop, eventually
from tests.qemu.talk import Talk, talking

SHORT_S = 0.1

PLAN = Plan(("net0",), return_path=True)


async def connect(monitor: Monitor, qemu: FakeQemu, deadline_s: float = PATIENCE_S) -> None:
    await monitor.connect(qemu.main.path, qemu.oob.path, deadline_s, lambda: True)


async def refused(monitor: Monitor, qemu: FakeQemu, deadline_s: float) -> str:
    """Connect in vain, close; return why."""
    with pytest.raises(QmpError) as caught:
        await connect(monitor, qemu, deadline_s)
    await monitor.close()
    return str(caught.value)


def new_monitor() -> Monitor:
    return Monitor("test", lambda _: None)


# Connecting


@pytest.mark.parametrize("stale", [False, True])
def test_a_socket_that_appears_late(run: Loop, folder: Path, stale: bool) -> None:
    async def main() -> None:
        qemu, monitor = FakeQemu(folder), new_monitor()
        if stale:  # the socket of a dead QEMU refuses connections
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(qemu.main.path))
        connecting = asyncio.create_task(connect(monitor, qemu))
        await asyncio.sleep(SHORT_S)
        assert not connecting.done()
        qemu.main.path.unlink(missing_ok=True)
        async with qemu:
            await connecting
            assert (await monitor.call((Command("query-status"),), PATIENCE_S))[0].error is None
            await monitor.close()

    run(main())


def test_another_client_holds_the_monitor(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(qemu.main.path))
                await eventually(lambda: qemu.main.served, "the other client")
                text = await refused(new_monitor(), qemu, SHORT_S)
                assert str(qemu.main.path) in text
                assert "another client may hold its monitor" in text
            monitor = new_monitor()
            await connect(monitor, qemu)
            await monitor.close()

    run(main())


def test_a_monitor_that_never_greets(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            qemu.main.greets = False
            await refused(new_monitor(), qemu, SHORT_S)

    run(main())


def test_something_else_than_qemu(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            qemu.main.greets = False

            def babble() -> None:
                if qemu.main.client is not None:
                    qemu.main.write_bytes(qemu.main.client, b"SSH-2.0-OpenSSH\r\n")
                asyncio.get_running_loop().call_later(0.005, babble)

            babble()
            await refused(new_monitor(), qemu, SHORT_S)

    run(main())


def test_only_the_second_connection_fails(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            qemu.oob.greets = False
            await refused(new_monitor(), qemu, SHORT_S)
            assert qemu.main.served == 1

    run(main())


def test_a_qemu_that_ended_is_not_waited_for(run: Loop, folder: Path) -> None:
    async def main() -> None:
        qemu, monitor = FakeQemu(folder), new_monitor()
        looks = iter([True, True, True, False])
        with pytest.raises(QmpError, match="ended before it answered"):
            await monitor.connect(qemu.main.path, qemu.oob.path, PATIENCE_S, lambda: next(looks))
        await monitor.close()

    run(main())


def test_a_hang_up_during_the_greeting_is_tried_again(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            qemu.main.greets = False
            monitor = new_monitor()
            connecting = asyncio.create_task(connect(monitor, qemu))
            await eventually(lambda: qemu.main.served, "the first attempt")
            qemu.main.greets = True
            qemu.main.close_client()
            await connecting
            await monitor.close()

    run(main())


def test_an_event_amid_the_negotiation_is_no_failure(run: Loop, folder: Path) -> None:
    """QEMU's migration thread sends events without the lock that commands run under."""

    async def main() -> None:
        async with FakeQemu(folder) as qemu:

            def once(_: object) -> object:
                del qemu.answers["qmp_capabilities"]
                qemu.event("MIGRATION_PASS", {"pass": 3})
                return {}

            qemu.answers["qmp_capabilities"] = once
            monitor = new_monitor()
            await connect(monitor, qemu)
            assert qemu.main.served == 2
            await monitor.close()

    run(main())


def test_connecting_can_be_cut_short_anywhere(run: Loop, folder: Path) -> None:
    async def attempt(qemu: FakeQemu, rounds: int) -> bool:
        monitor = new_monitor()
        connecting = asyncio.create_task(connect(monitor, qemu))
        for _ in range(rounds):
            await asyncio.sleep(0)
        connecting.cancel()
        ended = await asyncio.gather(connecting, return_exceptions=True)
        await monitor.close()
        await eventually(lambda: not qemu.main.client and not qemu.oob.client, "the hang-up")
        return ended[0] is None

    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            rounds = 0
            while not await attempt(qemu, rounds):
                rounds += 1
            assert rounds > 5

    run(main())


# Closing


def test_closing_what_was_never_open(run: Loop, folder: Path) -> None:
    async def main() -> None:
        monitor = new_monitor()
        await monitor.close()
        await monitor.drain(PATIENCE_S)
        with pytest.raises(ScriptError) as caught:
            await monitor.give("colo", 0, PATIENCE_S)
        assert caught.value.failure is Failure.LOST

    run(main())


async def at_peace(talk: Talk) -> None:
    """Nothing is going on."""


async def hung_up(talk: Talk) -> None:
    talk.qemu.main.close_client()
    talk.qemu.oob.close_client()
    await eventually(talk.monitor.lost.is_set, "the loss")


async def hanging_up(talk: Talk) -> None:
    talk.qemu.main.close_client()


async def broken(talk: Talk) -> None:
    for endpoint in (talk.qemu.main, talk.qemu.oob):
        assert endpoint.client is not None
        endpoint.write_bytes(endpoint.client, b"{]\r\n")
    await eventually(talk.monitor.lost.is_set, "the loss")


async def talkative(talk: Talk) -> None:
    for _ in range(1000):
        talk.qemu.event("NOISE")


async def silent(talk: Talk) -> None:
    talk.qemu.held = True
    await talk.failing("stop", "cont", timeout_s=0.02)


async def late(talk: Talk) -> None:
    await silent(talk)
    talk.qemu.go_on()


async def deaf(talk: Talk) -> None:
    """QEMU is stopped, and its socket full."""
    client = talk.qemu.main.client
    assert client is not None
    asyncio.get_running_loop().remove_reader(client.connection)
    big = Command("migrate", {"uri": "x" * 4_000_000})
    with pytest.raises(ScriptError):
        await talk.monitor.call((big,), 0.05)


STATES = [at_peace, hung_up, hanging_up, broken, talkative, silent, late, deaf]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("times", ["once", "twice", "at-once"])
def test_closing_never_fails_and_leaves_nothing(
    run: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch, state: object, times: str
) -> None:
    monkeypatch.setattr(qmp, "CLOSE_S", SHORT_S)

    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            talk = Talk(qemu)
            await connect(talk.monitor, qemu)
            assert callable(state)
            await state(talk)
            if times == "at-once":
                await asyncio.gather(talk.monitor.close(), talk.monitor.close())
            else:
                await talk.monitor.close()
            if times == "twice":
                await talk.monitor.close()
            assert talk.monitor.lost.is_set()
            assert await talk.failing("query-status") is Failure.LOST
            left = {task.get_name() for task in asyncio.all_tasks() if not task.done()}
            assert len(left) == 1, left

    run(main())


def test_closing_ends_what_waits(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            tape = talk.monitor.begin()
            call = asyncio.create_task(talk.failing("stop"))
            until = asyncio.create_task(
                talk.monitor.until(tape, frozenset({"STOP"}), PATIENCE_S, "it")
            )
            await asyncio.sleep(SHORT_S)
            await talk.monitor.close()
            assert await call is Failure.LOST
            with pytest.raises(ScriptError) as caught:
                await until
            assert caught.value.failure is Failure.LOST

    run(main())


def test_a_monitor_leaves_nothing_with_the_process(run: Loop, folder: Path) -> None:
    """A daemon makes one for each QEMU, as long as it lives."""

    async def main() -> None:
        async with FakeQemu(folder) as qemu:
            await connect(monitor := new_monitor(), qemu)
            await monitor.close()
            loggers = set(logging.Logger.manager.loggerDict)
            for number in range(3):
                monitor = Monitor(f"p-{number}", lambda _: None)
                await connect(monitor, qemu)
                await monitor.close()
            assert set(logging.Logger.manager.loggerDict) == loggers

    run(main())


# Descriptors


def test_giving_a_socket(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    await talk.monitor.give("colo", theirs.fileno(), PATIENCE_S)
                with socket.socket(fileno=os.dup(talk.qemu.taken["colo"])) as taken:
                    taken.sendall(b"from QEMU")
                    assert ours.recv(100) == b"from QEMU"
                    ours.sendall(b"to QEMU")
                    assert taken.recv(100) == b"to QEMU"
            assert talk.qemu.names == ["getfd"]

    run(main())


def test_giving_when_qemu_refuses(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:

            def refuse(_: object) -> object:
                raise RefusalError("Parameter 'fdname' expects a name not starting with a digit")

            talk.qemu.answers["getfd"] = refuse
            with socket.socket() as channel, pytest.raises(ScriptError, match="getfd") as caught:
                await talk.monitor.give("7", channel.fileno(), PATIENCE_S)
            assert caught.value.failure is Failure.REFUSED

    run(main())


def test_giving_to_a_silent_qemu(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            with socket.socket() as channel, pytest.raises(ScriptError) as caught:
                await talk.monitor.give("colo", channel.fileno(), SHORT_S)
            assert caught.value.failure is Failure.SILENT

    run(main())


def test_giving_to_a_qemu_that_just_died(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.main.close_client()  # and no time for the loop to notice
            with socket.socket() as channel, pytest.raises(ScriptError) as caught:
                await talk.monitor.give("colo", channel.fileno(), PATIENCE_S)
            assert caught.value.failure is Failure.LOST

    run(main())


@pytest.mark.parametrize("script", [Script.ENTER_COLO, Script.ACCEPT_COLO])
@pytest.mark.parametrize("closed", [True, False])
def test_giving_a_channel_that_is_gone(
    run: Loop, folder: Path, script: Script, closed: bool
) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            channel = socket.socket() if closed else None
            if channel is not None:
                channel.close()
            given = {} if channel is None else {"colo": channel}
            with pytest.raises(ScriptError, match="the channel is closed") as caught:
                await conduct(script, PLAN, PATIENCE_S, talk.monitor, given, lambda: False, print)
            assert caught.value.failure is Failure.BROKEN
            assert "migrate" not in talk.qemu.names
            assert "migrate-incoming" not in talk.qemu.names

    run(main())


# The last words of a dying QEMU


@pytest.mark.parametrize("count", [1, 2, 200])
def test_draining_takes_in_what_was_written_before_the_end(
    run: Loop, folder: Path, count: int
) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            for number in range(count):
                talk.qemu.event("SHUTDOWN", number)
            talk.qemu.main.close_client()
            assert talk.events == []
            await talk.monitor.drain(PATIENCE_S)
            assert [event.data for event in talk.events] == list(range(count))

    run(main())


@pytest.mark.parametrize("count", [1, 2, 200])
def test_a_command_to_the_dead_does_not_cost_its_last_words(
    run: Loop, folder: Path, count: int
) -> None:
    """The write that fails ends the connection, with all that nobody has read yet."""

    async def main() -> None:
        async with talking(folder) as talk:
            for number in range(count):
                talk.qemu.event("SHUTDOWN", number)
            talk.qemu.main.close_client()
            talk.qemu.oob.close_client()
            assert await talk.failing("query-status") is Failure.LOST
            await talk.monitor.drain(PATIENCE_S)
            assert [event.data for event in talk.events] == list(range(count))

    run(main())


def test_draining_ends_though_qemu_talks_on(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            assert talk.qemu.main.client is not None
            flood = Flood(talk.qemu.main)
            try:
                await eventually(lambda: talk.events, "the flood")
                await talk.monitor.drain(SHORT_S)
            finally:
                flood.end()

    run(main())


class Flood:
    """Writes events from a thread, without a pause."""

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.client is not None
        self._connection = endpoint.client.connection.dup()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while not self._ended.is_set():
            try:
                self._connection.send(b'{"event": "NOISE"}\r\n')
            except BlockingIOError:
                continue
            except OSError:
                break

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()
