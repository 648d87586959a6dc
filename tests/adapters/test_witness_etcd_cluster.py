"""The witness on three members of etcd that die, hang and come back."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from coloha.adapters.witness import WitnessError
from coloha.adapters.witness_etcd import EtcdWitness
from coloha.core.record import Record, first_record, swap_problem
from lab.etcd import EtcdCluster
from tests.adapters.etcd_support import (
    PROTECTED,
    SOLO,
    failure,
    history_of,
    loopback,
    opened,
)
from tests.adapters.support import PATIENCE_S, Runner, eventually

SHORT_S = 1.5
"""Where a call must fail."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    quick = ["--heartbeat-interval", "100", "--election-timeout", "1000"]
    with loopback(tmp_path_factory.mktemp("trio"), 3, arguments=quick) as made:
        yield made


@pytest.fixture
def trio(cluster: EtcdCluster) -> Iterator[EtcdCluster]:
    """Three members, all well; whatever the test does to them is undone."""
    yield cluster
    for number in range(len(cluster.members)):
        if number in cluster.running():
            cluster.thaw(number)
        else:
            cluster.start(number)
    cluster.wait_ready()


async def beside(work: object) -> None:
    """Do what blocks without keeping the witnesses waiting."""
    await asyncio.to_thread(work)  # type: ignore[arg-type]


async def until_it_works(witness: EtcdWitness, pair: str) -> Record | None:
    """What it reads once etcd has a leader again."""
    async with asyncio.timeout(2 * PATIENCE_S):
        while True:
            with contextlib.suppress(WitnessError):
                return await witness.read(pair)


@dataclass
class Story:
    """All that the two nodes of a pair asked for, and what they were told."""

    pair: str
    made: list[Record] = field(default_factory=list)
    lost: list[tuple[Record, Record | None]] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    unknown: list[Record] = field(default_factory=list)
    ended: bool = False


async def live(story: Story, witness: EtcdWitness, me: str, numbers: Iterator[int]) -> None:
    """Protect and take over, as fast as the witness answers, until the story has ended."""
    other = "beta" if me == "alpha" else "alpha"
    while not story.ended:
        new: Record | None = None
        try:
            record = await witness.read(story.pair)
            if record is None:
                new = first_record(f"life-{me}", me)
            elif record.protected:
                new = record.take_over(me)
            elif record.primary == me:
                new = record.protect(other, next(numbers))
            else:
                continue
            found = await witness.swap(story.pair, record, new, me)
            if found == new:
                story.made.append(new)
            else:
                story.lost.append((new, found))
        except WitnessError as error:
            if new is not None:
                (story.unknown if error.unknown else story.failed).append(new)
            await asyncio.sleep(0.05)


def judge(story: Story, history: list[Record]) -> None:
    """Compare what was told with what etcd's own history of the key says."""
    assert len(set(history)) == len(history)
    for before, after in itertools.pairwise([None, *history]):
        by = after.primary if after is not None else ""
        assert after is not None
        assert swap_problem(before, after, by) is None, (before, after)
    for new in story.made:
        assert new in history, f"{new} was told made, and never was"
    for new in story.failed:
        assert new not in history, f"{new} was told not made, and was"
    for new, found in story.lost:
        assert found in history
        later = new not in history or history.index(new) < history.index(found)
        assert later, f"{new} was made, and {found}, older, was told instead"
    told = {*story.made, *story.unknown, *(new for new, _ in story.lost)}
    assert set(history) <= told, "something was made that nobody asked for"


async def go_on(stories: list[Story], count: int) -> None:
    """Wait for this many further swaps of each pair."""
    goals = [len(story.made) + count for story in stories]

    def reached() -> bool:
        return all(len(s.made) >= goal for s, goal in zip(stories, goals, strict=True))

    await eventually(reached, "further swaps")


def test_a_storm_of_swaps_while_leaders_die(run: Runner, trio: EtcdCluster, pair: str) -> None:
    """What is told made is in etcd's history, what is told not made is not; one line of records."""
    stories = [Story(f"{pair}-{number}") for number in range(3)]

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            numbers = itertools.count(1)
            lives = []
            for story, me in itertools.product(stories, ("alpha", "beta")):
                witness = await stack.enter_async_context(opened(trio.endpoints, 4.0))
                lives.append(asyncio.create_task(live(story, witness, me, numbers)))
            for _ in range(2):
                leader = await asyncio.to_thread(trio.leader)
                await go_on(stories, 10)
                trio.kill(leader)
                await go_on(stories, 5)
                trio.start(leader)
                await beside(trio.wait_ready)
            for story in stories:
                story.ended = True
            await asyncio.gather(*lives)

    run(main())
    for story in stories:
        judge(story, history_of(trio.endpoints[0], story.pair))


@pytest.mark.parametrize("harm", ["killed", "frozen"])
def test_without_a_majority_nothing_is_read_or_swapped(
    trio: EtcdCluster, pair: str, harm: str
) -> None:
    """The one that is left knows a record, and must not tell it: it may be old."""
    dead = [1, 2]

    async def main() -> None:
        async with opened(trio.endpoints, 8.0) as patient, opened(trio.endpoints, SHORT_S) as short:
            assert await patient.swap(pair, None, SOLO, "alpha") == SOLO
            assert await until_it_works(short, pair) == SOLO
            for number in dead:
                trio.kill(number) if harm == "killed" else trio.freeze(number)
            for call in (short.read(pair), short.swap(pair, SOLO, PROTECTED, "alpha")):
                async with asyncio.timeout(10 * SHORT_S):
                    error = await failure(call)
                assert trio.endpoints[0] in str(error)
                assert not error.unknown  # the read before the swap fails
            for number in dead:
                trio.start(number) if harm == "killed" else trio.thaw(number)
            assert await until_it_works(short, pair) == SOLO
            assert await patient.swap(pair, SOLO, PROTECTED, "alpha") == PROTECTED

    asyncio.run(main())


@pytest.mark.parametrize("harm", ["killed", "frozen"])
def test_one_member_may_be_lost(run: Runner, trio: EtcdCluster, pair: str, harm: str) -> None:
    """Whichever it is: the one asked first, a leader or not."""

    async def main() -> None:
        async with opened(trio.endpoints, 5.0) as witness:
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            trio.kill(0) if harm == "killed" else trio.freeze(0)
            assert await until_it_works(witness, pair) == SOLO
            assert await witness.swap(pair, SOLO, PROTECTED, "alpha") == PROTECTED
        async with opened(trio.endpoints, SHORT_S) as witness:
            # Once the others have found their leader, it names that one alone.
            async with asyncio.timeout(2 * PATIENCE_S):
                while True:
                    error = str(await failure(witness.probe(pair)))
                    assert trio.endpoints[0] in error
                    if not any(endpoint in error for endpoint in trio.endpoints[1:]):
                        break

    run(main())


def test_all_members_may_die_and_come_back(run: Runner, trio: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with opened(trio.endpoints, 9.0) as witness:
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            for number in range(3):
                trio.kill(number)
            for call in (witness.read(pair), witness.swap(pair, SOLO, PROTECTED, "alpha")):
                error = await failure(call)
                assert not error.unknown
                for endpoint in trio.endpoints:
                    assert f"{endpoint}: Connection refused: is etcd running there?" in str(error)
            for number in range(3):
                trio.start(number)
            await beside(trio.wait_ready)
            assert await witness.read(pair) == SOLO
            assert await witness.swap(pair, SOLO, PROTECTED, "alpha") == PROTECTED
            await witness.probe(pair)

    run(main())


def test_two_clusters_are_told_apart(trio: EtcdCluster, etcd: EtcdCluster, pair: str) -> None:
    """Etcd set up on each host by itself, both listed: two witnesses, which could both say yes."""

    async def main() -> None:
        async with opened([trio.endpoints[0], *etcd.endpoints], 9.0) as witness:
            assert await witness.read(pair) is None
            error = await failure(witness.probe(pair))
            assert etcd.endpoints[0] in str(error)
            assert "another etcd cluster" in str(error)
            trio.kill(0)
            for call in (witness.read(pair), witness.swap(pair, None, SOLO, "alpha")):
                assert "another etcd cluster" in str(await failure(call))

    asyncio.run(main())
    assert history_of(etcd.endpoints[0], pair) == []
