"""The witness in a folder: what it answers, and what it does not know."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from coloha import durable
from coloha.adapters import witness_file
from coloha.adapters.witness import WitnessError
from coloha.adapters.witness_file import FileWitness
from coloha.core.record import Record, first_record
from coloha.durable import NotSyncedError
from tests.adapters.support import PATIENCE_S, Runner, ticking

SOLO = first_record("life", "alpha")
PROTECTED = SOLO.protect("beta", 7)


@contextlib.asynccontextmanager
async def opened(directory: Path, timeout_s: float = PATIENCE_S) -> AsyncIterator[FileWitness]:
    witness = FileWitness(directory, timeout_s)
    try:
        yield witness
    finally:
        await witness.close()


def on_disk(directory: Path, pair: str = "vm") -> Record:
    return Record(**json.loads((directory / f"{pair}.json").read_text()))


def put(directory: Path, record: Record, pair: str = "vm") -> None:
    (directory / f"{pair}.json").write_text(json.dumps(asdict(record)))


async def failure(witness: FileWitness, *swap: Any) -> WitnessError:
    """How a read, or the swap of the arguments, fails."""
    with pytest.raises(WitnessError) as caught:
        await (witness.swap("vm", *swap) if swap else witness.read("vm"))
    return caught.value


def test_there_is_no_record_until_one_is_made(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as witness:
            assert await witness.read("vm") is None
            assert await witness.swap("vm", None, SOLO, "alpha") == SOLO
            assert await witness.read("vm") == SOLO
            assert await witness.read("other") is None

    run(main())
    assert on_disk(tmp_path) == SOLO


def test_both_nodes_see_one_record(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as one, opened(tmp_path) as other:
            await one.swap("vm", None, SOLO, "alpha")
            assert await other.read("vm") == SOLO
            assert await other.swap("vm", SOLO, PROTECTED, "alpha") == PROTECTED
            taken = PROTECTED.take_over("beta")
            assert await other.swap("vm", PROTECTED, taken, "beta") == taken
            # The loser learns what stands instead.
            lost = PROTECTED.take_over("alpha")
            assert await one.swap("vm", PROTECTED, lost, "alpha") == taken
            assert await one.read("vm") == taken

    run(main())


def test_a_swap_that_was_made_says_so_when_repeated(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as witness:
            for _ in range(2):
                assert await witness.swap("vm", None, SOLO, "alpha") == SOLO

    run(main())


def test_a_swap_of_a_record_that_is_not_there_loses_to_nothing(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as witness:
            assert await witness.swap("vm", SOLO, PROTECTED, "alpha") is None
            assert await witness.read("vm") is None

    run(main())


@pytest.mark.parametrize(
    ("current", "new", "by", "why"),
    [
        (None, PROTECTED, "alpha", "first record"),
        (None, SOLO, "beta", "first record"),
        (SOLO, SOLO.take_over("beta"), "beta", "R4"),
        (PROTECTED, PROTECTED.take_over("beta"), "gamma", "no part"),
        (PROTECTED, PROTECTED.take_over("alpha"), "beta", "R2"),
        (PROTECTED, SOLO, "alpha", "R2"),
        (PROTECTED, SOLO.protect("beta", 8), "alpha", "R1"),
        (SOLO, Record("other", 2, "alpha"), "alpha", "lineage"),
    ],
)
def test_what_the_rules_forbid_is_refused(
    run: Runner, tmp_path: Path, current: Record | None, new: Record, by: str, why: str
) -> None:
    if current is not None:
        put(tmp_path, current)

    async def main() -> None:
        async with opened(tmp_path) as witness:
            error = await failure(witness, current, new, by)
            assert why in str(error)
            assert not error.unknown
            assert await witness.read("vm") == current

    run(main())


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_folder_that_is_not_there_is_never_taken_for_an_empty_one(
    run: Runner, tmp_path: Path, kind: str
) -> None:
    directory = tmp_path / "witness"
    if kind == "file":
        directory.write_text("")

    async def main() -> None:
        async with opened(directory) as witness:
            read, swap = await failure(witness), await failure(witness, None, SOLO, "alpha")
            assert str(directory) in str(read)
            assert str(directory) in str(swap)
            assert not read.unknown
            assert not swap.unknown
            if kind == "missing":
                assert "mounted" in str(read)
                directory.mkdir()
                assert await witness.read("vm") is None

    run(main())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"life"',
        b"\xff\xfe",
        b"{}",
        b"[" * 5000,
        json.dumps(asdict(PROTECTED)).encode()[:-9],
        json.dumps({**asdict(SOLO), "more": 1}).encode(),
        json.dumps({**asdict(SOLO), "generation": "1"}).encode(),
        json.dumps({**asdict(SOLO), "generation": 1.5}).encode(),
        json.dumps({**asdict(SOLO), "generation": True}).encode(),
        json.dumps({**asdict(SOLO), "generation": 0}).encode(),
        json.dumps({**asdict(SOLO), "primary": None}).encode(),
        json.dumps({**asdict(SOLO), "lineage": ["life"]}).encode(),
        json.dumps({**asdict(PROTECTED), "session": None}).encode(),
        json.dumps({**asdict(PROTECTED), "session": "7"}).encode(),
        json.dumps({**asdict(PROTECTED), "secondary": None}).encode(),
        json.dumps({**asdict(PROTECTED), "secondary": 2}).encode(),
    ],
)
def test_a_damaged_record_is_reported_and_left_alone(
    run: Runner, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "vm.json"
    path.write_bytes(content)

    async def main() -> None:
        async with opened(tmp_path) as witness:
            for error in (await failure(witness), await failure(witness, None, SOLO, "alpha")):
                assert f"{path} is damaged" in str(error)
                assert not error.unknown

    run(main())
    assert path.read_bytes() == content


def test_a_lock_that_another_process_holds_is_a_known_failure(run: Runner, tmp_path: Path) -> None:
    put(tmp_path, SOLO)
    script = (
        "import fcntl, sys\n"
        "lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "vm.lock")]

    async def main(holder: subprocess.Popen[bytes]) -> None:
        async with opened(tmp_path, 3.0) as witness, ticking():
            error = await failure(witness, SOLO, PROTECTED, "alpha")
            assert "locked" in str(error)
            assert not error.unknown
            assert await witness.read("vm") == SOLO  # reading needs no lock
            holder.communicate(b"")
            assert await witness.swap("vm", SOLO, PROTECTED, "alpha") == PROTECTED

    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        run(main(holder))


def test_a_swap_waits_for_the_lock(run: Runner, tmp_path: Path) -> None:
    put(tmp_path, SOLO)

    async def main() -> None:
        lock = os.open(tmp_path / "vm.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with opened(tmp_path) as witness:
            swap = asyncio.create_task(witness.swap("vm", SOLO, PROTECTED, "alpha"))
            await asyncio.sleep(0.05)
            assert not swap.done()
            # What the lock's holder does meanwhile is seen.
            put(tmp_path, SOLO.take_over("alpha"))
            os.close(lock)
            assert await swap == SOLO.take_over("alpha")

    run(main())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_without_locks_is_a_known_failure(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    put(tmp_path, SOLO)

    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)

    async def main() -> None:
        async with opened(tmp_path) as witness:
            error = await failure(witness, SOLO, PROTECTED, "alpha")
            assert os.strerror(number) in str(error)
            assert not error.unknown
            assert await witness.read("vm") == SOLO

    run(main())


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), False),
        (NotSyncedError(errno.EIO, "Input/output error"), True),
    ],
)
def test_a_swap_is_in_doubt_only_once_the_new_record_can_be_seen(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, unknown: bool
) -> None:
    put(tmp_path, SOLO)

    def fail(path: Path, data: bytes) -> None:
        raise error

    monkeypatch.setattr(witness_file, "replace_file", fail)

    async def main() -> None:
        async with opened(tmp_path) as witness:
            caught = await failure(witness, SOLO, PROTECTED, "alpha")
            assert str(error.strerror) in str(caught)
            assert caught.unknown == unknown

    run(main())


def test_a_rename_that_may_not_last_leaves_a_doubt_that_a_read_ends(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, SOLO)

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "sync_folder", fail)

    async def main() -> None:
        async with opened(tmp_path) as witness:
            assert (await failure(witness, SOLO, PROTECTED, "alpha")).unknown
            assert await witness.read("vm") == PROTECTED

    run(main())


def test_an_error_that_nobody_foresaw_leaves_a_swap_in_doubt(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything but a `WitnessError` would leave the machine waiting for an answer for ever."""
    put(tmp_path, SOLO)

    def fail(path: Path, data: bytes) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(witness_file, "replace_file", fail)

    async def main() -> None:
        async with opened(tmp_path) as witness:
            error = await failure(witness, SOLO, PROTECTED, "alpha")
            assert "a bug" in str(error)
            assert error.unknown
            assert await witness.read("vm") == SOLO

    run(main())
