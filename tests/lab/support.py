"""Probes for the lab's networks and namespaces."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lab.namespace import Namespace

KINDS = ("mnt", "net", "pid", "uts")


def udp(namespace: Namespace, address: str = "") -> socket.socket:
    """A UDP socket of this process inside a namespace's network."""

    def open_socket() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((address, 0))
        return opened

    return namespace.inside(open_socket, ("net",))


def reaches(source: Namespace, target: Namespace, address: str, tries: int = 50) -> bool:
    """Whether one of `tries` datagrams, 0.1 s apart, arrives from `source` at `address`.

    A neighbour that has not answered is asked again after a second.
    """
    with udp(source) as sender, udp(target, address) as receiver:
        receiver.settimeout(0.1)
        for _ in range(tries):
            with contextlib.suppress(OSError):
                sender.sendto(b"?", receiver.getsockname())
            with contextlib.suppress(TimeoutError):
                return receiver.recv(16) == b"?"
    return False


def spaces(pid: int) -> set[str]:
    """The namespaces that a process is in."""
    return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in KINDS}


@contextlib.contextmanager
def held(*pids: int) -> Iterator[set[str]]:
    """The namespaces of some processes, except this one's, held open: the kernel gives the number
    of one that is gone to the next.
    """
    with contextlib.ExitStack() as stack:
        for pid in pids:
            for kind in KINDS:
                stack.enter_context(Path(f"/proc/{pid}/ns/{kind}").open("rb"))
        yield set().union(*map(spaces, pids)) - spaces(os.getpid())


def inhabited(namespaces: set[str]) -> bool:
    """Whether any process is in one of these."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if namespaces & spaces(int(entry.name)):
                return True
    return False
