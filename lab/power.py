"""The power switch of a topology's hosts, and the fence agent that works it.

It stands outside all hosts, as a baseboard controller or a switched socket does: the agent reaches
it over a Unix socket, so no cut of the hosts' networks is in its way. `off` takes a host's power
away, and is answered when nothing of the host is left.
"""

import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.topology import Topology

_AGENT = """#!{python} -I
import socket, sys
told = dict(line.rstrip("\\n").split("=", 1) for line in sys.stdin if "=" in line)
with socket.socket(socket.AF_UNIX) as switch:
    switch.connect(told["socket"])
    switch.sendall(f"{{told['action']}} {{told['plug']}}\\n".encode())
    code, _, words = switch.makefile().readline().strip().partition(" ")
print(words, file=sys.stderr)
sys.exit(int(code or 1))
"""

Answer = tuple[int, str]


class PowerSwitch:
    """Answers the agents of a topology's hosts; a context manager."""

    def __init__(self, topology: Topology) -> None:
        self.off_at: dict[str, float] = {}
        """When each host was last seen to be off, monotonic seconds."""
        self.asked: list[str] = []
        """What it was asked, such as `off alpha`."""
        self.broken = False
        """It refuses to switch anything."""
        self._topology = topology
        self._socket = topology.directory / "power.sock"
        self._agent = topology.directory / "fence_lab"
        self._agent.write_text(_AGENT.format(python=sys.executable))
        self._agent.chmod(0o755)

    def agent(self, peer: str) -> dict[str, Any]:
        """Return the section of a host file for the agent that switches `peer` off."""
        return {
            "agent": str(self._agent),
            "parameters": {"socket": str(self._socket), "plug": peer},
            "delay": "6s",
        }

    def __enter__(self) -> Self:
        self._server = _Server(self._socket, self._answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, line: str) -> Answer:
        action, _, name = line.partition(" ")
        self.asked.append(line)
        host = self._topology.hosts[name]
        if action == "off" and self.broken:
            return 1, "the relay is stuck"
        if action == "off":
            host.power_off()
            self.off_at[name] = time.monotonic()
        return (0 if host.alive or action != "status" else 2), f"{name}: {action}"


class _Server(socketserver.UnixStreamServer):
    def __init__(self, path: Path, answer: Callable[[str], Answer]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            request: socket.socket

            def handle(self) -> None:
                code, words = answer(self.rfile.readline().decode().strip())
                self.wfile.write(f"{code} {words}\n".encode())

        super().__init__(str(path), Handler)
