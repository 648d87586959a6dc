"""Runs a test on an event loop and sees that it leaves nothing behind."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a test waits for what must happen; only a failing one waits so long."""

_SETTLE_ROUNDS = 400
_SETTLE_S = 0.005

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Loop:
    """Calling it runs a coroutine to its end, on a fresh loop of one kind.

    It fails if the coroutine leaves a task, a descriptor, or an error that nobody looked at.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, main: Coroutine[Any, Any, T]) -> T:
        noise: list[str] = []
        with asyncio.Runner(loop_factory=FACTORIES[self.kind]) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: noise.append(str(context)))
            result = runner.run(_leaving_nothing(main))
            gc.collect()  # an error that nobody retrieved is told when its future goes
        gc.collect()
        assert not noise, noise
        return result


async def _leaving_nothing(main: Coroutine[Any, Any, T]) -> T:
    await _warm_up()
    before = descriptors()
    result = await main
    for _ in range(_SETTLE_ROUNDS):
        if not others() and descriptors() <= before:
            break
        await asyncio.sleep(_SETTLE_S)
    assert not others(), others()
    assert descriptors() <= before, [f"{key}: {value}" for key, value in opened().items()]
    return result


async def _warm_up() -> None:
    """Make the loop open what it keeps until its end: libuv's spare descriptor."""
    near, far = socket.socketpair()
    far.close()
    _, writer = await asyncio.open_connection(sock=near)
    writer.close()
    await writer.wait_closed()


def others() -> set[asyncio.Task[Any]]:
    """All tasks of this loop but the running one."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def opened() -> dict[int, str]:
    """The descriptors of this process, and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found[int(entry.name)] = str(entry.readlink())
    return found


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(opened())


async def eventually(reached: Callable[[], object], what: str) -> None:
    """Wait until `reached()` is true."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what}: it did not happen") from None
