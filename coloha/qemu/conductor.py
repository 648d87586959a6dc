"""Runs scripts on a QEMU: the shell around `scripts.py`."""

import asyncio
import socket
from collections.abc import Callable

from coloha.core.actions import Script
from coloha.core.events import Failure
from coloha.qemu.qmp import Monitor
from coloha.qemu.scripts import (
    ANSWER_S,
    Call,
    Give,
    Look,
    Op,
    Pause,
    Plan,
    ScriptError,
    Tape,
    Until,
    write,
)


async def conduct(
    script: Script,
    plan: Plan,
    timeout_s: float,
    monitor: Monitor,
    channel: socket.socket | None,
    look: Callable[[], bool],
) -> object:
    """Run a script to its end and return its result.

    :param channel: the session's connection, for scripts that give it to QEMU.
    :param look: does what `Look` says.
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
                outcome = await _perform(op, tape, monitor, channel, look)
            except ScriptError as error:
                failure = error
    except StopIteration as end:
        return end.value
    finally:
        steps.close()
        monitor.end(tape)


async def _perform(
    op: Op,
    tape: Tape,
    monitor: Monitor,
    channel: socket.socket | None,
    look: Callable[[], bool],
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
        case Give(fdname):
            if channel is None or channel.fileno() < 0:
                raise ScriptError(Failure.BROKEN, "the channel is closed")
            await monitor.give(fdname, channel.fileno(), ANSWER_S)
            return None
