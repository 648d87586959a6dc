"""Outlives the daemon: kills a QEMU that holds output and that nobody has looked after for long.

A filter-buffer that its daemon leaves alone lets go by itself after 4000 s of guest time (docs/
qemu.md, 4). By then the other node may long speak for the VM in a newer generation. So each QEMU
has a guard, a process of its own, that kills it well before.

The file `held` in the run's folder says that output is held; the daemon touches it as its pump
goes on. The guard needs no clock but its own: what counts is that the file's time changes. One
without it is left alone: it speaks by right, or its output goes to a sink.

Standard library only: a process for each VM should be small.
"""

import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path

LOOK_S = 1.0
LOCK_TRIES, LOCK_S = 20, 0.05
GUARDED = 3
"""Exit status if the QEMU has a guard already."""


def guard(held: Path, pidfd: int, after_s: float, look_s: float = LOOK_S) -> bool:
    """Watch until the QEMU of `pidfd` is gone; return whether that was this guard's doing.

    :param after_s: how long `held` may stay unchanged, seconds.
    """
    gone = select.poll()
    gone.register(pidfd, select.POLLIN)
    seen, since = None, time.monotonic()
    while not gone.poll(look_s * 1000):
        stamp = _stamp(held)
        if stamp is None or stamp != seen:
            seen, since = stamp, time.monotonic()
        elif time.monotonic() - since >= after_s:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            sys.stderr.write(f"guard: nobody looked after this QEMU for {after_s:g} s: killed\n")
            return True
    return False


def _stamp(held: Path) -> int | None:
    try:
        return held.stat().st_mtime_ns
    except OSError:
        return None


def is_guarded(lock: Path) -> bool:
    """Return whether a guard holds `lock`."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _locked(lock: int) -> bool:
    """Take the lock; whoever only looks whether it is taken holds it for a moment."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_S)
        else:
            return True
    return False


def main(directory: str, pid: str, after_s: str) -> int:
    """Guard process `pid`, which must have `directory` on its command line."""
    run = Path(directory)
    lock = os.open(run / "guard.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(lock):
        return GUARDED
    try:
        pidfd = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return 0
    # The number may have gone to another process before it was pinned down.
    if os.fsencode(directory.replace(",", ",,")) in Path(f"/proc/{pid}/cmdline").read_bytes():
        guard(run / "held", pidfd, float(after_s))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
