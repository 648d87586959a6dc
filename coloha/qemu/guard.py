"""Outlives the daemon: kills a QEMU before the output that it holds comes out by itself.

A filter-buffer that nobody switches lets go after 4000 s of guest time (docs/qemu.md, 4). By then
the other node may long speak for the VM in a newer generation. So each QEMU has a guard, a process
of its own, that kills it well before.

The file `held` in the run's folder says that output is held. A QEMU without it is left alone: it
speaks by right, or its output goes to a sink. The daemon touches `held` as its pump goes on: one
that nobody looks after is killed soon. And it notes in `switched` when all buffers were last
switched: its modification time is CLOCK_MONOTONIC, which guard and daemon read alike. That somebody
is there does not help a QEMU whose buffers nobody switches.

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
SWITCHED = "switched"
LOCK_TRIES, LOCK_S = 20, 0.05
UNSWITCHED_S = 3600.0
"""How long output may be held since all buffers were last switched, seconds. QEMU's own limit is
`scripts.HOLD_US`."""
GUARDED = 3
"""Exit status if the QEMU has a guard already."""


def guard(
    held: Path,
    pidfd: int,
    after_s: float,
    look_s: float = LOOK_S,
    unswitched_s: float = UNSWITCHED_S,
) -> bool:
    """Watch until the QEMU of `pidfd` is gone; return whether that was this guard's doing.

    :param after_s: how long `held` may stay unchanged, seconds.
    :param unswitched_s: how long the buffers may stay unswitched, seconds.
    """
    gone = select.poll()
    gone.register(pidfd, select.POLLIN)
    seen, since, held_since = None, 0.0, 0.0
    while not gone.poll(look_s * 1000):
        stamp, now = _stamp(held), time.monotonic()
        if seen is None:
            held_since = now
        if stamp != seen:
            seen, since = stamp, now
        if stamp is None:
            continue
        why = ""
        if now - since >= after_s:
            why = f"nobody looked after this QEMU for {after_s:g} s"
        elif _unswitched_s(held, held_since) >= unswitched_s:
            why = f"the buffers of this QEMU were not switched for {unswitched_s:g} s"
        if why:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            sys.stderr.write(f"guard: {why}: killed\n")
            return True
    return False


def _unswitched_s(held: Path, unless: float) -> float:
    """Return for how long no buffer was switched; since `unless`, if no such time was noted."""
    stamp = _stamp(held.with_name(SWITCHED))
    now = time.monotonic()  # after the stamp: a switch in between is not one in the future
    at = stamp / 1e9 if stamp is not None else now + 1
    return now - (at if at <= now else unless)


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


def started(pid: int) -> int:
    """Return when a process was started, clock ticks since the host was; 0 if there is none.

    With its number this tells it from any other (/proc/PID/stat, field 22).
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def main(directory: str, pid: str, ticks: str, after_s: str) -> int:
    """Guard process `pid`, which must have been started at `ticks` (see `started`)."""
    run = Path(directory)
    lock = os.open(run / "guard.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(lock):
        return GUARDED
    try:
        pidfd = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return 0
    # The number may have gone to another process before it was pinned down.
    if started(int(pid)) == int(ticks):
        guard(run / "held", pidfd, float(after_s))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
