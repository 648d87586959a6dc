"""Many processes that change one record at once, and die while they do."""

import asyncio
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from coloha.adapters.witness import WitnessError
from coloha.adapters.witness_file import FileWitness
from coloha.core.record import Record, first_record
from tests.adapters.support import LOOPS, PATIENCE_S

SPAWN = multiprocessing.get_context("spawn")
GENERATIONS = 60
SOON_S = 0.001
"""Not 0: processes that ask without pause can keep a kernel from finishing the winner's fsync."""
SOLO = first_record("life", "alpha")


def both_loops(number: int) -> Callable[[], asyncio.AbstractEventLoop]:
    """Workers take turns in which event loop they use."""
    return list(LOOPS.values())[number % 2]


def start(work: Any, number: int, *arguments: Any) -> tuple[Any, Connection]:
    """Start a worker; return its process and where its answer comes."""
    here, there = SPAWN.Pipe()
    worker = SPAWN.Process(target=work, args=(number, there, *arguments), daemon=True)
    worker.start()
    there.close()
    return worker, here


def make_first(number: int, answers: Connection, directory: Path, rounds: int) -> None:
    """Try to make the first record of pair after pair, all workers at once."""

    async def main() -> None:
        witness = FileWitness(directory, PATIENCE_S)
        for round_ in range(rounds):
            new = first_record(f"life-{number}", f"node-{number}")
            answers.send("ready")
            answers.recv()
            answers.send(await witness.swap(f"pair-{round_}", None, new, f"node-{number}"))
        await witness.close()

    with asyncio.Runner(loop_factory=both_loops(number)) as runner:
        runner.run(main())


def test_one_of_many_makes_the_first_record(tmp_path: Path) -> None:
    rounds = 30
    workers = [start(make_first, number, tmp_path, rounds) for number in range(6)]
    for _ in range(rounds):
        assert [answers.recv() for _, answers in workers] == ["ready"] * len(workers)
        for _, answers in workers:
            answers.send("go")
        (made,) = {answers.recv() for _, answers in workers}
        assert made.lineage.removeprefix("life-") == made.primary.removeprefix("node-")
    for worker, answers in workers:
        worker.join(PATIENCE_S)
        assert worker.exitcode == 0
        answers.close()


async def swapped(witness: FileWitness, old: Record, new: Record) -> bool:
    """Ask until there is an answer: whoever holds the lock may stand still for long."""
    while True:
        try:
            return await witness.swap("vm", old, new, "alpha") == new
        except WitnessError as error:
            if error.unknown or "locked by the other node" not in str(error):
                raise


def take_turns(number: int, answers: Connection, directory: Path) -> None:
    """Protect and end generation after generation; answer with the sessions won."""
    sessions = itertools.count(1 + (number << 20))

    async def main() -> list[tuple[int, int]]:
        witness = FileWitness(directory, PATIENCE_S)
        won: list[tuple[int, int]] = []
        mine: set[int | None] = set()
        newest = 0
        while True:
            record = await witness.read("vm")
            assert record is not None
            assert record.generation >= newest, "a record came back"
            newest = record.generation
            if newest > GENERATIONS:
                await witness.close()
                return won
            if not record.protected:
                new = record.protect("beta", next(sessions))
                if await swapped(witness, record, new):
                    assert new.session is not None
                    won.append((new.generation, new.session))
                    mine.add(new.session)
            elif record.session in mine:
                # Whoever won is alone now: nobody else may have changed the record.
                assert await swapped(witness, record, record.take_over("alpha"))
            else:
                await asyncio.sleep(SOON_S)

    with asyncio.Runner(loop_factory=both_loops(number)) as runner:
        answers.send(runner.run(main()))


def begin(directory: Path) -> None:
    async def main() -> None:
        witness = FileWitness(directory, PATIENCE_S)
        assert await witness.swap("vm", None, SOLO, "alpha") == SOLO
        await witness.close()

    asyncio.run(main())


def read(directory: Path) -> Record | None:
    async def main() -> Record | None:
        witness = FileWitness(directory, PATIENCE_S)
        try:
            return await witness.read("vm")
        finally:
            await witness.close()

    return asyncio.run(main())


@pytest.mark.parametrize("attempt", range(2))
def test_exactly_one_wins_each_generation(tmp_path: Path, attempt: int) -> None:
    begin(tmp_path)
    workers = [start(take_turns, number, tmp_path) for number in range(5)]
    won = [answer for _, answers in workers for answer in answers.recv()]
    for worker, _ in workers:
        worker.join(PATIENCE_S)
        assert worker.exitcode == 0
    winners = Counter(generation for generation, _ in won)
    assert winners == dict.fromkeys(range(1, GENERATIONS + 1), 1)
    assert read(tmp_path) == Record("life", GENERATIONS + 1, "alpha")


def change_for_ever(number: int, answers: Connection, directory: Path) -> None:
    """Protect and end generations until killed."""

    async def main() -> None:
        witness = FileWitness(directory, PATIENCE_S)
        for session in itertools.count(1):
            record = await witness.read("vm")
            assert record is not None
            new = record.take_over("alpha") if record.protected else record.protect("beta", session)
            await witness.swap("vm", record, new, "alpha")
            answers.send(new.generation)

    with asyncio.Runner(loop_factory=both_loops(number)) as runner:
        runner.run(main())


def test_a_process_killed_in_the_middle_leaves_a_record_and_no_lock(tmp_path: Path) -> None:
    begin(tmp_path)
    rng = random.Random(1)
    newest = 0
    for number in range(6):
        worker, answers = start(change_for_ever, number, tmp_path)
        assert answers.recv() >= newest
        end = time.monotonic() + rng.uniform(0.0, 0.05)
        said = 0
        while time.monotonic() < end:
            said = answers.recv()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(PATIENCE_S)
        answers.close()
        record = read(tmp_path)
        assert record is not None
        assert record.generation >= max(said, newest), "what was answered is lost"
        newest = record.generation
        # The dead one's lock is gone with it.
        asyncio.run(one_more(tmp_path, record))


async def one_more(directory: Path, record: Record) -> None:
    witness = FileWitness(directory, PATIENCE_S)
    new = record.take_over("alpha") if record.protected else record.protect("beta", 1)
    assert await witness.swap("vm", record, new, "alpha") == new
    await witness.close()


def test_whoever_reads_while_others_write_never_sees_a_torn_record(tmp_path: Path) -> None:
    begin(tmp_path)
    workers = [start(take_turns, number, tmp_path) for number in range(2)]

    async def watch() -> set[int]:
        witness = FileWitness(tmp_path, PATIENCE_S)
        seen = set()
        try:
            while not all(answers.poll() for _, answers in workers):
                record = await witness.read("vm")
                assert record is not None
                seen.add(record.generation)
        except WitnessError as error:  # pragma: no cover - what the test is for
            pytest.fail(str(error))
        finally:
            await witness.close()
        return seen

    seen = asyncio.run(watch())
    assert len(seen) > 1, "nothing changed while it was watched"
    won = [answer for _, answers in workers for answer in answers.recv()]
    assert len(won) == GENERATIONS
    for worker, _ in workers:
        worker.join(PATIENCE_S)
