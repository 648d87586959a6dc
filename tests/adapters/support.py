"""Both event loops, and what tests of the adapters share."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import pytest
import uvloop

from coloha.core.events import PeerState
from coloha.core.phases import Phase

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long anything that must happen may take on a machine that is busy with other tests."""

KEY = b"k" * 32
OTHER_KEY = b"o" * 32

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Runner(Protocol):
    """Runs a coroutine to its end on a fresh event loop, and returns what it returns."""

    def __call__(self, main: Coroutine[Any, Any, T]) -> T: ...


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Both event loops in turn. What either complains about (exceptions of tasks that nobody
    looked at, callbacks that failed) fails the test.
    """
    complaints: list[dict[str, Any]] = []

    def runner(main: Coroutine[Any, Any, T]) -> T:
        async def watched() -> T:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            return await main

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as loop:
            return loop.run(watched())

    yield runner
    gc.collect()
    assert not complaints, complaints


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def ticking(ticks: int = 10) -> AsyncIterator[None]:
    """The body must leave the event loop free: `ticks` rounds of it happen before the body ends.

    The body must take longer than `ticks` milliseconds.
    """
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.001)
            count += 1

    ticker = asyncio.create_task(tick())
    try:
        yield
        assert count >= ticks, f"the event loop was blocked: {count} ticks"
    finally:
        ticker.cancel()


def state(phase: Phase = Phase.SOLO, **changes: Any) -> PeerState:
    """What a heartbeat says of a pair; made up, every field unlike the others."""
    fields: dict[str, Any] = {
        "phase": phase,
        "generation": 3,
        "owner": True,
        "session": 5,
        "gave_up": None,
        "following": False,
        "colo_exited": False,
        "committed": 7,
        "pulse": 11,
        "echo": 13,
    }
    return PeerState(**{**fields, **changes})
