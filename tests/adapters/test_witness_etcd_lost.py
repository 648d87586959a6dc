"""Swaps whose reply is lost: made and not known, executed late, never executed, never sent."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from coloha import config
from coloha.adapters.etcd import Etcd
from coloha.core.record import Record
from lab.etcd import EtcdCluster
from tests.adapters.etcd_support import (
    PROTECTED,
    SOLO,
    Exchange,
    Fate,
    Proxy,
    done_and_closed,
    done_and_half_said,
    done_and_reset,
    done_and_silent,
    dropped,
    failure,
    history_of,
    lost,
    opened,
    passes,
    passes_and_stays,
    says,
    value_of,
)
from tests.adapters.support import Runner, eventually, ticking

TIMEOUT_S = 1.5
"""Where a call must come to its deadline."""

RETRY_S = 3.0
"""Where a first request that is met with silence must leave time for the next."""

TIMED_OUT = b'{"error": "etcdserver: request timed out", "code": 14}'
LEADER_CHANGED = b'{"error": "etcdserver: leader changed", "code": 14}'

DONE_AND_LOST: dict[str, Fate] = {
    "closed": done_and_closed,
    "reset": done_and_reset,
    "silent": done_and_silent,
    "half said": done_and_half_said,
    "timed out": says(503, TIMED_OUT, done=True),
    "leader changed": says(503, LEADER_CHANGED, done=True),
    "a gateway's error": says(502, b"<html>", done=True),
    "nonsense": says(200, b"nonsense", done=True),
    "too much to pass on": says(429, b'{"error": "grpc: too large", "code": 8}', done=True),
}
NOT_DONE: dict[str, Fate] = {
    "silent": lost,
    "closed": dropped,
    "timed out": says(503, TIMED_OUT),
}
LOST = {
    **{f"done, {name}": fate for name, fate in DONE_AND_LOST.items()},
    **{f"not done, {name}": fate for name, fate in NOT_DONE.items()},
}


def revision_of(etcd: EtcdCluster, pair: str) -> int:
    found = value_of(etcd.endpoints[0], f"/coloha/{pair}")
    assert found is not None
    return found[1]


@pytest.mark.parametrize("fate", LOST)
def test_what_is_lost_is_asked_for_again(
    run: Runner, etcd: EtcdCluster, pair: str, fate: str
) -> None:
    """If it was made, the copy that is answered finds the record, and nobody else writes the same;
    if not, the copy makes it.
    """

    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url], RETRY_S) as witness:
            proxy.expect("txn", LOST[fate])
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            assert proxy.seen.count("txn") == 2

    run(main())
    assert history_of(etcd.endpoints[0], pair) == [SOLO]


@pytest.mark.parametrize("fate", DONE_AND_LOST)
def test_without_any_answer_the_outcome_is_unknown_and_a_read_tells_it(
    etcd: EtcdCluster, pair: str, fate: str
) -> None:
    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url], TIMEOUT_S) as witness:
            proxy.expect("txn", *[DONE_AND_LOST[fate]] * 2)
            assert (await failure(witness.swap(pair, None, SOLO, "alpha"))).unknown
        async with opened(etcd.endpoints) as witness:
            assert await witness.read(pair) == SOLO
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO

    asyncio.run(main())
    assert history_of(etcd.endpoints[0], pair) == [SOLO]


@pytest.mark.parametrize("fate", NOT_DONE)
def test_a_request_that_was_received_may_be_executed_yet(
    etcd: EtcdCluster, pair: str, fate: str
) -> None:
    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url], TIMEOUT_S) as witness:
            proxy.expect("txn", *[NOT_DONE[fate]] * 2)
            error = await failure(witness.swap(pair, None, SOLO, "alpha"))
            assert error.unknown
            assert proxy.url in str(error)
        async with opened(etcd.endpoints) as witness:
            assert await witness.read(pair) is None

    asyncio.run(main())


class Late:
    """Holds requests back until it is told to do them."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self._go = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self._go.wait()
        self.done.append(await exchange.forward())

    async def execute(self, count: int) -> None:
        self._go.set()
        await eventually(lambda: len(self.done) == count, "the late requests")


def test_a_late_swap_is_made_once(etcd: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with (
            Proxy(etcd.endpoints[0]) as proxy,
            opened([proxy.url], TIMEOUT_S) as witness,
            opened(etcd.endpoints) as other,
        ):
            await other.swap(pair, None, SOLO, "alpha")
            late = Late()
            proxy.expect("txn", late, late)
            assert (await failure(witness.swap(pair, SOLO, PROTECTED, "alpha"))).unknown
            assert await witness.read(pair) == SOLO
            before = revision_of(etcd, pair)
            await late.execute(2)
            assert await witness.read(pair) == PROTECTED
            assert sum(b'"succeeded":true' in answer for answer in late.done) == 1
            assert revision_of(etcd, pair) > before

    asyncio.run(main())
    assert history_of(etcd.endpoints[0], pair) == [SOLO, PROTECTED]


def test_a_late_swap_never_overrules_what_came_between(etcd: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with (
            Proxy(etcd.endpoints[0]) as proxy,
            opened([proxy.url], TIMEOUT_S) as alpha,
            opened(etcd.endpoints) as beta,
        ):
            await beta.swap(pair, None, SOLO, "alpha")
            await beta.swap(pair, SOLO, PROTECTED, "alpha")
            late = Late()
            proxy.expect("txn", late, late)
            mine, theirs = PROTECTED.take_over("alpha"), PROTECTED.take_over("beta")
            assert (await failure(alpha.swap(pair, PROTECTED, mine, "alpha"))).unknown
            assert await beta.swap(pair, PROTECTED, theirs, "beta") == theirs
            await late.execute(2)
            assert await alpha.swap(pair, PROTECTED, mine, "alpha") == theirs

    asyncio.run(main())
    taken = PROTECTED.take_over("beta")
    assert history_of(etcd.endpoints[0], pair) == [SOLO, PROTECTED, taken]


def between(act: Callable[[], Awaitable[object]]) -> Fate:
    """Before the request is done, something else happens."""

    async def fate(exchange: Exchange) -> None:
        await act()
        await passes(exchange)

    return fate


@pytest.mark.parametrize("made", [True, False])
def test_the_record_that_stands_is_told_whatever_came_between(
    etcd: EtcdCluster, pair: str, made: bool
) -> None:
    """Beta takes over after alpha's swap was made, or before it is; alpha's reply is lost."""
    protected = SOLO.protect("beta", 8)

    async def main() -> None:
        async with (
            Proxy(etcd.endpoints[0]) as proxy,
            opened([proxy.url], RETRY_S) as alpha,
            opened(etcd.endpoints) as beta,
        ):
            await beta.swap(pair, None, SOLO, "alpha")

            async def meanwhile() -> None:
                stands = await beta.read(pair)
                if not made:
                    stands = await beta.swap(pair, SOLO, protected, "alpha")
                assert stands is not None
                assert stands.secondary == "beta"
                await beta.swap(pair, stands, stands.take_over("beta"), "beta")

            fates = [done_and_reset] if made else []
            proxy.expect("txn", *fates, between(meanwhile))
            found = await alpha.swap(pair, SOLO, PROTECTED, "alpha")
            assert found == Record("life", 2, "beta")

    asyncio.run(main())
    middle = PROTECTED if made else protected
    assert history_of(etcd.endpoints[0], pair) == [SOLO, middle, Record("life", 2, "beta")]


def test_what_was_never_sent_is_no_doubt(run: Runner, etcd: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url]) as witness:

            async def last(exchange: Exchange) -> None:
                proxy.stop()
                await passes(exchange)

            proxy.expect("range", last)
            error = await failure(witness.swap(pair, None, SOLO, "alpha"))
            assert not error.unknown
            assert "Connection refused: is etcd running there?" in str(error)

    run(main())
    assert value_of(etcd.endpoints[0], f"/coloha/{pair}") is None


def test_a_request_on_a_connection_that_was_open_already_was_sent(
    run: Runner, etcd: EtcdCluster, pair: str
) -> None:
    async def main() -> None:
        async with (
            Proxy(etcd.endpoints[0]) as proxy,
            opened([proxy.url], TIMEOUT_S) as witness,
        ):
            proxy.keeps_alive, proxy.otherwise = True, passes_and_stays

            async def last(exchange: Exchange) -> None:
                proxy.stop()
                exchange.reset()

            proxy.expect("txn", last)
            error = await failure(witness.swap(pair, None, SOLO, "alpha"))
            assert error.unknown
            assert proxy.connections == 1

    run(main())


def test_a_swap_without_a_read_is_no_doubt(etcd: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url], TIMEOUT_S) as witness:
            for fate in (lost, dropped, says(503, TIMED_OUT)):
                proxy.expect("range", fate, fate)
                assert not (await failure(witness.swap(pair, None, SOLO, "alpha"))).unknown
            assert "txn" not in proxy.seen

    asyncio.run(main())


def test_a_refusal_is_no_doubt_unless_a_copy_was_sent(etcd: EtcdCluster, pair: str) -> None:
    refusal = says(403, b'{"error": "etcdserver: permission denied", "code": 7}')

    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url], RETRY_S) as witness:
            proxy.expect("txn", refusal)
            error = await failure(witness.swap(pair, None, SOLO, "alpha"))
            assert not error.unknown
            assert "grant witness.user readwrite" in str(error)
            proxy.expect("txn", lost, refusal)
            assert (await failure(witness.swap(pair, None, SOLO, "alpha"))).unknown

    asyncio.run(main())


def test_a_read_that_takes_all_the_time_leaves_none_to_swap(etcd: EtcdCluster, pair: str) -> None:
    section = config.EtcdWitness(type="etcd", endpoints=tuple(etcd.endpoints))

    async def main() -> None:
        client = Etcd(section)
        past = asyncio.get_running_loop().time() - 0.001
        error = await failure(client.ask("kv/txn", {}, past, changes=True))
        assert "no time was left" in str(error)
        assert not error.unknown
        await client.close()

    asyncio.run(main())


@pytest.fixture
def nowhere() -> object:
    """An address where connections are neither accepted nor refused: its queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        full = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            full.append(filler)
        yield f"http://127.0.0.1:{port}"
        for filler in full:
            filler.close()


def test_a_member_that_is_not_there_costs_its_share_only(
    run: Runner, etcd: EtcdCluster, pair: str, nowhere: str
) -> None:
    """If the silent ones took the whole time, the last would never be asked."""

    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy:
            proxy.otherwise = lost
            endpoints = [nowhere, proxy.url, "http://127.0.0.1:1", *etcd.endpoints]
            async with opened(endpoints, RETRY_S) as witness, ticking():
                assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
                asked = len(proxy.seen)
                # From now on the one that answered is asked first.
                for _ in range(5):
                    assert await witness.read(pair) == SOLO
                assert len(proxy.seen) == asked

    run(main())


def test_a_swap_sent_nowhere_is_no_doubt(
    run: Runner, etcd: EtcdCluster, pair: str, nowhere: str
) -> None:
    async def main() -> None:
        async with (
            Proxy(etcd.endpoints[0]) as proxy,
            opened([proxy.url, nowhere], TIMEOUT_S) as witness,
        ):

            async def last(exchange: Exchange) -> None:
                proxy.stop()
                await passes(exchange)

            proxy.expect("range", last)
            error = await failure(witness.swap(pair, None, SOLO, "alpha"))
            assert not error.unknown
            assert "no answer: is the host up" in str(error)

    run(main())


def test_whoever_stops_waiting_leaves_nothing_behind(
    run: Runner, etcd: EtcdCluster, pair: str
) -> None:
    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url]) as witness:
            proxy.expect("txn", lost)
            swap = asyncio.create_task(witness.swap(pair, None, SOLO, "alpha"))
            await eventually(lambda: "txn" in proxy.seen, "the transaction")
            swap.cancel()
            with pytest.raises(asyncio.CancelledError):
                await swap
            assert await witness.read(pair) is None
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not [task for task in others if "_ask" in repr(task.get_coro())]

    run(main())
