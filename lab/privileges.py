"""The lab's right to make namespaces: root's, or that of a user namespace of one's own.

`python -m lab.privileges COMMAND...` runs the command with that right.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

TUN = "/dev/net/tun"
NEEDED = "the lab needs root, or user namespaces and an accessible /dev/net/tun"

_UNSHARE = ("unshare", "--user", "--map-root-user", "--")


def _allowed() -> bool:
    """Whether this user may make namespaces inside a user namespace, and open tap devices."""
    if not os.access(TUN, os.R_OK | os.W_OK):
        return False
    try:
        # What a namespace of the lab begins with; a container may forbid any part of it.
        probe = [*_UNSHARE, "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
        probe += ["mount", "-t", "sysfs", "sysfs", "/sys"]
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def become_privileged(command: Sequence[str] | None = None) -> None:
    """Return if this process is root; else replace it by itself (or `command`) as root of a new
    user namespace. The process id and the streams stay; nothing outside the namespace changes.

    Raises SystemExit, with a sentence that says what is needed, where that is not possible.
    """
    if os.geteuid() == 0:
        return
    if not _allowed():
        raise SystemExit(NEEDED)
    again = command if command is not None else [sys.executable, *sys.orig_argv[1:]]
    os.execvp(_UNSHARE[0], [*_UNSHARE, *again])


def main() -> None:
    """Command line: COMMAND..."""
    command = sys.argv[1:]
    if not command:
        raise SystemExit("usage: python -m lab.privileges COMMAND...")
    become_privileged(command)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
