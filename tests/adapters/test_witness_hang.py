"""A witness whose file system hangs: a FIFO in the place of the record makes opening it wait."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from coloha.adapters.witness import WitnessError
from coloha.adapters.witness_file import FileWitness
from coloha.core.record import Record, first_record
from tests.adapters.support import Runner, eventually, ticking

SOLO = first_record("life", "alpha")
PROTECTED = SOLO.protect("beta", 7)
TIMEOUT_S = 0.5


class Hanging:
    """A witness folder that hangs, until told what to answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "vm.json"
        os.mkfifo(self.record)

    async def answer(self, record: Record) -> None:
        """The file system is back: the call that waits reads `record`."""
        # Not before the reader is there, or the text would be lost.
        writer = -1
        while writer < 0:
            with contextlib.suppress(OSError):
                writer = os.open(self.record, os.O_WRONLY | os.O_NONBLOCK)
            await asyncio.sleep(0.001)
        os.write(writer, json.dumps(asdict(record)).encode())
        os.close(writer)

    def end(self) -> None:
        """Let go whoever still waits."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.record, os.O_RDWR | os.O_NONBLOCK))


@contextlib.asynccontextmanager
async def hanging(directory: Path) -> AsyncIterator[tuple[Hanging, FileWitness]]:
    folder = Hanging(directory)
    witness = FileWitness(directory, TIMEOUT_S)
    try:
        yield folder, witness
    finally:
        folder.end()
        await witness.close()


async def failure(answer: object) -> WitnessError:
    with pytest.raises(WitnessError) as caught:
        await answer  # type: ignore[misc]
    return caught.value


async def answered(witness: FileWitness, pair: str) -> Record | None:
    """What it reads, as soon as it hangs no more."""
    while True:
        with contextlib.suppress(WitnessError):
            return await witness.read(pair)
        await asyncio.sleep(0.001)


def test_a_read_that_hangs_fails_in_time_and_leaves_the_event_loop_free(
    run: Runner, tmp_path: Path
) -> None:
    async def main() -> None:
        async with hanging(tmp_path) as (_, witness):
            async with ticking():
                error = await failure(witness.read("vm"))
            assert "did not answer within 0.5 s" in str(error)
            assert not error.unknown

    run(main())


def test_an_error_that_comes_late_is_not_logged_as_a_bug(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with hanging(tmp_path) as (folder, witness):
            await failure(witness.read("vm"))
            folder.end()
            folder.record.unlink()
            assert await answered(witness, "vm") is None

    run(main())


def test_a_swap_that_hangs_may_be_made_late_and_reads_then_see_it(
    run: Runner, tmp_path: Path
) -> None:
    async def main() -> None:
        async with hanging(tmp_path) as (folder, witness):
            async with ticking():
                error = await failure(witness.swap("vm", SOLO, PROTECTED, "alpha"))
            assert error.unknown
            # While it hangs, everything fails at once and without a doubt of its own.
            for _ in range(3):
                for call in (
                    witness.read("vm"),
                    witness.read("other"),
                    witness.swap("vm", SOLO, PROTECTED, "alpha"),
                    witness.swap("other", None, SOLO, "alpha"),
                ):
                    later = await failure(call)
                    assert "hangs" in str(later)
                    assert not later.unknown
            await folder.answer(SOLO)
            await eventually(lambda: not folder.record.is_fifo(), "the late swap")
            assert await answered(witness, "vm") == PROTECTED
            # What failed at once was never done.
            assert await witness.read("other") is None
            solo = PROTECTED.take_over("alpha")
            assert await witness.swap("vm", PROTECTED, solo, "alpha") == solo

    run(main())


def test_a_read_that_returns_has_seen_the_end_of_every_earlier_swap(
    run: Runner, tmp_path: Path
) -> None:
    """The read below is asked for while the swap is still in the middle of its work."""

    async def main() -> None:
        async with hanging(tmp_path) as (folder, witness):
            swap = asyncio.create_task(witness.swap("vm", SOLO, PROTECTED, "alpha"))
            await asyncio.sleep(0)
            read = asyncio.create_task(witness.read("vm"))
            await folder.answer(SOLO)
            assert await swap == PROTECTED
            assert await read == PROTECTED

    run(main())


def test_a_late_swap_that_lost_changes_nothing(run: Runner, tmp_path: Path) -> None:
    stands = PROTECTED.take_over("beta")

    async def main() -> None:
        async with hanging(tmp_path) as (folder, witness):
            swap = witness.swap("vm", PROTECTED, PROTECTED.take_over("alpha"), "alpha")
            assert (await failure(swap)).unknown
            await folder.answer(stands)
            folder.record.unlink()
            folder.record.write_text(json.dumps(asdict(stands)))

            assert await answered(witness, "vm") == stands

    run(main())


def test_a_swap_that_never_began_is_no_doubt(run: Runner, tmp_path: Path) -> None:
    """It stood in line behind a call that hangs."""

    async def main() -> None:
        async with hanging(tmp_path) as (folder, witness):
            first, second = await asyncio.gather(
                failure(witness.read("vm")),
                failure(witness.swap("other", None, SOLO, "alpha")),
            )
            assert "did not answer" in str(first)
            assert "did not answer" in str(second)
            assert not second.unknown
            folder.end()

            assert await answered(witness, "other") is None

    run(main())


def test_closing_does_not_wait_for_the_file_system(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with hanging(tmp_path) as (_, witness):
            await failure(witness.read("vm"))
            async with ticking(0), asyncio.timeout(10):
                await witness.close()

    run(main())


def test_whoever_stops_waiting_leaves_the_swap_to_its_end(run: Runner, tmp_path: Path) -> None:
    """A pump that starts over must not find the witness in the middle of its own earlier swap."""

    async def main() -> None:
        async with hanging(tmp_path) as (folder, witness):
            swap = asyncio.create_task(witness.swap("vm", SOLO, PROTECTED, "alpha"))
            await asyncio.sleep(0.01)
            swap.cancel()
            read = asyncio.create_task(witness.read("vm"))
            await folder.answer(SOLO)
            assert await read == PROTECTED
            assert swap.cancelled()

    run(main())
