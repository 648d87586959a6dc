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
    sent: int = 0
    accepted: int = 0
    timer: asyncio.TimerHandle | None = None
    pending: asyncio.Handle | None = None


class Heartbeats(asyncio.DatagramProtocol):
    """The socket, and every peer's timer."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._peers = peers
        self._by_hash = {name_hash(name): peer for name, peer in peers.items()}
        self._transport: asyncio.DatagramTransport | None = None
        self._loop = asyncio.get_running_loop()
        self.rejected: Counter[str] = Counter()
        """Datagrams dropped, by reason."""
        self.send_errors = 0

    async def start(self, listen: Address) -> None:
        """Bind the socket and begin to send.

        :raises OSError: if the address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            bound.bind(listen)  # by hand: uvloop's error would not say what is wrong
            await self._loop.create_datagram_endpoint(lambda: self, sock=bound)
        except BaseException:
            bound.close()
            raise
        for peer in self._peers.values():
            self._tick(peer)

    def stop(self) -> None:
        """Send nothing more."""
        for peer in self._peers.values():
            for handle in (peer.timer, peer.pending):
                if handle is not None:
                    handle.cancel()
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
        self._transport.sendto(peer.link.pack(peer.states()), peer.address)
        peer.sent += 1

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

    def error_received(self, exc: Exception) -> None:
        """The network refused a datagram; the next one is due soon anyway."""
        del exc
        self.send_errors += 1
