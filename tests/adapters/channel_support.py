"""The channel's protocol spoken by hand, to speak it wrongly."""

import asyncio
import contextlib
import hmac
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from coloha.adapters.channel import Address, ChannelServer, Offer, Request
from tests.adapters.support import KEY, PATIENCE_S

REQUEST = Request("vm", session=7, generation=3, fingerprint="f" * 64, qemu=(11, 1, 3))
NONCE = b"n" * 32


def mac(key: bytes, direction: str, challenge: bytes, nonce: bytes, body: bytes) -> bytes:
    text = f"coloha channel 1 {direction}".encode() + challenge + nonce + body
    return hmac.digest(key, text, "sha256")


def framed(frame: bytes) -> bytes:
    return struct.pack("!I", len(frame)) + frame


def invitation(challenge: bytes, key: bytes = KEY, **changes: Any) -> bytes:
    """A frame that invites beta, but for the changes."""
    content = {"nonce": NONCE.hex(), "from": "alpha", "to": "beta", "request": asdict(REQUEST)}
    body = json.dumps({**content, **changes}).encode()
    return body + mac(key, "inviting", challenge, NONCE, body)


class Raw:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection

    @staticmethod
    async def connect(address: Address) -> "Raw":
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
        return Raw(connection)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def send_frame(self, frame: bytes) -> None:
        await self.send(framed(frame))

    async def receive(self, count: int) -> bytes:
        """`count` bytes, or fewer if the connection ends before."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while len(data) < count:
                rest = count - len(data)
                async with asyncio.timeout(PATIENCE_S):
                    part = await asyncio.get_running_loop().sock_recv(self.connection, rest)
                if not part:
                    break
                data += part
        return data

    async def receive_frame(self) -> bytes:
        (count,) = struct.unpack("!I", await self.receive(4))
        return await self.receive(count)

    async def challenge(self) -> bytes:
        """What the accepting node says first."""
        return bytes.fromhex(json.loads(await self.receive_frame())["nonce"])

    async def ended(self) -> bool:
        """Whether the other end closes without another word."""
        return await self.receive(1) == b""

    def abort(self) -> None:
        """Close so that the other end gets a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextlib.asynccontextmanager
async def connected(address: Address) -> AsyncIterator[Raw]:
    raw = await Raw.connect(address)
    try:
        yield raw
    finally:
        raw.connection.close()


@dataclass
class Node:
    """A real channel server and what it was offered."""

    server: ChannelServer
    address: Address
    offers: asyncio.Queue[Offer] = field(default_factory=asyncio.Queue)

    async def offer(self) -> Offer:
        async with asyncio.timeout(PATIENCE_S):
            return await self.offers.get()


@contextlib.asynccontextmanager
async def listening(
    me: str = "beta",
    key: bytes = KEY,
    host: str = "127.0.0.1",
    others: tuple[bytes, ...] = (),
) -> AsyncIterator[Node]:
    offers: asyncio.Queue[Offer] = asyncio.Queue()
    server = ChannelServer(me, key, offers.put_nowait, others)
    server.start((host, 0))
    assert server.listener is not None
    try:
        yield Node(server, server.listener.getsockname()[:2], offers)
    finally:
        server.stop()
        while not offers.empty():
            offers.get_nowait().connection.close()
        await asyncio.sleep(0.01)  # the cancelled tasks' turn


@contextlib.asynccontextmanager
async def impostor(speak: Callable[[Raw], Awaitable[None]]) -> AsyncIterator[Address]:
    """A server that speaks as told, with each connection in turn."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def accept() -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            raw = Raw(connection)
            try:
                await speak(raw)
            finally:
                raw.connection.close()

    task = asyncio.create_task(accept())
    try:
        yield listener.getsockname()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await task
        listener.close()
