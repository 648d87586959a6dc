"""The relay between a disk's connection and the NBD server: all bytes, both ways, to either end."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_S = 20
BIG = os.urandom(8 * 2**20)


class Ends:
    """A relay, and what is on either side of it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "nbd.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            self.near, far = socket.socketpair()
            # As the daemon starts it: the connection is descriptor 3.
            command = 'exec 3<&0; exec "$@" </dev/null'
            argv = ["sh", "-c", command, "sh", sys.executable, "-m", "coloha.qemu.relay", str(path)]
            self.process = subprocess.Popen(argv, stdin=far.fileno())
            far.close()
            listener.settimeout(PATIENCE_S)
            self.server, _ = listener.accept()
        for end in (self.near, self.server):
            end.settimeout(PATIENCE_S)

    def close(self) -> None:
        self.near.close()
        self.server.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with contextlib.closing(Ends(tmp_path)) as made:
        yield made


def received(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = end.recv(65536)
        assert part, f"closed after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


def test_both_ways_at_once(ends: Ends) -> None:
    """More than any buffer on the way holds, and nobody reads before all is written."""
    senders = [
        threading.Thread(target=end.sendall, args=(BIG,)) for end in (ends.near, ends.server)
    ]
    for sender in senders:
        sender.start()
    assert received(ends.server, len(BIG)) == BIG
    assert received(ends.near, len(BIG)) == BIG
    for sender in senders:
        sender.join()


@pytest.mark.parametrize("first", ["near", "server"])
def test_the_end_of_either_is_the_end_of_both(ends: Ends, first: str) -> None:
    ends.near.sendall(b"a")
    assert received(ends.server, 1) == b"a"
    one, other = (ends.near, ends.server) if first == "near" else (ends.server, ends.near)
    one.close()
    assert other.recv(1) == b""
    assert ends.process.wait(PATIENCE_S) == 0


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far:
        argv = ["sh", "-c", 'exec 3<&0; exec "$@"', "sh", sys.executable, "-m", "coloha.qemu.relay"]
        done = subprocess.run(
            [*argv, str(tmp_path / "none")],
            stdin=far.fileno(),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        far.close()
        assert done.returncode != 0
        assert near.recv(1) == b""
