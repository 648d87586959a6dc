"""Asking a program that answers and ends."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping
from dataclasses import dataclass

LONGEST_BYTES = 1024 * 1024
"""How much of the end of an output is kept."""
REAP_S = 1.0
"""How long a killed program may take to be gone; one that hangs in the kernel is left to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program wrote on its two outputs, and its exit code (negative: the signal)."""

    code: int
    output: bytes
    complaint: bytes


class _Output:
    """A pipe whose other end a program writes to, and the end of what it wrote.

    Read until the program ends, not until the pipe does: what the program leaves running may hold
    it open.
    """

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._kept = bytearray()
        asyncio.get_running_loop().add_reader(self._read_end, self._read)

    def _read(self) -> int:
        """Take in what is there; return how much it was."""
        with contextlib.suppress(BlockingIOError):
            piece = os.read(self._read_end, LONGEST_BYTES)
            self._kept += piece
            del self._kept[:-LONGEST_BYTES]
            if not piece:
                asyncio.get_running_loop().remove_reader(self._read_end)
            return len(piece)
        return 0

    def close(self) -> bytes:
        """Return what was kept."""
        rest = LONGEST_BYTES  # a pipe holds less; who writes for ever is not read for ever
        while rest > 0 and (count := self._read()):
            rest -= count
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        return bytes(self._kept)


async def ask(
    argv: tuple[str, ...],
    text: str,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run a program with `text` as its standard input, in a session of its own.

    After `seconds` it is killed, and with it all that it started in its process group.

    :param environment: instead of this process's.
    :raises OSError: if it cannot be started.
    :raises TimeoutError: if it did not end in time.
    """
    output, complaint = _Output(), _Output()
    try:
        process = await _start(argv, text, output.write_end, complaint.write_end, environment)
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        finally:
            await _end(process)
    finally:
        said, complained = output.close(), complaint.close()
    return Answer(code, said, complained)


async def _start(
    argv: tuple[str, ...],
    text: str,
    output: int,
    complaint: int,
    environment: Mapping[str, str] | None,
) -> Process:
    # Not a pipe: a program that ends without reading breaks it while asyncio writes, and uvloop
    # then raises RuntimeError where asyncio has nothing to say.
    try:
        with os.fdopen(os.memfd_create("stdin"), "wb") as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=stdin,
                stdout=output,
                stderr=complaint,
                env=environment,
                start_new_session=True,
            )
    finally:
        os.close(output)
        os.close(complaint)


async def _end(process: Process) -> None:
    """Kill a program that has not ended by itself."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REAP_S):
            await process.wait()
