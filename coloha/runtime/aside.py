"""A thread with an event loop of its own, for what must never be in the pumps' way.

What runs here may wait for DNS, for a TLS handshake, for a program that starts: the daemon's event
loop waits for none of it, neither while it works nor, beyond a deadline, when it ends.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)

AGAIN_S = 5.0
"""How long after a failure that is a bug the work begins anew."""

Work = Callable[[], Coroutine[Any, Any, None]]
"""What is done until it is cancelled."""


class Aside:
    """Runs coroutines in the thread from `start` to `stop`."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._main: asyncio.Task[None] | None = None
        # Daemonic: a thread that hangs in DNS must not keep the process.
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Threads())
        self._thread.start()

    def call(self, callback: Callable[[], object]) -> None:
        """Have `callback` called in the thread, if it still runs."""
        if self._loop is None:
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def stop(self, seconds: float) -> bool:
        """Cancel what runs, and wait so long for its end; return whether it ended."""
        if not self._thread.is_alive():
            return True
        self.call(self._cancel)
        return self._ended.wait(seconds)

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        try:
            self._main = loop.create_task(self._all())
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(self._main)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            self._ended.set()

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    async def _all(self) -> None:
        tasks = [asyncio.create_task(_ever(work)) for work in self._works]
        try:
            await asyncio.wait(tasks)
        finally:  # not `gather`: it ends with the first of them
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _ever(work: Work) -> None:
    while True:
        try:
            await work()
        except Exception:
            # Telling must not end because one thing could not be told.
            log.exception("what runs aside failed")
        await asyncio.sleep(AGAIN_S)


class _Threads(ThreadPoolExecutor):
    """A thread for each call, which nobody waits for at the end."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See `Executor.submit`."""
        future: Future[Any] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*arguments, **named)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=call, name="aside-call", daemon=True).start()
        return future
