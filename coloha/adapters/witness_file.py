"""A witness in a directory that both nodes reach: local for two daemons on one host, or on NFS.

One JSON file per pair, changed under a lock by write, fsync, rename. All of it runs in one thread
per directory, in the order asked, so a read that returns has seen the end of every earlier swap;
the event loop never waits for the file system. If the file system hangs, each call ends with its
deadline, and while the thread is stuck, further ones fail at once instead of queueing up.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from coloha.adapters.witness import WitnessError, decode_record, encode_record
from coloha.core.record import Record, swap_problem
from coloha.durable import NotSyncedError, replace_file

LOCK_POLL_S = 0.002
MAX_RECORD_BYTES = 64 * 1024

T = TypeVar("T")


class FileWitness:
    """See the module's docstring."""

    def __init__(self, directory: Path, timeout_s: float) -> None:
        self._directory = directory
        self._timeout_s = timeout_s
        self._thread = _Thread("witness")
        self._stuck: Future[object] | None = None

    async def read(self, pair: str) -> Record | None:
        """See `Witness.read`."""
        return await self._in_thread(lambda: self._load(pair), unknown=False)

    async def swap(self, pair: str, expected: Record | None, new: Record, by: str) -> Record | None:
        """See `Witness.swap`."""
        # Half of the time is for the lock, so that waiting in vain for it is known to be that.
        deadline = time.monotonic() + self._timeout_s / 2
        return await self._in_thread(
            lambda: self._swap(pair, expected, new, by, deadline), unknown=True
        )

    async def probe(self, pair: str) -> None:
        """See `Witness.probe`: lock and write, as a swap does, and leave nothing behind."""
        deadline = time.monotonic() + self._timeout_s / 2
        await self._in_thread(lambda: self._probe(pair, deadline), unknown=False)

    async def close(self) -> None:
        """See `Witness.close`."""
        self._thread.close()

    async def _in_thread(self, work: Callable[[], T], *, unknown: bool) -> T:
        if self._stuck is not None and not self._stuck.done():
            raise WitnessError(f"{self._directory} hangs: the file system does not answer")

        def answering() -> T:
            try:
                return work()
            except WitnessError:
                raise
            except Exception as error:  # whatever it is, the one who asks must get an answer
                reason = f"{self._directory}: {type(error).__name__}: {error}"
                raise WitnessError(reason, unknown=unknown) from error

        future = self._thread.submit(answering)
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(_ignore)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            if future.cancel():
                unknown = False  # it never began
            else:
                self._stuck = future  # type: ignore[assignment]
            message = f"{self._directory} did not answer within {self._timeout_s:g} s"
            raise WitnessError(message, unknown=unknown) from None

    def _load(self, pair: str) -> Record | None:
        path = self._directory / f"{pair}.json"
        try:
            os.scandir(self._directory).close()
            data = path.read_bytes()[:MAX_RECORD_BYTES]
        except FileNotFoundError:
            if self._directory.is_dir():
                return None
            raise WitnessError(f"{self._directory} does not exist: is it mounted?") from None
        except OSError as error:
            raise WitnessError(f"{path}: {error.strerror}") from error
        try:
            return decode_record(data)
        except ValueError as error:
            raise WitnessError(f"{path} is damaged ({error}): see the runbook") from error

    def _swap(
        self, pair: str, expected: Record | None, new: Record, by: str, deadline: float
    ) -> Record | None:
        with self._locked(pair, deadline):
            current = self._load(pair)
            if current != expected:
                return current
            problem = swap_problem(current, new, by)
            if problem is not None:
                raise WitnessError(problem)
            try:
                replace_file(self._directory / f"{pair}.json", encode_record(new))
            except NotSyncedError as error:
                raise WitnessError(f"{error}", unknown=True) from error
            except OSError as error:
                raise WitnessError(f"{self._directory}: {error.strerror}") from error
            return new

    def _probe(self, pair: str, deadline: float) -> None:
        name = f"{pair}.probe"
        with self._locked(name, deadline):
            probe = self._directory / f"{name}.json"
            try:
                replace_file(probe, b"written by coloha check\n")
                probe.unlink()
                probe.with_suffix(".lock").unlink()
            except (OSError, NotSyncedError) as error:
                raise WitnessError(f"{self._directory} cannot be written: {error}") from error

    @contextlib.contextmanager
    def _locked(self, pair: str, deadline: float) -> Iterator[None]:
        path = self._directory / f"{pair}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise WitnessError(f"{path}: {error.strerror}") from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise WitnessError(f"{path} is locked by the other node") from None
                    time.sleep(LOCK_POLL_S)
                except OSError as error:
                    raise WitnessError(f"{path} cannot be locked: {error.strerror}") from error
            yield
        finally:
            os.close(descriptor)


class _Thread:
    """Does one thing after the other; started at once, since later memory may be short.

    An executor's threads keep the process from ending, which a hanging file system must not.
    """

    def __init__(self, name: str) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = (
            queue.SimpleQueue()
        )
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done."""
        future: Future[T] = Future()
        self._waiting.put((future, work))
        return future

    def close(self) -> None:
        """Do nothing further."""
        self._closed = True
        self.submit(int)

    def _run(self) -> None:
        while True:
            future, work = self._waiting.get()
            if self._closed:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)


def _ignore(answer: asyncio.Future[Any]) -> None:
    """An error that comes when nobody waits for it any more is no news to the log."""
    if not answer.cancelled():
        answer.exception()
