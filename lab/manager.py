"""A service manager like systemd, as far as a daemon sees it: it is told things, and keeps sockets.

systemd itself wants to be process 1. This one receives what daemons say on a notify socket, and
starts them with what it holds, as sd_listen_fds(3) has it.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MAX_FDS = 64
_HIGH = 200
_EXEC = f"""
import os, sys
held = [int(word) for word in sys.argv[1].split(",") if word]
for place, number in enumerate(held):
    os.dup2(number, {_HIGH} + place)
    os.close(number)
for place in range(len(held)):
    os.dup2({_HIGH} + place, 3 + place)
    os.close({_HIGH} + place)
if held:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Listens at `path`. What a daemon has it keep goes to the next one that is started."""

    def __init__(self, path: Path, *, keeps: bool = True) -> None:
        """Without `keeps` it is one that has no file descriptor store."""
        self.told: list[str] = []
        """Every message, in the order of their arrival."""
        self.store: list[tuple[str, int]] = []
        self._path = path
        self._keeps = keeps
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def launch(self, argv: Sequence[str | Path]) -> tuple[list[str | Path], dict[str, Any]]:
        """Return the command that starts a daemon with what is kept, and its options of Popen."""
        numbers = [number for _, number in self.store]
        environment = {**os.environ, "NOTIFY_SOCKET": str(self._path)}
        if numbers:  # LISTEN_PID is added by the process itself
            environment["LISTEN_FDS"] = str(len(numbers))
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self.store)
        listed = ",".join(map(str, numbers))
        command = [sys.executable, "-ISc", _EXEC, listed, *argv]
        return command, {"pass_fds": numbers, "env": environment}

    def close(self) -> None:
        """Listen no more, and drop what is kept."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()
        self._drop(lambda _: True)

    def _drop(self, which: Callable[[str], bool]) -> None:
        with self._lock:
            for name, number in self.store:
                if which(name):
                    os.close(number)
            self.store = [entry for entry in self.store if not which(entry[0])]

    def _listen(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, MAX_FDS)
            except OSError:
                return
            if not data:
                return
            self._hear(data.decode(), descriptors)

    def _hear(self, text: str, descriptors: list[int]) -> None:
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        name = fields.get("FDNAME", "stored")
        if fields.get("FDSTOREREMOVE") == "1":
            self._drop(lambda kept: kept == name)
        if fields.get("FDSTORE") == "1" and self._keeps:
            with self._lock:
                self.store += [(name, number) for number in descriptors]
            descriptors = []
        self.told.append(text)
        for number in descriptors:  # a barrier is over when its descriptor is closed
            os.close(number)
