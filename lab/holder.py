"""Init of one namespace of the lab; `lab.namespace` starts it as process 1 of a new pid namespace.

`holder.py LIFELINE NAME`: makes a mount, a network and a host name namespace of its own, says
"ready", then waits. LIFELINE is a pidfd of the process that the namespace belongs to: when that
process ends, however it ends, this one ends too, and the kernel kills all that ran beside it.

It is started without site packages and imports nothing of the project: four of them start at once.
"""

import ctypes
import os
import select
import signal
import socket
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
MS_NOSUID_NODEV_NOEXEC, MS_REC, MS_PRIVATE = 0xE, 0x4000, 0x40000


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library; raise OSError if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _furnish(name: str) -> None:
    _call("unshare", CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET)
    _call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    for kind, place in ((b"proc", b"/proc"), (b"sysfs", b"/sys")):
        _call("mount", kind, place, kind, ctypes.c_ulong(MS_NOSUID_NODEV_NOEXEC), None)
    socket.sethostname(name)
    # IPv6 would speak unasked on every interface, in the middle of what is measured.
    for scope in ("all", "default"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if switch.exists():
            switch.write_text("1")


def main() -> None:
    """Command line: LIFELINE NAME."""
    lifeline, name = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
    os.chdir("/")
    try:
        _furnish(name)
    except OSError as error:
        raise SystemExit(str(error)) from None
    os.write(1, b"ready\n")
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.poll()


if __name__ == "__main__":
    main()
