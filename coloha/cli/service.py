"""What `coloha check` sees of the service: its user, and its units."""

import contextlib
import grp
import os
import pwd
import subprocess
from pathlib import Path

from coloha.errors import StartError
from coloha.qemu.unit import unit_of

USER = "coloha"
GROUP_OF_KVM = "kvm"
SYSTEMCTL_S = 10.0


def become_daemon() -> None:
    """Go on as the user that the daemon and its QEMUs run as, if this is root: what it may not
    touch must be seen.

    :raises StartError: if there is no such user.
    """
    if os.geteuid() != 0:
        return
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        raise StartError(
            f"there is no user {USER}: run systemd/install.sh, or write launcher: child"
        ) from None
    groups = [user.pw_gid]
    with contextlib.suppress(KeyError):
        groups.append(grp.getgrnam(GROUP_OF_KVM).gr_gid)
    os.setgroups(groups)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def unit_finding() -> tuple[bool, str]:
    """Return whether systemd here knows the unit of QEMUs, in words."""
    unit = unit_of("x")
    argv = ["systemctl", "show", "--property=LoadState", "--value", unit]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"launcher: systemd does not answer ({error})"
    if done.stdout.strip() == "loaded":
        return True, "launcher: systemd, each QEMU is a unit of its own"
    said = done.stdout.strip() or done.stderr.strip()
    return False, f"launcher: systemd has no coloha-qemu@.service ({said}): run systemd/install.sh"


def usable_tap(interface: Path) -> bool:
    """Return whether this user may use a tap; any is root's."""
    try:
        owner = int((interface / "owner").read_text())
    except (OSError, ValueError):
        return True  # no tap: QEMU says so
    return os.geteuid() in (0, owner)
