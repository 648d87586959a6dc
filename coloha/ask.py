"""Asking a program that answers and ends."""

import asyncio
import contextlib
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program wrote on its two outputs, and its exit code (negative: the signal)."""

    code: int
    output: bytes
    complaint: bytes


async def ask(argv: tuple[str, ...], text: str, seconds: float) -> Answer:
    """Run a program with `text` as its standard input; after `seconds` it is killed.

    :raises OSError: if it cannot be started.
    :raises TimeoutError: if it did not end in time.
    """
    # Not a pipe: a program that ends without reading breaks it while asyncio writes, and uvloop
    # then raises RuntimeError where asyncio has nothing to say.
    with os.fdopen(os.memfd_create("stdin"), "wb") as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        process = await asyncio.create_subprocess_exec(*argv, stdin=stdin, stdout=-1, stderr=-1)
    try:
        async with asyncio.timeout(seconds):
            output, complaint = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        code = await process.wait()
    return Answer(code, output, complaint)
