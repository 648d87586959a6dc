"""Channels: authenticated TCP connections between daemons that become QEMU's migration stream.

    accepting node  ->  {"nonce"}                                 a challenge
    inviting node   ->  {"nonce", "from", "to", "request"} + MAC  proves the key
    accepting node  ->  {"ok": true} or {"error": ...}     + MAC  proves the key

Each MAC is HMAC-SHA256 under the shared key over the direction, both nonces and the frame, so no
frame is worth anything on another connection. After `ok` neither daemon touches the stream again:
its two ends belong to the QEMUs. What flows then is not encrypted: the network between the nodes is
trusted with it (docs/design.md).

Raw sockets instead of streams: not one byte beyond a frame may be read, for it would be QEMU's.
"""

import asyncio
import hmac
import json
import logging
import math
import secrets
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coloha.errors import AuthenticationError, ChannelError

log = logging.getLogger(__name__)

Address = tuple[str, int]

HANDSHAKE_S = 5.0
MAX_FRAME_BYTES = 16 * 1024
MAX_HANDSHAKES = 16
BACKLOG = 16
MAX_PROBES = 100
"""Keepalive probes before a connection is given up; Linux has at most 127."""

_LENGTH = struct.Struct("!I")
_MAC_BYTES = 32
_OTHER_KEY = "the other end does not hold the same key"


@dataclass(frozen=True, slots=True)
class Request:
    """What the inviting node wants: a secondary for `pair`, in `session`, of `generation`.

    `fingerprint` is of its pair file: both must agree. `qemu` is the version of its QEMU, `sizes`
    are those of its replicated disks, bytes. With a `disk`, the number of one, the connection is
    not for the migration but for the image of the secondary that waits already; with a `stream` it
    is for output that is compared, as `coloha.qemu.compare.streams` names it.
    """

    pair: str
    session: int
    generation: int
    fingerprint: str
    qemu: tuple[int, int, int]
    sizes: tuple[int, ...] = ()
    disk: str = ""
    stream: str = ""


def tune(connection: socket.socket, timeout_s: float) -> None:
    """Make a TCP connection prompt, and its death noticed within `timeout_s`.

    Without TCP_NODELAY every checkpoint waits for a delayed acknowledgement, 40 ms. The user
    timeout covers what was sent; keepalive covers an end that only receives.
    """
    tcp = socket.IPPROTO_TCP
    probe_s = max(1, math.ceil(timeout_s / MAX_PROBES))
    connection.setsockopt(tcp, socket.TCP_NODELAY, 1)
    connection.setsockopt(tcp, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(tcp, socket.TCP_KEEPIDLE, probe_s)
    connection.setsockopt(tcp, socket.TCP_KEEPINTVL, probe_s)
    connection.setsockopt(tcp, socket.TCP_KEEPCNT, max(1, round(timeout_s / probe_s)))


class Offer:
    """An authenticated invitation that waits for its answer. It owns the connection."""

    def __init__(
        self, request: Request, sender: str, connection: socket.socket, seal: "_Seal"
    ) -> None:
        self.request = request
        self.sender = sender
        self.connection = connection
        self._seal = seal

    async def admit(self) -> None:
        """Say that the secondary is ready; the connection is QEMU's from here on.

        :raises ChannelError: if the other end is gone.
        """
        await self._answer({"ok": True})

    async def refuse(self, reason: str) -> None:
        """Say why not, and close."""
        await self._answer({"error": reason})

    async def _answer(self, content: Mapping[str, object]) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await _send(self.connection, self._seal.close(b"accepting", content))
        except (OSError, TimeoutError) as error:
            raise ChannelError(f"the inviting node is gone: {error}") from error
        finally:
            self.connection.close()


class ChannelServer:
    """Listens for the other nodes' invitations."""

    def __init__(
        self, me: str, key: bytes, offered: Callable[[Offer], None], others: tuple[bytes, ...] = ()
    ) -> None:
        """Each authenticated invitation is passed to `offered`, which then owns it.

        :param others: keys that an inviting node may use as well, while keys are changed.
        """
        self._me = me
        self._keys = (key, *others)
        self._offered = offered
        self.listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self.rejected = 0
        """Connections that did not prove the key, or made no sense."""

    def start(self, address: Address, kept: socket.socket | None = None) -> None:
        """Listen, with the socket that is `kept` if one is.

        :raises OSError: if the address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.listener = kept or socket.create_server(address, family=family, backlog=BACKLOG)
        self.listener.setblocking(False)
        self._task = asyncio.create_task(self._accept(self.listener), name="channel-server")

    def stop(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        if self.listener is not None:
            self.listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("channel server: accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self.rejected += 1
                connection.close()
                continue
            connection.setblocking(False)
            task = asyncio.create_task(self._receive(connection))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _receive(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                offer = await self._authenticate(connection)
        except (OSError, TimeoutError, ValueError, AuthenticationError, ChannelError) as error:
            self.rejected += 1
            log.warning("channel server: connection refused: %s", error or type(error).__name__)
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            self._offered(offer)

    async def _authenticate(self, connection: socket.socket) -> Offer:
        challenge = secrets.token_bytes(32)
        await _send(connection, json.dumps({"nonce": challenge.hex()}).encode())
        frame = await _receive(connection)
        content = _content(frame[:-_MAC_BYTES])
        seal = self._seal(challenge, bytes.fromhex(str(content.get("nonce"))), frame)
        if content.get("to") != self._me:
            raise AuthenticationError(f"the invitation is for {content.get('to')!r}")
        try:
            request = _request(_mapping(content["request"]))
            sender = str(content["from"])
        except (KeyError, TypeError, ValueError) as error:
            raise ChannelError(f"not an invitation: {error}") from error
        return Offer(request, sender, connection, seal)

    def _seal(self, challenge: bytes, inviting: bytes, frame: bytes) -> "_Seal":
        """Return the seal, under the key that the inviting node has used.

        :raises AuthenticationError: if that is none of ours.
        """
        for key in self._keys:
            seal = _Seal(key, challenge, inviting)
            if seal.fits(b"inviting", frame):
                return seal
        raise AuthenticationError(_OTHER_KEY)


async def invite(
    address: Address, key: bytes, me: str, peer: str, request: Request, timeout_s: float
) -> socket.socket:
    """Ask `peer` for a secondary; return the connection once that waits at its far end.

    :raises ChannelError: if there is none, saying why.
    :raises AuthenticationError: if the other end did not prove the key.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        async with asyncio.timeout(timeout_s):
            async with asyncio.timeout(HANDSHAKE_S):
                await asyncio.get_running_loop().sock_connect(connection, address)
                challenge = bytes.fromhex(str(_content(await _receive(connection))["nonce"]))
                seal = _Seal(key, challenge, secrets.token_bytes(32))
                content = {
                    "nonce": seal.inviting.hex(),
                    "from": me,
                    "to": peer,
                    # What is not needed is left out: an older release does not know it.
                    "request": {k: v for k, v in asdict(request).items() if v not in ((), "")},
                }
                await _send(connection, seal.close(b"inviting", content))
            frame = await _receive(connection)
        seal.check(b"accepting", frame)
        answer = _content(frame[:-_MAC_BYTES])
    except AuthenticationError:
        connection.close()
        raise
    except TimeoutError:
        connection.close()
        raise ChannelError(f"no answer from {address[0]}:{address[1]} in time") from None
    except (OSError, ValueError, KeyError) as error:
        connection.close()
        place = f"{address[0]}:{address[1]}"
        raise ChannelError(f"{place}: {error or type(error).__name__}") from error
    except BaseException:
        connection.close()
        raise
    if answer.get("ok") is not True:
        connection.close()
        raise ChannelError(str(answer.get("error")))
    return connection


@dataclass(frozen=True, slots=True)
class _Seal:
    """Makes and checks the MACs of one connection."""

    key: bytes
    challenge: bytes
    inviting: bytes

    def close(self, direction: bytes, content: Mapping[str, object]) -> bytes:
        """Return a frame with its MAC."""
        body = json.dumps(content).encode()
        return body + self._mac(direction, body)

    def check(self, direction: bytes, frame: bytes) -> None:
        """Raise `AuthenticationError` unless the frame's MAC is right."""
        if not self.fits(direction, frame):
            raise AuthenticationError(_OTHER_KEY)

    def fits(self, direction: bytes, frame: bytes) -> bool:
        """Return whether the frame's MAC is right."""
        body, mac = frame[:-_MAC_BYTES], frame[-_MAC_BYTES:]
        return hmac.compare_digest(mac, self._mac(direction, body))

    def _mac(self, direction: bytes, body: bytes) -> bytes:
        text = b"coloha channel 1 " + direction + self.challenge + self.inviting + body
        return hmac.digest(self.key, text, "sha256")


def _request(content: Mapping[str, Any]) -> Request:
    """Return the request in what came over the wire, where tuples are lists."""
    major, minor, micro = content["qemu"]
    sizes = tuple(map(int, content.get("sizes", ())))
    return Request(**{**content, "qemu": (major, minor, micro), "sizes": sizes})


def _content(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a frame's body.

    :raises ValueError: if it is none.
    """
    try:
        return _mapping(json.loads(body))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


async def _send(connection: socket.socket, frame: bytes) -> None:
    data = _LENGTH.pack(len(frame)) + frame
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(await _exactly(connection, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes: this is no coloha node")
    return await _exactly(connection, length)


async def _exactly(connection: socket.socket, count: int) -> bytes:
    """Read `count` bytes and not one more.

    :raises ConnectionResetError: if the connection ends before.
    """
    data = b""
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not part:
            raise ConnectionResetError("the other end closed the connection")
        data += part
    return data
