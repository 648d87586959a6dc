"""Joins a connection of the primary's QEMU with the secondary's QEMU: a disk's writes, and the
streams of mode `compare`.

QEMU's NBD server takes no connection that somebody else has made: it wants to listen by itself. So
it listens on a socket of the file system, and a relay, a process of its own, joins that with the
connection that the daemons have authenticated. It outlives the daemon, and ends with either side:
then both are closed.

Standard library only: there is one for each disk and stream. The bytes stay in the kernel (splice).
"""

import contextlib
import os
import select
import socket
import sys

CONNECTION = 3
"""The descriptor of the authenticated connection."""

PIPE_BYTES = 1 << 20


class Way:
    """One direction: from `source` through a pipe to `sink`."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self._out, self._in = os.pipe()
        self._inside = 0
        self._room = _grow(self._in)

    @property
    def waits_for(self) -> tuple[int, int]:
        """The descriptor to wait for, and for what."""
        return (self.sink, select.POLLOUT) if self._inside else (self.source, select.POLLIN)

    def move(self) -> bool:
        """Move what can be moved; return False at the end of the source."""
        if not self._inside:
            with contextlib.suppress(BlockingIOError):
                self._inside = os.splice(self.source, self._in, self._room)
                if not self._inside:
                    return False
        while self._inside:
            try:
                self._inside -= os.splice(self._out, self.sink, self._inside)
            except BlockingIOError:
                return True
        return True


def _grow(pipe: int) -> int:
    """Make a pipe as large as this user may; return its size, bytes."""
    import fcntl  # noqa: PLC0415 - fcntl's names for pipes are Linux's alone

    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Carry both ways until either end is closed or breaks."""
    one.setblocking(False)
    other.setblocking(False)
    ways = [Way(one.fileno(), other.fileno()), Way(other.fileno(), one.fileno())]
    with contextlib.suppress(OSError):
        while True:
            ready = select.poll()
            for descriptor in {way.waits_for[0] for way in ways}:
                wanted = sum({way.waits_for[1] for way in ways if way.waits_for[0] == descriptor})
                ready.register(descriptor, wanted)
            ready.poll()
            for way in ways:
                if not way.move():
                    return


def main(exports: str) -> int:
    """Join descriptor 3 with the QEMU that listens at `exports`."""
    with (
        socket.socket(fileno=CONNECTION) as connection,
        socket.socket(socket.AF_UNIX) as server,
    ):
        try:
            server.connect(exports)
        except OSError as error:
            sys.stderr.write(f"relay: {exports}: {error.strerror}\n")
            return 1
        relay(connection, server)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
