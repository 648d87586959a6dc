"""Small programs that tests start in QEMU's place."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from coloha.qemu.process import ChildLauncher, Process
from tests.qemu.loops import PATIENCE_S

SLEEP = "import time; time.sleep(3600)"

ENDS = "pass"

THREADS = """
import pathlib, threading, time
def until(name):
    while not pathlib.Path({folder!r}, name).exists():
        time.sleep(0.002)
threads = [threading.Thread(target=until, args=(f"end-{{n}}",)) for n in range(3)]
for thread in threads:
    thread.start()
pathlib.Path({folder!r}, "ready").touch()
for n, thread in enumerate(threads):
    thread.join()
    pathlib.Path({folder!r}, f"ended-{{n}}").touch()
time.sleep(3600)
"""
"""Three threads; number n ends when the file end-n appears, and then makes ended-n."""

BIG = """
import mmap, pathlib, threading, time
def fill(start):
    for place in range(start, len(memory), 4 * 4096):
        memory[place] = 1
memory = mmap.mmap(-1, {megabytes} << 20)
memory.madvise(mmap.MADV_NOHUGEPAGE)
threads = [threading.Thread(target=fill, args=(n * 4096,)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for thread in range(4):
    threading.Thread(target=time.sleep, args=(3600,)).start()
pathlib.Path({folder!r}, "ready").touch()
"""
"""Fills that much memory, page by page, then has four threads that wait."""


@contextlib.contextmanager
def started(
    program: str, folder: Path, *words: str, argv: list[str] | None = None
) -> Iterator[Process]:
    """Start a Python program as QEMU is started; see it dead in the end."""
    text = program.format(folder=str(folder)) if "{folder" in program else program
    command = argv if argv is not None else [sys.executable, "-c", text, *words]
    process = ChildLauncher().start(command, folder / "stderr.log")
    pid = process.pid
    try:
        yield process
    finally:
        process.close()
        bury(pid)


def bury(pid: int) -> None:
    """Kill a child and collect it, if that has not been done."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def patiently(reached: Callable[[], object], what: str) -> None:
    """Wait until `reached()` is true, without a loop."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end, f"{what}: it did not happen"
        time.sleep(0.002)


def state_of(pid: int) -> str:
    """R, S, Z (zombie) and so on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
