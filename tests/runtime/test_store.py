"""What a node remembers of a pair over its own restart."""

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coloha.core.events import Durable
from coloha.core.record import Record
from coloha.durable import NotSyncedError
from coloha.errors import StoreError
from coloha.runtime import store as store_module
from coloha.runtime.store import FORMAT, Store
from tests.adapters.support import PATIENCE_S, Runner, eventually, ticking

RECORD = Record("life", 3, "alpha", "beta", 9)
STATE = Durable("life", generation=3, gave_up=7, asked=8, off=True, record=RECORD)
NUMBERS = st.integers(0, 2**64)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.01)


@contextlib.asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Store]:
    store = Store(directory)
    try:
        yield store
    finally:
        store.close()


def never(reason: str) -> None:
    raise AssertionError(f"the disk is all right, but: {reason}")


def load(directory: Path, pair: str = "vm") -> Durable:
    """What a restarted daemon finds."""
    store = Store(directory)
    try:
        return store.load(pair)
    finally:
        store.close()


def save(directory: Path, durable: Durable, pair: str = "vm") -> None:
    async def main() -> None:
        async with opened(directory) as store:
            await store.save(pair, durable, never)

    asyncio.run(main())


def test_a_pair_that_was_never_saved_is_fresh(tmp_path: Path) -> None:
    assert load(tmp_path / "state") == Durable()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_what_is_saved_is_found_again(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await store.save("vm", STATE, never)
            await store.save("db", Durable(), never)
            assert store.load("vm") == STATE
            newer = dataclasses.replace(STATE, generation=4, off=False)
            await store.save("vm", newer, never)
            assert store.load("vm") == newer

    run(main())
    assert load(tmp_path, "db") == Durable()
    assert {path.name for path in tmp_path.iterdir()} == {"vm.json", "db.json"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.builds(
        Durable,
        lineage=st.none() | st.text(),
        generation=NUMBERS,
        gave_up=st.none() | NUMBERS,
        asked=st.none() | NUMBERS,
        off=st.booleans(),
        record=st.none() | st.just(RECORD),
    )
)
def test_any_state_survives(tmp_path: Path, durable: Durable) -> None:
    save(tmp_path, durable)
    assert load(tmp_path) == durable


def saved() -> dict[str, object]:
    return {"format": FORMAT, **dataclasses.asdict(STATE)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        json.dumps(saved()).encode()[:-5],
        json.dumps({**saved(), "format": FORMAT + 1}).encode(),
        json.dumps({**saved(), "format": None}).encode(),
        json.dumps({**saved(), "more": 1}).encode(),
        json.dumps({**saved(), "generation": "3"}).encode(),
        json.dumps({**saved(), "generation": None}).encode(),
        json.dumps({**saved(), "gave_up": "7"}).encode(),
        json.dumps({**saved(), "asked": 1.5}).encode(),
        json.dumps({**saved(), "lineage": 1}).encode(),
        json.dumps({**saved(), "off": "no"}).encode(),
        json.dumps({**saved(), "generation": True}).encode(),
        json.dumps({**saved(), "record": {"generation": 3}}).encode(),
        json.dumps({**saved(), "record": "solo"}).encode(),
        json.dumps({"format": FORMAT}).encode(),
    ],
    ids=range(22),
)
def test_a_damaged_file_is_reported_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """Taking it for a fresh start would forget what this node gave up."""
    path = tmp_path / "vm.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{path} is damaged .*see the runbook"):
        load(tmp_path)
    assert path.read_bytes() == content


def test_the_file_of_another_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "vm.json").write_text(json.dumps({**saved(), "format": FORMAT + 1}))
    with pytest.raises(StoreError, match="another version of coloha"):
        load(tmp_path)


def test_a_file_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "vm.json").mkdir()
    with pytest.raises(StoreError, match=r"vm\.json: Is a directory"):
        load(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="state_directory"):
        Store(tmp_path / "file" / "state")


@pytest.mark.parametrize("trouble", ["gone", "file", "read-only link"])
def test_saving_is_tried_until_the_disk_takes_it(
    run: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """A node that cannot write must not act: `save` returns when it is done, not before."""
    directory = tmp_path / "state"

    async def main() -> None:
        async with opened(directory) as store:
            await store.save("vm", Durable(), never)
            directory.rename(tmp_path / "aside")
            if trouble == "file":
                directory.write_text("")
            elif trouble == "read-only link":
                directory.symlink_to("/proc")
            told: list[str] = []
            saving = asyncio.create_task(store.save("vm", STATE, told.append))
            with caplog.at_level(logging.ERROR):
                async with ticking(5):
                    await eventually(lambda: len(caplog.records) > 3, "several attempts")
            assert not saving.done()
            assert "cannot write" in caplog.text
            assert len(told) > 3
            assert all(str(directory / "vm.json") in reason for reason in told)
            if trouble != "gone":
                directory.unlink()
            (tmp_path / "aside").rename(directory)
            async with asyncio.timeout(PATIENCE_S):
                await saving

    run(main())
    assert load(directory) == STATE


def test_a_file_that_is_not_synced_is_written_again(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(path: Path, data: bytes) -> None:
        written.append(json.loads(data))
        if len(written) < 3:
            raise NotSyncedError(5, "Input/output error", str(path))

    monkeypatch.setattr(store_module, "replace_file", write)

    async def main() -> None:
        async with opened(tmp_path) as store:
            await store.save("vm", STATE, lambda _: None)

    run(main())
    assert written == [saved()] * 3
