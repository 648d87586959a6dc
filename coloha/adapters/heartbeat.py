"""Heartbeats over UDP: one datagram per peer and interval, for all pairs."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from coloha.core.events import PeerState
from coloha.core.wire import Link, RejectedError, name_hash

log = logging.getLogger(__name__)

Address = tuple[str, int]


@dataclass(slots=True)
class Peer:
    """Another node: where it listens, how often it wants to hear from us (seconds)."""

    link: Link
    address: Address
    interval_s: float
    states: Callable[[], Mapping[str, PeerState]]
    """The pairs shared with it, by name."""
    deliver: Callable[[str, PeerState], None]
    """Takes what it says of a pair."""
    unattended: Callable[[str], None]
    """Told, for each pair, that its host answers that nobody listens there."""
    connection: socket.socket | None = None
    sent: int = 0
    accepted: int = 0
    timer: asyncio.TimerHandle | None = None
    pending: asyncio.Handle | None = None


class Heartbeats(asyncio.DatagramProtocol):
    """The socket to listen on, and for each peer one to send from and a timer.

    A socket that is connected learns what the other host's kernel answers: "port unreachable" says
    that the host lives and the daemon does not. Nobody signs that; it only makes a node wait, for a
    bounded time and once between two heartbeats.
    """

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._peers = peers
        self._by_hash = {name_hash(name): peer for name, peer in peers.items()}
        self._transport: asyncio.DatagramTransport | None = None
        self.bound: socket.socket | None = None
        """Where it listens."""
        self._source: Address = ("", 0)
        self._loop = asyncio.get_running_loop()
        self.rejected: Counter[str] = Counter()
        """Datagrams dropped, by reason."""
        self.send_errors = 0

    async def start(self, listen: Address, kept: socket.socket | None = None) -> None:
        """Bind the socket, unless one is `kept` that is, and begin to send.

        :raises OSError: if the address cannot be bound.
        """
        bound = kept or socket.socket(_family(listen), socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            if kept is None:
                bound.bind(listen)  # by hand: uvloop's error would not say what is wrong
            await self._loop.create_datagram_endpoint(lambda: self, sock=bound)
        except BaseException:
            bound.close()
            raise
        self.bound = bound
        self._source = (listen[0], 0)
        for peer in self._peers.values():
            self._tick(peer)

    def stop(self) -> None:
        """Send nothing more."""
        for peer in self._peers.values():
            for handle in (peer.timer, peer.pending):
                if handle is not None:
                    handle.cancel()
            _disconnect(peer)
        if self._transport is not None:
            self._transport.close()

    def beat(self, name: str) -> None:
        """Send a heartbeat to a peer once this round of the loop is over, however often asked."""
        peer = self._peers[name]
        if peer.pending is None:
            peer.pending = self._loop.call_soon(self._send, peer)

    def _tick(self, peer: Peer) -> None:
        peer.timer = self._loop.call_later(peer.interval_s, self._tick, peer)
        self._send(peer)

    def _send(self, peer: Peer) -> None:
        peer.pending = None
        if self._transport is None or self._transport.is_closing():
            return
        datagram = peer.link.pack(peer.states())
        try:
            try:
                self._connected(peer).send(datagram)
            except ConnectionRefusedError:  # the answer to the one before; this one was not sent
                for pair in peer.states():
                    peer.unattended(pair)
                self._connected(peer).send(datagram)
        except OSError:  # the next one is due soon anyway, by what the routes are then
            self.send_errors += 1
            _disconnect(peer)
        peer.sent += 1

    def _connected(self, peer: Peer) -> socket.socket:
        """Return the peer's socket.

        :raises OSError: if there is no way to the peer.
        """
        if peer.connection is None:
            connection = socket.socket(_family(peer.address), socket.SOCK_DGRAM)
            try:
                connection.setblocking(False)
                if _family(self._source) == _family(peer.address):
                    connection.bind(self._source)
                connection.connect(peer.address)
            except OSError:
                connection.close()
                raise
            peer.connection = connection
        return peer.connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is bound."""
        # uvloop's transport does not inherit from asyncio's, it only looks the same.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """A datagram came; who sent it is decided by its key, not by its address."""
        del addr
        peer = self._by_hash.get(data[8:16])
        if peer is None:
            self.rejected["stranger"] += 1
            return
        try:
            states = peer.link.unpack(data)
        except RejectedError as error:
            self.rejected[error.reason] += 1
            return
        peer.accepted += 1
        for pair in peer.states():
            state = states.get(name_hash(pair))
            if state is not None:
                peer.deliver(pair, state)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _disconnect(peer: Peer) -> None:
    if peer.connection is not None:
        peer.connection.close()
        peer.connection = None
