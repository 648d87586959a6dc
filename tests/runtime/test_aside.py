"""What runs aside of the daemon's event loop."""

import asyncio
import threading
import time

import pytest

from coloha.runtime import aside as module
from coloha.runtime.aside import Aside
from tests.adapters.support import PATIENCE_S
from tests.runtime.tellers_support import aside, until


def test_the_end_is_the_end_of_all() -> None:
    ended = []

    async def quick() -> None:
        await asyncio.sleep(PATIENCE_S)

    async def slow() -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            await asyncio.sleep(0.2)
            ended.append(True)

    thread = Aside([quick, slow])
    thread.start()
    time.sleep(0.05)
    assert thread.stop(PATIENCE_S)
    assert ended == [True]


def test_what_fails_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    tries = []

    async def work() -> None:
        tries.append(True)
        raise ZeroDivisionError

    with aside(work):
        until(lambda: len(tries) > 2, "three tries")
    assert "what runs aside failed" in caplog.text


def test_a_thread_that_hangs_holds_up_nobody() -> None:
    """As a resolver may: neither the end of the loop nor that of the process waits for it."""
    begun, free = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        free.wait(PATIENCE_S)

    async def work() -> None:
        await asyncio.get_running_loop().run_in_executor(None, hang)

    thread = Aside([work])
    thread.start()
    assert begun.wait(PATIENCE_S)
    (hanging,) = [each for each in threading.enumerate() if each.name == "aside-call"]
    assert hanging.daemon
    assert thread.stop(PATIENCE_S)
    assert hanging.is_alive()
    free.set()
    hanging.join()


def test_stopping_what_never_started() -> None:
    thread = Aside([])
    assert thread.stop(0)
    thread.call(lambda: None)
