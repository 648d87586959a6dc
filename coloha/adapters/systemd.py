"""The service manager, as far as the daemon needs it: sd_notify(3) and its file descriptor store.

Datagrams to `NOTIFY_SOCKET`, and descriptors passed at the start, from number 3 on. Without a
service manager everything here does nothing. Nothing that it does, or fails to do, is an error of
the daemon's: what cannot be kept is made anew.
"""

import contextlib
import ipaddress
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

FIRST_FD = 3
MAX_FDS = 64
"""More are never ours."""
SEND_S = 0.1
BARRIER_S = 1.0

Place = tuple[str, int] | Path
"""Where a socket is bound: an address and a port, or a file."""


class ServiceManager:
    """What started this process, and the sockets that it kept from the life before."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Take what is in the environment, once: no child may find it there, nor the sockets."""
        environment = os.environ if environment is None else environment
        self._address = _notify_address(environment.pop("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment)
        """How often it wants to hear that the daemon is alive, seconds; None if it does not."""
        self._names: set[str] = set()
        self._kept: list[tuple[str, socket.socket]] = []
        for name, descriptor in _passed(environment):
            self._names.add(name)
            try:
                self._kept.append((name, socket.socket(fileno=descriptor)))
            except OSError:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def ready(self, status: str) -> None:
        """Say that the daemon serves, or that it has read its configuration again."""
        self._notify(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` ends it."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """Say that the daemon does its work."""
        self._notify("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """Say that the daemon ends."""
        self._notify(f"STOPPING=1\nSTATUS={status}")

    def take(self, name: str, kind: socket.SocketKind, place: Place) -> socket.socket | None:
        """Return the socket kept under this name, if it is of this kind and bound there.

        `kind` SOCK_STREAM: it listens.
        """
        for entry in self._kept:
            if entry[0] == name and _fits(entry[1], kind, place):
                self._kept.remove(entry)
                return entry[1]
        return None

    def settle(self) -> None:
        """Have nothing kept any more: what was not taken is closed.

        A socket that the manager holds outlives a daemon that is killed, and nobody could see that
        it is dead.
        """
        for _, kept in self._kept:
            kept.close()
        for name in sorted(self._names):
            self._notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self._kept, self._names = [], set()

    def keep(self, name: str, kept: socket.socket) -> None:
        """Have the manager hold a socket for the next life of the daemon."""
        if kept.fileno() >= 0:
            self._notify(f"FDSTORE=1\nFDNAME={name}", kept.fileno())

    def wait(self) -> None:
        """Return when the manager has read all that it was told, after `BARRIER_S` at the latest.

        It may drop what it reads only after this process has ended.
        """
        if self._address is None:
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._notify("BARRIER=1", writing)
        finally:
            os.close(writing)
        try:
            closed = select.poll()
            closed.register(reading, 0)
            if not closed.poll(BARRIER_S * 1000):
                log.warning("the service manager does not read what it is told")
        finally:
            os.close(reading)

    def _notify(self, text: str, *descriptors: int) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(SEND_S)
                connection.connect(self._address)
                socket.send_fds(connection, [text.encode()], descriptors)
        except OSError as error:
            first, _, _ = text.partition("\n")
            log.warning("the service manager cannot be told %s: %s", first, error)


def _notify_address(text: str) -> str | None:
    """Return the address in NOTIFY_SOCKET: a path, or an abstract name."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environment: MutableMapping[str, str]) -> float | None:
    """Return the interval that was asked of this very process; see sd_watchdog_enabled(3)."""
    pid, microseconds = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
    if pid not in ("", str(os.getpid())) or not (microseconds.isascii() and microseconds.isdigit()):
        return None
    return int(microseconds) / 1e6 or None


def _passed(environment: MutableMapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the name and number of each descriptor that was passed to this very process.

    If anything about them is odd there is none: they may be somebody else's.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return
    if not 0 < int(count) <= MAX_FDS or len(names) != int(count):
        log.warning("odd descriptors from the service manager: %s, named %s", count, names)
        return
    for number, name in enumerate(names, FIRST_FD):
        try:
            os.set_inheritable(number, False)
        except OSError as error:
            log.warning("descriptor %d from the service manager: %s", number, error)
        else:
            yield name, number


def _fits(kept: socket.socket, kind: socket.SocketKind, place: Place) -> bool:
    try:
        if kept.type != kind:
            return False
        listens = kept.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        if listens != (kind is socket.SOCK_STREAM):
            return False
        if isinstance(place, Path):
            return (
                kept.family is socket.AF_UNIX
                and kept.getsockname() == str(place)
                and stat.S_ISSOCK(place.stat().st_mode)
            )
        host, port = kept.getsockname()[:2]
        same = ipaddress.ip_address(host) == ipaddress.ip_address(place[0])
    except (OSError, ValueError):
        return False
    return same and port == place[1]
