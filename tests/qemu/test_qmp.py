"""The two QMP connections: what commands come to, and what the tape holds."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from coloha.core.actions import Script
from coloha.core.commit import Message
from coloha.core.events import Failure
from coloha.qemu.conductor import conduct
from coloha.qemu.qmp import Monitor
from coloha.qemu.scripts import Plan
from coloha.qemu.steps import MAX_TAPE, Command, ScriptError
from tests.qemu.fake import NoReplyError, RefusalError
from tests.qemu.loops import PATIENCE_S, Loop, eventually
from tests.qemu.talk import talking

SHORT_S = 0.05
"""How long to wait for what must not come."""


def names(messages: list[Message]) -> list[str]:
    """A stream in short: replies end with a colon."""
    return [f"{message.name}:" if message.reply else message.name for message in messages]


# Commands and replies


def test_commands_reach_qemu_in_order_before_any_reply_is_needed(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            call = asyncio.create_task(talk.call("stop", "qom-set", "qom-set", "cont"))
            client = talk.qemu.main.client
            assert client is not None
            await eventually(lambda: b"".join(client.reads).count(b'"coloha-') == 4, "4 commands")
            assert talk.qemu.executed == []
            talk.qemu.go_on()
            replies = await call
            assert [reply.name for reply in replies] == ["stop", "qom-set", "qom-set", "cont"]
            assert talk.qemu.names == ["stop", "qom-set", "qom-set", "cont"]

    run(main())


def test_each_reply_goes_to_its_own_command(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.answers["one"] = lambda _: 1
            talk.qemu.answers["two"] = refuse("no such thing")
            talk.qemu.answers["three"] = lambda arguments: arguments
            commands = (Command("one"), Command("two"), Command("three", {"x": [None, "é"]}))
            one, two, three = await talk.monitor.call(commands, PATIENCE_S)
            assert (one.data, one.error) == (1, None)
            assert two.error == "no such thing"
            assert three.data == {"x": [None, "é"]}

    run(main())


def refuse(text: str) -> Any:
    def answer(arguments: dict[str, Any]) -> object:
        raise RefusalError(text)

    return answer


def test_output_in_pieces_is_put_together(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.main.piece = 7
            talk.qemu.answers["stop"] = lambda _: talk.qemu.event("STOP", {"why": '{"\\}'})
            (reply,) = await talk.call("stop")
            assert reply.error is None
            assert talk.events[0].data == {"why": '{"\\}'}

    run(main())


def test_a_silent_qemu(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            assert await talk.failing("stop", "cont", timeout_s=SHORT_S) is Failure.SILENT
            talk.qemu.go_on()
            assert (await talk.call("query-status"))[0].error is None

    run(main())


def test_a_lost_connection_ends_what_waits_on_it(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            call = asyncio.create_task(talk.failing("stop", "cont"))
            tape = talk.monitor.begin()
            until = asyncio.create_task(
                talk.monitor.until(tape, frozenset({"RESUME"}), PATIENCE_S, "it")
            )
            await asyncio.sleep(0)
            await eventually(lambda: talk.qemu.main.client, "the client")
            talk.qemu.main.close_client()
            assert await call is Failure.LOST
            with pytest.raises(ScriptError) as caught:
                await until
            assert caught.value.failure is Failure.LOST
            assert talk.monitor.lost.is_set()
            assert await talk.failing("stop") is Failure.LOST

    run(main())


def test_a_connection_lost_in_the_middle_of_a_message(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:

            def half(_: object) -> object:
                client = talk.qemu.main.client
                assert client is not None
                talk.qemu.main.write_bytes(client, b'{"return": {}, "id": "colo')
                talk.qemu.main.close_client()
                raise NoReplyError

            talk.qemu.answers["stop"] = half
            assert await talk.failing("stop") is Failure.LOST
            assert talk.events == []

    run(main())


def test_a_call_after_unanswered_ones_learns_of_the_loss(run: Loop, folder: Path) -> None:
    """Late replies of a call that was given up must not hide from the next that QEMU is gone."""

    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            await talk.failing("stop", "qom-set", "cont", timeout_s=SHORT_S)
            cut = asyncio.create_task(talk.call("stop", "qom-set"))
            await asyncio.sleep(SHORT_S)
            cut.cancel()
            talk.qemu.go_on()
            await eventually(lambda: len(talk.qemu.executed) == 5, "the late replies")
            await talk.call("query-status")
            talk.qemu.held = True
            call = asyncio.create_task(talk.failing("query-status"))
            await asyncio.sleep(SHORT_S)
            talk.qemu.main.close_client()
            assert await call is Failure.LOST

    run(main())


def test_unanswered_calls_leave_nothing_in_the_client(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.answers["stop"] = no_reply
            for _ in range(20):
                await talk.failing("stop", "stop", "stop", timeout_s=0.002)
            assert kept(talk.monitor) == []
            await talk.call("query-status")

    run(main())


def no_reply(arguments: dict[str, Any]) -> object:
    raise NoReplyError


def kept(monitor: Monitor) -> list[object]:
    """What the two clients still wait for or hold, down in the library."""
    held: list[object] = []
    for client in (monitor._main, monitor._oob):
        held += client._pending.values()
        held += [client.events.history, client.events._queue] if len(client.events.history) else []
    return held


def test_oob_is_answered_while_the_main_loop_hangs(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            call = asyncio.create_task(talk.call("query-status"))
            await asyncio.sleep(SHORT_S)
            (reply,) = await talk.monitor.call((Command("query-yank", oob=True),), PATIENCE_S)
            assert reply.error is None
            assert not call.done()
            assert [(done.name, done.oob) for done in talk.qemu.executed] == [("query-yank", True)]
            talk.qemu.go_on()
            await call

    run(main())


# The tape


def test_replies_and_events_are_on_the_tape_in_wire_order(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            qemu = talk.qemu

            def stop(_: object) -> object:
                qemu.event("STOP")
                qemu.afterwards("AFTER_STOP")
                return {}

            qemu.answers["stop"] = stop
            qemu.answers["trigger"] = lambda _: qemu.afterwards("RESUME", {"n": 1})
            tape = talk.monitor.begin()
            await talk.call("stop", "set", "trigger")
            await talk.monitor.until(tape, frozenset({"RESUME"}), PATIENCE_S, "RESUME")
            expected = ["STOP", "stop:", "AFTER_STOP", "set:", "trigger:", "RESUME"]
            assert names(tape.messages) == expected
            assert tape.messages[-1].data == {"n": 1}
            times = [message.at for message in tape.messages]
            assert times == sorted(times)
            assert names(talk.events) == ["STOP", "AFTER_STOP", "RESUME"]

    run(main())


def test_a_late_reply_is_not_on_the_next_tape(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            talk.monitor.begin()
            await talk.failing("stop", "cont", timeout_s=SHORT_S)
            tape = talk.monitor.begin()
            call = asyncio.create_task(talk.call("query-status"))
            await asyncio.sleep(SHORT_S)
            talk.qemu.go_on()
            await call
            assert talk.qemu.names == ["stop", "cont", "query-status"]
            assert names(tape.messages) == ["query-status:"]

    run(main())


def test_oob_replies_and_events_of_the_second_connection_are_not_on_the_tape(
    run: Loop, folder: Path
) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            tape = talk.monitor.begin()
            talk.qemu.event("STOP")
            await talk.monitor.call((Command("query-yank", oob=True),), PATIENCE_S)
            await talk.call("query-status")
            assert names(tape.messages) == ["STOP", "query-status:"]
            assert names(talk.events) == ["STOP"]

    run(main())


def test_waiting_for_an_event(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            tape = talk.monitor.begin()
            both = frozenset({"STOP", "RESUME"})
            for name in ("NOISE", "RESUME", "NOISE", "STOP"):
                talk.qemu.event(name)
            for expected in ("RESUME", "STOP"):
                event = await talk.monitor.until(tape, both, PATIENCE_S, "it")
                assert event.name == expected
            with pytest.raises(ScriptError) as caught:
                await talk.monitor.until(tape, both, SHORT_S, "the third")
            assert caught.value.failure is Failure.STALLED
            assert "the third" in caught.value.reason

    run(main())


def test_a_reply_named_like_an_event_is_none(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            tape = talk.monitor.begin()
            await talk.call("RESUME")
            with pytest.raises(ScriptError) as caught:
                await talk.monitor.until(tape, frozenset({"RESUME"}), SHORT_S, "it")
            assert caught.value.failure is Failure.STALLED

    run(main())


def test_a_script_is_told_of_the_event_that_came_before_it_waited(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.answers["migrate"] = lambda _: talk.qemu.event("RESUME")
            tape = talk.monitor.begin()
            await talk.call("migrate")
            await talk.monitor.until(tape, frozenset({"RESUME"}), PATIENCE_S, "it")

    run(main())


# Memory


def test_many_events_leave_no_growth(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            plan = Plan((), return_path=True)
            await conduct(Script.CHECK, plan, PATIENCE_S, talk.monitor, {}, lambda: False, print)
            for number in range(50_000):
                talk.qemu.event("RESUME", number)
            await eventually(lambda: len(talk.events) == 50_000, "all events")
            assert [event.data for event in talk.events] == list(range(50_000))
            assert kept(talk.monitor) == []
            recorded = talk.monitor._tape
            assert recorded is None or recorded.messages == []

    run(main())


def test_the_tape_is_bounded_while_a_script_waits(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            tape = talk.monitor.begin()
            until = asyncio.create_task(
                talk.monitor.until(tape, frozenset({"RESUME"}), PATIENCE_S, "it")
            )
            for _ in range(3 * MAX_TAPE):
                talk.qemu.event("NOISE")
            with pytest.raises(ScriptError) as caught:
                await until
            assert caught.value.failure is Failure.STALLED
            await eventually(lambda: len(talk.events) == 3 * MAX_TAPE, "all events")
            assert len(tape.messages) <= MAX_TAPE + 1

    run(main())


def test_the_tape_is_bounded_while_a_script_calls(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            tape = talk.monitor.begin()
            call = asyncio.create_task(talk.call("stop"))
            for _ in range(2 * MAX_TAPE):
                talk.qemu.event("NOISE")
            await eventually(lambda: len(talk.events) == 2 * MAX_TAPE, "all events")
            assert len(tape.messages) <= MAX_TAPE + 1
            talk.qemu.go_on()
            await call

    run(main())


def test_the_answer_is_the_sign_of_life(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            talk.qemu.held = True
            before = talk.monitor.heard_at
            await talk.failing("query-status", timeout_s=SHORT_S)
            assert talk.monitor.heard_at == before
            talk.qemu.go_on()
            await eventually(lambda: talk.monitor.heard_at > before, "a sign of life")

    run(main())


def test_requests_have_the_form_that_qemu_takes(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with talking(folder) as talk:
            client = talk.qemu.main.client
            assert client is not None
            client.reads.clear()
            await talk.call("query-status", "query-status")
            text = b"".join(client.reads).decode().replace("}{", "}\n{")
            requests = [json.loads(line) for line in text.splitlines()]
            assert [sorted(request) for request in requests] == [["arguments", "execute", "id"]] * 2
            assert len({request["id"] for request in requests}) == 2

    run(main())
