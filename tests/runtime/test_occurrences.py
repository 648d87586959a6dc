"""What happened: kept, written, read back, handed on; and never a reason to stop."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloha.core.actions import Severity
from coloha.runtime import occurrences as module
from coloha.runtime.occurrences import KEPT, WAITING, Occurrence, Occurrences
from tests.adapters.support import Runner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Occurrences]:
    occurrences = Occurrences("alpha", path)
    try:
        yield occurrences
    finally:
        occurrences.close()


def add(occurrences: Occurrences, *texts: object) -> None:
    for text in texts:
        occurrences.add("vm", "test", Severity.INFO, str(text), 3)


def texts(found: list[Occurrence]) -> list[str]:
    return [occurrence.text for occurrence in found]


def written(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines() if line]


def test_an_occurrence_is_kept_with_all_that_was_said(path: Path) -> None:
    with opened(path) as occurrences:
        occurrences.add("vm", "failover", Severity.ERROR, "beta is \N{SNOWMAN} silent", 7)
        (kept,) = occurrences.since(0)
    assert (kept.number, kept.node, kept.pair, kept.kind) == (1, "alpha", "vm", "failover")
    assert (kept.severity, kept.generation) == (Severity.ERROR, 7)
    assert kept.text == "beta is \N{SNOWMAN} silent"
    with opened(path) as occurrences:
        assert occurrences.since(0) == [kept]


def test_numbers_grow_over_restarts(path: Path) -> None:
    for life in range(3):
        with opened(path) as occurrences:
            add(occurrences, f"{life} a", f"{life} b")
    with opened(path) as occurrences:
        found = occurrences.since(0)
        assert [occurrence.number for occurrence in found] == [1, 2, 3, 4, 5, 6]
        assert texts(found) == ["0 a", "0 b", "1 a", "1 b", "2 a", "2 b"]
        assert texts(occurrences.since(4)) == ["2 a", "2 b"]
        assert occurrences.since(6) == occurrences.since(99) == []


def test_only_the_newest_are_kept(path: Path) -> None:
    with opened(path) as occurrences:
        for number in range(KEPT + 50):
            add(occurrences, number)
        assert texts(occurrences.since(0)) == [str(number) for number in range(50, KEPT + 50)]


def test_each_is_logged_as_loud_as_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as occurrences, caplog.at_level(logging.INFO, "coloha.events"):
        for severity in Severity:
            occurrences.add("vm", severity, severity, "100 % {sure}", 1)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "vm: info: 100 % {sure}"),
        ("WARNING", "vm: warning: 100 % {sure}"),
        ("ERROR", "vm: error: 100 % {sure}"),
    ]


def test_text_with_line_breaks_stays_one_line(path: Path) -> None:
    with opened(path) as occurrences:
        add(occurrences, "one\ntwo\r\nthree\u2028four\x85five")
    with opened(path) as occurrences:
        assert texts(occurrences.since(0)) == ["one\ntwo\r\nthree\u2028four\x85five"]


@pytest.mark.parametrize("cut", [1, 2, 30, 10_000])
def test_a_line_that_a_crash_cut_short_costs_only_itself(path: Path, cut: int) -> None:
    with opened(path) as occurrences:
        add(occurrences, "first", "second")
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -min(cut, len(last) - 1)])
    survivors = ["first", "second"] if cut == 1 else ["first"]
    with opened(path) as occurrences:
        assert texts(occurrences.since(0)) == survivors
        add(occurrences, "after the crash")
    with opened(path) as occurrences:
        found = occurrences.since(0)
        assert texts(found) == [*survivors, "after the crash"]
        numbers = [occurrence.number for occurrence in found]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"number": 5}',
        b'{"severity": "loud"}',
        b'{"number": "5", "at": "", "monotonic_s": 0, "node": "", "pair": "", "kind": "",'
        b' "severity": "info", "generation": 0, "text": ""}',
        b'{"number": null, "at": "", "monotonic_s": 0, "node": "", "pair": "", "kind": "",'
        b' "severity": "info", "generation": 0, "text": ""}',
    ],
    ids=range(11),
)
def test_a_damaged_file_never_keeps_a_daemon_from_starting(path: Path, line: bytes) -> None:
    with opened(path) as occurrences:
        add(occurrences, "before")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with opened(path) as occurrences:
        assert texts(occurrences.since(0)) == ["before"]
        add(occurrences, "after")
        assert texts(occurrences.since(1)) == ["after"]
    with opened(path) as occurrences:
        assert texts(occurrences.since(0)) == ["before", "after"]


def test_the_file_is_turned_over_and_both_halves_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 4000)
    for start in range(0, 100, 10):
        with opened(path) as occurrences:
            add(occurrences, *range(start, start + 10))
    old = path.with_suffix(".old")
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, old.name}
    for file in (path, old):
        assert file.stat().st_size < 4000 + 500
    in_files = written(old) + written(path)
    assert in_files == [str(number) for number in range(100 - len(in_files), 100)]
    assert len(written(old)) > 10
    with opened(path) as occurrences:
        assert texts(occurrences.since(0)) == in_files
        add(occurrences, "next")
        assert occurrences.since(0)[-1].number == 101


def test_a_listener_hears_from_now_until_it_leaves(run: Runner, path: Path) -> None:
    async def main() -> None:
        with opened(path) as occurrences:
            add(occurrences, "before")
            queue = occurrences.listen()
            add(occurrences, "one", "two")
            assert [(await queue.get()).text for _ in range(2)] == ["one", "two"]
            occurrences.leave(queue)
            occurrences.leave(queue)  # twice is once
            add(occurrences, "after")
            assert queue.empty()

    run(main())


def test_a_slow_listener_misses_some_and_they_are_counted(run: Runner, path: Path) -> None:
    async def main() -> None:
        with opened(path) as occurrences:
            slow, quick = occurrences.listen(), occurrences.listen()
            heard = []
            for number in range(WAITING + 25):
                add(occurrences, number)
                heard.append(quick.get_nowait().text)
                await asyncio.sleep(0)  # and the disk's thread is given its time
                while occurrences._writing > WAITING // 2:
                    await asyncio.sleep(0.001)
            assert slow.qsize() == WAITING
            assert heard == [str(number) for number in range(WAITING + 25)]
            assert occurrences.dropped == 25
            assert slow.get_nowait().text == "0"
            add(occurrences, "again")
            assert slow.qsize() == WAITING

    run(main())


def test_a_disk_that_hangs_delays_nobody_and_what_it_misses_is_counted(
    run: Runner, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(path)  # opening it waits for a reader

    async def main() -> None:
        occurrences = Occurrences("alpha", path)
        add(occurrences, *range(WAITING + 40))
        assert len(occurrences.since(0)) == WAITING + 40
        assert occurrences.dropped == 40
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        while occurrences._writing:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 1 << 16)
            await asyncio.sleep(0.001)
        os.close(reader)
        path.unlink()
        add(occurrences, "written again")
        occurrences.close()
        assert written(path) == ["written again"]

    # Reading what earlier daemons left would wait too.
    monkeypatch.setattr(Occurrences, "_earlier", lambda self: [])
    run(main())


def test_a_disk_that_refuses_stops_nothing(path: Path) -> None:
    with opened(path) as occurrences:
        path.mkdir()
        add(occurrences, *range(20))
        assert len(occurrences.since(0)) == 20
        while occurrences._writing:
            time.sleep(0.001)
        assert occurrences.dropped == 20
        path.rmdir()
        add(occurrences, "back")
    assert written(path) == ["back"]


def test_closing_writes_what_is_left(path: Path) -> None:
    with opened(path) as occurrences:
        add(occurrences, *range(WAITING // 2))
    assert written(path) == [str(number) for number in range(WAITING // 2)]
