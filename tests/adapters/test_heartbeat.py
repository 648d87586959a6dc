"""Heartbeats over real UDP sockets, with somebody on the wire who keeps and repeats them."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from coloha.adapters.heartbeat import Address, Heartbeats, Peer
from coloha.core.events import PeerState
from coloha.core.wire import Link, Reject
from tests.adapters.support import KEY, OTHER_KEY, Runner, eventually, state

INTERVAL_S = 0.02
NEVER_S = 3600.0
MOST = 50
"""Datagrams that a socket's buffer surely holds."""
NONCES = itertools.count(1000)


class Tap(asyncio.DatagramProtocol):
    """The way to one node: keeps all that passes."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.cut = False
        self.target: Address | None = None
        self.transport: asyncio.DatagramTransport | None = None
        self.injector = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def connection_lost(self, exc: Exception | None) -> None:
        self.injector.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.kept.append(data)
        if not self.cut:
            self.inject(data)

    def inject(self, data: bytes) -> None:
        """Send to the node."""
        if self.target is not None:
            self.injector.sendto(data, self.target)

    @property
    def address(self) -> Address:
        assert self.transport is not None
        return cast("Address", self.transport.get_extra_info("sockname"))


@dataclass
class Node:
    """One end, started and stopped like a daemon's."""

    name: str
    way: Tap
    key: bytes = KEY
    interval_s: float = INTERVAL_S
    pairs: dict[str, PeerState] = field(default_factory=lambda: {"vm": state()})
    heard: list[tuple[str, PeerState]] = field(default_factory=list)
    unattended: list[str] = field(default_factory=list)
    heartbeats: Heartbeats | None = None
    peer: Peer | None = None

    async def start(self, peer: str, way: Tap) -> None:
        """Begin a life."""
        self.peer = Peer(
            Link(self.name, peer, self.key, nonce=next(NONCES)),
            way.address,
            self.interval_s,
            states=lambda: self.pairs,
            deliver=lambda pair, said: self.heard.append((pair, said)),
            unattended=self.unattended.append,
        )
        self.heartbeats = Heartbeats({peer: self.peer})
        await self.heartbeats.start(("127.0.0.1", 0))
        assert self.heartbeats._transport is not None
        self.way.target = self.heartbeats._transport.get_extra_info("sockname")

    def stop(self) -> None:
        assert self.heartbeats is not None
        self.heartbeats.stop()
        self.way.target = None

    def redirect(self, address: Address) -> None:
        """Send to another address from now on."""
        assert self.peer is not None
        self.peer.address = address
        if self.peer.connection is not None:
            self.peer.connection.close()
            self.peer.connection = None

    @property
    def rejected(self) -> dict[str, int]:
        assert self.heartbeats is not None
        return dict(self.heartbeats.rejected)

    @property
    def sent(self) -> int:
        assert self.peer is not None
        return self.peer.sent

    async def heard_again(self) -> None:
        """Wait for news."""
        count = len(self.heard)
        await eventually(lambda: len(self.heard) > count, f"{self.name} hears something")


@contextlib.asynccontextmanager
async def nodes(
    key: bytes = KEY, interval_s: float = INTERVAL_S, *, start: bool = True
) -> AsyncIterator[tuple[Node, Node]]:
    """Alpha and beta; `key` is beta's."""
    loop = asyncio.get_running_loop()
    taps = [
        (await loop.create_datagram_endpoint(Tap, local_addr=("127.0.0.1", 0)))[1] for _ in range(2)
    ]
    alpha = Node("alpha", taps[0], interval_s=interval_s)
    beta = Node("beta", taps[1], key, interval_s)
    await alpha.start("beta", beta.way)
    if start:
        await beta.start("alpha", alpha.way)
    try:
        yield alpha, beta
    finally:
        for node in (alpha, beta):
            if node.heartbeats is not None:
                node.stop()
        for tap in taps:
            assert tap.transport is not None
            tap.transport.close()
        await asyncio.sleep(0.01)


def test_two_nodes_hear_what_the_other_says(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            alpha.pairs = {"vm": state(generation=5), "db": state(session=None, gave_up=9)}
            beta.pairs = {"vm": state(generation=6, pulse=2**64 - 1), "db": state(echo=0)}
            await alpha.heard_again()
            await beta.heard_again()
            await eventually(
                lambda: (
                    set(alpha.heard[-2:]) == set(beta.pairs.items())
                    and set(beta.heard[-2:]) == set(alpha.pairs.items())
                ),
                "both say both pairs",
            )
            # Each proves that it lives before it is believed; from then on nothing is dropped.
            assert alpha.rejected.keys() | beta.rejected.keys() == {Reject.UNPROVEN}
            before = alpha.rejected, beta.rejected
            for _ in range(5):
                await alpha.heard_again()
                await beta.heard_again()
            assert (alpha.rejected, beta.rejected) == before

    run(main())


def test_they_go_on_at_their_interval(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await eventually(lambda: alpha.sent > 10, "ten intervals")
            await eventually(lambda: len(beta.heard) > 10, "all of them heard")

    run(main())


def test_many_wishes_are_one_heartbeat(run: Runner) -> None:
    async def main() -> None:
        async with nodes(interval_s=NEVER_S) as (alpha, beta):
            assert alpha.heartbeats is not None
            for turn in range(1, 4):
                for _ in range(100):
                    alpha.heartbeats.beat("beta")
                assert alpha.sent == turn  # not within this round of the loop
                await eventually(lambda turn=turn: alpha.sent > turn, "a heartbeat")  # type: ignore[misc]
                await asyncio.sleep(0.01)
                assert alpha.sent == turn + 1
            await eventually(lambda: len(beta.way.kept) == 4, "four on the wire")

    run(main())


def test_a_wish_says_what_is_true_at_the_end_of_the_round(run: Runner) -> None:
    async def main() -> None:
        async with nodes(interval_s=NEVER_S) as (alpha, beta):
            assert alpha.heartbeats is not None
            assert beta.heartbeats is not None
            while not (alpha.heard and beta.heard):
                beta.heartbeats.beat("alpha")
                alpha.heartbeats.beat("beta")
                await asyncio.sleep(0.01)
            alpha.heartbeats.beat("beta")
            alpha.pairs = {"vm": state(gave_up=77)}
            await eventually(lambda: beta.heard[-1:] == [("vm", state(gave_up=77))], "the news")

    run(main())


def test_nothing_is_sent_after_the_end(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, _):
            assert alpha.heartbeats is not None
            alpha.heartbeats.beat("beta")
            alpha.stop()
            sent = alpha.sent
            alpha.heartbeats.beat("beta")
            await asyncio.sleep(5 * INTERVAL_S)
            assert alpha.sent == sent

    run(main())


def test_strangers_are_counted_by_reason_and_change_nothing(run: Runner) -> None:
    def made(me: str, peer: str, key: bytes = KEY) -> bytes:
        return Link(me, peer, key, nonce=5).pack({"vm": state(gave_up=1)})

    async def main() -> None:
        async with nodes() as (alpha, beta):
            await alpha.heard_again()
            genuine = alpha.way.kept[-1]
            before = dict(alpha.rejected)
            crafted = {
                "stranger": made("gamma", "alpha"),
                Reject.KEY: made("beta", "alpha", OTHER_KEY),
                Reject.NAMES: made("beta", "gamma"),
                Reject.VERSION: genuine[:4] + b"\x01" + genuine[5:],
                Reject.MAC: genuine[:-1] + bytes([genuine[-1] ^ 1]),
                Reject.MALFORMED: genuine[:-1],
                Reject.REPLAY: genuine,
            }
            for datagram in crafted.values():
                alpha.way.inject(datagram)
            expected = {**before, **dict.fromkeys(crafted, 1)}
            await eventually(lambda: alpha.rejected == expected, "each counted once")
            await alpha.heard_again()
            assert {said for _, said in alpha.heard} == set(beta.pairs.values())

    run(main())


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 103, 104, 1400, 9000, 60_000])
def test_datagrams_of_any_size_do_no_harm(run: Runner, size: int) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await alpha.heard_again()
            genuine = alpha.way.kept[-1]
            before = sum(alpha.rejected.values())
            alpha.way.inject((genuine + bytes(size))[:size] if size < 200 else bytes(size))
            await eventually(lambda: sum(alpha.rejected.values()) > before, "it is counted")
            await alpha.heard_again()
            await beta.heard_again()

    run(main())


def test_a_node_with_another_key_is_not_heard(run: Runner) -> None:
    async def main() -> None:
        async with nodes(OTHER_KEY) as (alpha, beta):
            await eventually(lambda: alpha.rejected.get(Reject.KEY, 0) > 5, "five at alpha")
            await eventually(lambda: beta.rejected.get(Reject.KEY, 0) > 5, "five at beta")
            assert alpha.heard == beta.heard == []

    run(main())


def test_whatever_is_sent_twice_counts_once(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await eventually(lambda: len(alpha.heard) > 5, "an exchange")
            beta.stop()
            await asyncio.sleep(2 * INTERVAL_S)
            before, count = alpha.rejected, len(alpha.heard)
            kept = alpha.way.kept[-MOST:]
            for datagram in kept:
                alpha.way.inject(datagram)
            await eventually(
                lambda: sum(alpha.rejected.values()) == sum(before.values()) + len(kept),
                "all of them rejected",
            )
            assert len(alpha.heard) == count

    run(main())


def test_a_node_does_not_hear_itself(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await beta.heard_again()
            await alpha.heard_again()
            beta.stop()
            await asyncio.sleep(2 * INTERVAL_S)
            count = len(alpha.heard)
            own = beta.way.kept[-MOST:]
            for datagram in own:
                alpha.way.inject(datagram)
            await eventually(lambda: alpha.rejected.get("stranger") == len(own), "all rejected")
            assert len(alpha.heard) == count

    run(main())


def test_a_restarted_node_is_heard_again_and_its_earlier_life_no_more(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            for life in range(2, 5):
                await eventually(lambda: len(beta.heard) > 2, "beta hears")
                await alpha.heard_again()
                beta.stop()
                old = alpha.way.kept[-MOST:]
                await asyncio.sleep(INTERVAL_S)
                for datagram in old:  # nobody speaks for a node that is down
                    alpha.way.inject(datagram)
                beta.heard.clear()
                beta.pairs = {"vm": state(generation=100 * life)}
                sent = alpha.sent
                await beta.start("alpha", alpha.way)
                await eventually(
                    lambda life=life: alpha.heard[-1][1].generation == 100 * life,  # type: ignore[misc]
                    "the new life is heard",
                )
                await beta.heard_again()
                assert alpha.sent - sent < 200  # a few intervals, on a busy machine
                count = len(alpha.heard)
                for datagram in old:
                    alpha.way.inject(datagram)
                await alpha.heard_again()
                since = {said.generation for _, said in alpha.heard[count:]}
                assert since == {100 * life}

    run(main())


def test_a_life_nobody_heard_cannot_take_the_place_of_the_present_one(run: Runner) -> None:
    """The network held its datagrams back until the node had started again."""

    async def main() -> None:
        async with nodes(start=False) as (alpha, beta):
            alpha.way.cut = True
            await beta.start("alpha", alpha.way)
            await eventually(lambda: beta.rejected, "beta has seen alpha")
            await eventually(lambda: beta.sent > 10, "beta answers, in vain")
            beta.stop()
            held_back = list(alpha.way.kept)
            alpha.way.cut = False
            beta.pairs = {"vm": state(generation=200)}
            await beta.start("alpha", alpha.way)
            await alpha.heard_again()
            await beta.heard_again()
            for _ in range(3):
                for datagram in held_back:
                    alpha.way.inject(datagram)
                await alpha.heard_again()
                await beta.heard_again()
            assert {said.generation for _, said in alpha.heard} == {200}

    run(main())


def test_both_restart_at_once(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await alpha.heard_again()
            await beta.heard_again()
            alpha.stop()
            beta.stop()
            old = [(node, list(node.way.kept)) for node in (alpha, beta)]
            await alpha.start("beta", beta.way)
            await beta.start("alpha", alpha.way)
            for node, datagrams in old:
                for datagram in datagrams:
                    node.way.inject(datagram)
            await alpha.heard_again()
            await beta.heard_again()

    run(main())


def test_pairs_that_only_one_node_knows_are_passed_over(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            beta.pairs = {"vm": state(generation=8), "new": state()}
            alpha.pairs = {"vm": state(), "gone": state()}
            await eventually(lambda: len(alpha.heard) > 3, "alpha hears")
            assert {pair for pair, _ in alpha.heard} == {"vm"}
            await beta.heard_again()
            assert {pair for pair, _ in beta.heard} == {"vm"}

    run(main())


def test_a_node_that_is_down_does_not_stop_the_others(run: Runner) -> None:
    async def main() -> None:
        async with nodes(start=False) as (alpha, beta):
            await eventually(lambda: alpha.sent > 5, "it goes on")
            await beta.start("alpha", alpha.way)
            await alpha.heard_again()

    run(main())


def test_a_network_that_refuses_is_counted_and_tried_again(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await alpha.heard_again()
            assert alpha.peer is not None
            assert alpha.heartbeats is not None
            heartbeats = alpha.heartbeats
            # Without SO_BROADCAST the kernel refuses this at once, as it does without a route.
            alpha.redirect(("255.255.255.255", 9))
            await eventually(lambda: heartbeats.send_errors > 3, "refused again and again")
            alpha.peer.address = beta.way.address
            await beta.heard_again()
            await alpha.heard_again()

    run(main())


def test_a_daemon_that_is_away_is_told_from_a_host_that_is(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, beta):
            await alpha.heard_again()
            assert alpha.unattended == []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
                closed.bind(("127.0.0.1", 0))
                nobody = closed.getsockname()
            assert alpha.peer is not None
            alpha.redirect(nobody)
            await eventually(lambda: len(alpha.unattended) > 3, "the kernel's answers")
            assert set(alpha.unattended) == {"vm"}
            # A datagram that is refused does not keep the next one from being sent.
            alpha.redirect(beta.way.address)
            await alpha.heard_again()
            alpha.unattended.clear()
            await alpha.heard_again()
            assert alpha.unattended == []

    run(main())


def test_an_address_in_use_is_an_error(run: Runner) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match="in use"):
                await Heartbeats({}).start(taken.getsockname())

    run(main())


def test_a_flood_of_garbage_does_not_drown_the_peer(run: Runner) -> None:
    async def main() -> None:
        async with nodes() as (alpha, _):
            await alpha.heard_again()
            genuine = alpha.way.kept[-1]
            forged = genuine[:-1] + bytes([genuine[-1] ^ 1])
            for _ in range(20):
                for _ in range(100):
                    alpha.way.inject(forged)
                await alpha.heard_again()
            assert alpha.rejected[Reject.MAC] > 100

    run(main())
