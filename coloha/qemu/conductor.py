"""Runs scripts on a QEMU: the shell around `scripts.py`."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping

from coloha.core.actions import Script
from coloha.core.events import Failure
from coloha.qemu.qmp import Monitor
from coloha.qemu.scripts import Plan, cut, write
from coloha.qemu.steps import (
    ANSWER_S,
    Call,
    Give,
    Look,
    Op,
    Pause,
    Progress,
    Report,
    ScriptError,
    Tape,
    Until,
)


async def conduct(
    script: Script,
    plan: Plan,
    timeout_s: float,
    monitor: Monitor,
    connections: Mapping[str, socket.socket],
    look: Callable[[], bool],
    report: Callable[[Progress], None],
) -> object:
    """Run a script to its end and return its result.

    :param connections: the session's, by name, for scripts that give them to QEMU.
    :param look: does what `Look` says.
    :param report: does what `Report` says.
    :raises ScriptError: if it does not succeed.
    """
    tape = monitor.begin()
    steps = write(script, plan, timeout_s, tape)
    outcome: object = None
    failure: ScriptError | None = None
    try:
        while True:
            op = steps.throw(failure) if failure is not None else steps.send(outcome)
            failure = None
            try:
                outcome = await _perform(op, tape, monitor, connections, look, report)
            except ScriptError as error:
                failure = error
    except StopIteration as end:
        return end.value
    finally:
        steps.close()
        monitor.end(tape)


async def cut_off(monitor: Monitor) -> None:
    """Cut the migration's connection, beside the script that may be under way: out of band.

    :raises ScriptError: if that does not succeed.
    """
    steps, outcome = cut(), None
    with contextlib.closing(steps), contextlib.suppress(StopIteration):
        while True:
            op = steps.send(outcome)
            assert isinstance(op, Call)
            assert all(command.oob for command in op.commands)
            outcome = await monitor.call(op.commands, op.timeout_s)


async def _perform(
    op: Op,
    tape: Tape,
    monitor: Monitor,
    connections: Mapping[str, socket.socket],
    look: Callable[[], bool],
    report: Callable[[Progress], None],
) -> object:
    match op:
        case Call(commands, timeout_s):
            return await monitor.call(commands, timeout_s)
        case Until(names, timeout_s, what):
            return await monitor.until(tape, names, timeout_s, what)
        case Pause(seconds):
            await asyncio.sleep(seconds)
            return None
        case Look():
            return look()
        case Report(progress):
            report(progress)
            return None
        case Give(fdname):
            connection = connections.get(fdname)
            if connection is None or connection.fileno() < 0:
                raise ScriptError(Failure.BROKEN, "the channel is closed")
            await monitor.give(fdname, connection.fileno(), ANSWER_S)
            return None
