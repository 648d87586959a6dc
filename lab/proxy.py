"""Stands between two QEMUs and stops a checkpoint at a chosen point.

Runs inside a host, in the way of the channels that come in there (`python -m lab.proxy`; nftables
redirects them). It forwards the daemons' handshake and then QEMU's stream, whose way back from the
secondary consists of COLO's messages, four bytes each. Told to stall at a phase, it holds back the
message, or the bytes, that end that phase, and says so; told to go on, it forwards them.
"""

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
from pathlib import Path

from lab.namespace import CHECKOUT, PATIENCE_S, LabError, wait_until
from lab.topology import Host

PROXY_PORT = 7779
REPLY, RECEIVED, LOADED = 2, 5, 6
"""COLO's messages from the secondary (QEMU, qapi/migration.json, COLOMessage)."""

PHASES = {
    "requested": REPLY,
    "memory": None,
    "received": RECEIVED,
    "loaded": LOADED,
}
"""What is held back: the secondary's REPLY (the primary's guest stands, nothing was sent); the
memory, after its first bytes; RECEIVED (the secondary has all of it); LOADED (the secondary goes on
from it already, the primary does not know)."""

MEMORY_BYTES = 64
"""How much of the memory passes before it is held back."""


class Proxy:
    """Every connection's two directions, and the stall that is wanted."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._wanted: str | None = None
        self._stalled = asyncio.Event()
        self._go = asyncio.Event()
        self._memory_left = 0
        """Bytes of memory that may still pass; 0 while no checkpoint is to be held in it."""

    async def serve(self, control: Path) -> None:
        """Forward and obey until killed."""
        await asyncio.start_server(self._connected, "0.0.0.0", PROXY_PORT)
        server = await asyncio.start_unix_server(self._obey, control)
        await server.serve_forever()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb, _, phase = (await reader.readline()).decode().strip().partition(" ")
        if verb == "stall":
            self._stalled.clear()
            self._go.clear()
            self._wanted = phase
            await self._stalled.wait()
        else:
            self._go.set()
        writer.write(b"done\n")
        writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        there = asyncio.ensure_future(self._to_secondary(reader, far_writer))
        back = asyncio.ensure_future(self._to_primary(far_reader, writer))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        for task, end in ((there, writer), (back, far_writer)):
            task.cancel()
            end.close()
        await asyncio.gather(there, back, return_exceptions=True)

    async def _hold(self) -> None:
        self._wanted = None
        self._stalled.set()
        await self._go.wait()

    async def _to_secondary(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            if self._memory_left:
                now, later = data[: self._memory_left], data[self._memory_left :]
                self._memory_left -= len(now)
                writer.write(now)
                await writer.drain()
                if not self._memory_left:
                    await self._hold()
                data = later
            writer.write(data)
            await writer.drain()

    async def _to_primary(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):  # the challenge, and the answer to the invitation
            head = await reader.readexactly(4)
            writer.write(head + await reader.readexactly(*struct.unpack("!I", head)))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                word = await reader.readexactly(4)
                (message,) = struct.unpack("!I", word)
                if self._wanted is not None and message == PHASES[self._wanted]:
                    await self._hold()
                elif self._wanted == "memory" and message == REPLY:
                    self._memory_left = MEMORY_BYTES
                writer.write(word)
                await writer.drain()


class RunningProxy:
    """The proxy of one host."""

    def __init__(self, host: Host, port: int) -> None:
        """Put a proxy in the way of what comes in at `port`."""
        self._control = host.directory / "proxy.sock"
        self._control.unlink(missing_ok=True)
        command = ["-m", "lab.proxy", f"{host.replication_ip}:{port}", str(self._control)]
        host.popen([sys.executable, *command], cwd=CHECKOUT)
        wait_until(self._control.exists, "the proxy")
        rules = (
            "table ip coloha_lab_proxy {\n"
            " chain prerouting { type nat hook prerouting priority dstnat;\n"
            f"  tcp dport {port} redirect to :{PROXY_PORT}\n }}\n}}\n"
        )
        done = host.run(["nft", "-f", "-"], stdin=rules)
        if done.returncode != 0:
            raise LabError(f"{host.name}: nft: {done.stderr.strip()}")

    def stall(self, phase: str, timeout_s: float = 10.0) -> None:
        """Hold the next checkpoint at the end of `phase`; return when it is held."""
        self._order(f"stall {phase}", timeout_s)

    def go_on(self) -> None:
        """Let through what is held."""
        self._order("go", PATIENCE_S)

    def _order(self, text: str, timeout_s: float) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(self._control))
            connection.sendall(f"{text}\n".encode())
            if not connection.recv(16):
                raise LabError(f"the proxy did not obey: {text}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="ADDRESS:PORT of the daemon")
    parser.add_argument("control", type=Path, help="unix socket for orders")
    return parser.parse_args()


if __name__ == "__main__":
    options = _parse()
    address, _, port_number = options.target.rpartition(":")
    asyncio.run(Proxy((address, int(port_number))).serve(options.control))
