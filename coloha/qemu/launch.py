"""Becomes a pair's QEMU, in a unit of systemd (`coloha-qemu@.service`): `coloha-launch PAIR`.

The daemon leaves an order in the pair's folder and has systemd start the unit. This program takes
the order by renaming it, so that exactly one of two things is true ever after: the order is still
there, and nobody has begun; or it bears this process's number, which QEMU keeps.

`coloha-launch --taps PAIR` runs before, as root: it makes the taps that the order names, for the
user whose order it is. So neither daemon nor QEMU needs a capability.

Standard library only: what stands between an order and its QEMU should be quick.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from coloha.places import RUNTIME
from coloha.qemu.guard import started

ORDER = "launch"
TAKEN = "launched."
"""A taken order's name goes on with the process's number and the tick of its start."""
REASON = "refused"
"""Says why an order was not carried out."""

TAP = re.compile(r"co[0-9a-f]{8}n\d")
_BRIDGE = re.compile(r"[^/\s]{1,15}")
IP_S = 5.0
_INTERFACES = Path("/sys/class/net")


class OrderRefusedError(Exception):
    """An order that nobody should carry out, or nobody could."""


def launch(directory: Path) -> None:
    """Take the order in `directory` and become what it asks for.

    :raises OrderRefusedError: if there is none, or its program cannot be run.
    """
    pid = os.getpid()
    taken = directory / f"{TAKEN}{pid}.{started(pid)}"
    try:
        (directory / ORDER).rename(taken)
    except FileNotFoundError:
        raise OrderRefusedError("the daemon did not ask for it: `coloha start` does") from None
    order = _read(taken)
    argv = [str(word) for word in order["argv"]]
    output = os.open(str(order["stderr"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    _ready()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - without a shell is how it should be
    except OSError as error:
        raise OrderRefusedError(f"cannot start {argv[0]}: {error.strerror}") from error


def _ready() -> None:
    """Tell systemd that the order is taken; QEMU must not be able to."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            connection.send(b"READY=1")


def make_taps(directory: Path) -> None:
    """Make the taps of the order in `directory`, for its owner, and attach them to their bridges.

    :raises OrderRefusedError: if one is not a tap of coloha's, or cannot be made.
    """
    order = directory / ORDER
    try:
        owner = order.lstat().st_uid
    except FileNotFoundError:
        return  # `launch` says so
    commands: list[str] = []
    for tap, bridge in _read(order)["taps"]:
        if not (TAP.fullmatch(tap) and _BRIDGE.fullmatch(bridge)):
            raise OrderRefusedError(f"{tap!r} on {bridge!r} is not a tap of coloha's")
        commands += tap_commands(tap, bridge, owner)
    if not commands:
        return
    argv = ["ip", "-batch", "-"]
    text = "\n".join(commands)
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=IP_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OrderRefusedError(f"ip (package iproute2): {error}") from error
    if done.returncode:
        raise OrderRefusedError(f"cannot set up taps: {' '.join(done.stderr.split())}")


def tap_commands(tap: str, bridge: str, owner: int | None = None) -> list[str]:
    """Return the commands of `ip` that make `tap` for a user and attach it to `bridge`.

    One that is there is kept, unless it belongs to somebody else: the kernel lets its owner alone
    use it without a capability.
    """
    make = f"tuntap add dev {tap} mode tap" + (f" user {owner}" if owner is not None else "")
    place = _INTERFACES / tap
    commands = [] if place.exists() else [make]
    if place.exists() and owner is not None and _owner(place) != owner:
        commands = [f"tuntap del dev {tap} mode tap", make]
    return [*commands, f"link set dev {tap} master {bridge}", f"link set dev {tap} up"]


def _owner(interface: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((interface / "owner").read_text())
    return None


def _read(order: Path) -> dict[str, Any]:
    try:
        content = json.loads(order.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OrderRefusedError(f"{order}: {error}") from error
    if not isinstance(content, dict):
        raise OrderRefusedError(f"{order}: no order")
    return content


def main() -> int:
    """Do as the command line says; return an exit status if that cannot be done."""
    work = make_taps if sys.argv[1:2] == ["--taps"] else launch
    try:
        work(RUNTIME / sys.argv[-1])
    except (OrderRefusedError, OSError, KeyError, TypeError, ValueError) as error:
        sys.stderr.write(f"coloha-launch {sys.argv[-1]}: {error}\n")
        _tell(RUNTIME / sys.argv[-1], str(error))
        return 1
    return 0


def _tell(directory: Path, reason: str) -> None:
    """Leave the reason for the daemon, as its user: its folder may hold a link to anywhere."""
    with contextlib.suppress(OSError):
        os.seteuid(directory.stat().st_uid)
        (directory / REASON).write_text(reason)


if __name__ == "__main__":
    raise SystemExit(main())
