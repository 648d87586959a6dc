"""Reading a flight record: what is whole, what is cut short, what is no record at all."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coloha.errors import FlightError
from coloha.flight import record
from coloha.flight.record import Entry, Line, Start, Torn, compressed, files, is_next, read
from tests.flight.scenes import scene


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    with scene() as played:
        played.run(0.5)
    return played.tapes["alpha"].lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record"


def kinds(found: list[Line]) -> list[type]:
    return [type(line) for line in found]


@pytest.mark.parametrize("pack", [bytes, compressed], ids=["plain", "compressed"])
def test_a_whole_record_is_read_whole(
    path: Path, lines: list[bytes], pack: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(pack(b"".join(lines)))
    found = list(read(path))
    assert kinds(found) == [Start] + [Entry] * (len(lines) - 1)
    assert [line.line for line in found] == list(range(1, len(lines) + 1))


def test_the_same_lines_give_the_same_file(lines: list[bytes]) -> None:
    assert compressed(b"".join(lines)) == compressed(b"".join(lines))


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_last_line_that_a_crash_cut_short_is_told(
    path: Path, lines: list[bytes], cut: int
) -> None:
    path.write_bytes(b"".join(lines)[:-cut])
    *whole, end = read(path)
    assert end == Torn(len(lines) - 1)
    assert len(whole) == len(lines) - 1


def test_wherever_the_file_is_cut_the_lines_before_are_good(path: Path, lines: list[bytes]) -> None:
    """A batch at a time, as the recorder writes: a daemon that is killed leaves no proper end."""
    deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    data, ends = b"", []
    for place in range(0, len(lines), 10):
        data += deflate.compress(b"".join(lines[place : place + 10]))
        data += deflate.flush(zlib.Z_SYNC_FLUSH)
        ends.append((len(data), min(place + 10, len(lines))))
    for cut in range(2, len(data) + 1, 7):
        path.write_bytes(data[:cut])
        *whole, end = read(path)
        written = max((count for size, count in ends if size <= cut), default=0)
        assert isinstance(end, Torn)
        assert written <= len(whole) == end.line < len(lines) + 1


def test_an_empty_file_is_a_record_that_was_cut_short(path: Path) -> None:
    path.write_bytes(b"")
    assert list(read(path)) == [Torn(0)]


def fails(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(FlightError) as caught:
        list(read(path))
    return str(caught.value)


def test_a_damaged_file_is_refused(path: Path, lines: list[bytes]) -> None:
    data = bytearray(compressed(b"".join(lines)))
    data[-6] ^= 1
    assert "damaged" in fails(path, bytes(data))
    data = bytearray(compressed(b"".join(lines)))
    data[len(data) // 2] ^= 255
    assert fails(path, bytes(data)).startswith(f"{path}")


def test_two_files_in_one_are_refused(path: Path, lines: list[bytes]) -> None:
    data = compressed(b"".join(lines))
    assert "give each file by itself" in fails(path, data + data)


def test_a_file_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(FlightError, match="No such file"):
        list(read(path))


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"[1,2]\n", b"7\n", b"null\n", b"\xff\xfe\n", b"[" * 5000 + b"\n", b"{}\n", b"\n"],
    ids=range(8),
)
def test_anything_else_is_no_record(path: Path, data: bytes) -> None:
    assert fails(path, data).startswith(f"{path}:1: no flight record")


def test_an_endless_line_is_refused_before_it_fills_the_memory(path: Path) -> None:
    assert "longer than" in fails(path, gzip.compress(b" " * (4 * record.MAX_LINE_BYTES)))


Change = Callable[[Any], object]


def changed(line: bytes, change: Change) -> bytes:
    plain = json.loads(line)
    change(plain)
    return json.dumps(plain).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: head.update(flight=2), "of format 1"),
        (lambda head: head.pop("flight"), "of format 1"),
        (lambda head: head.pop("node"), "header: Header: missing: node"),
        (lambda head: head.update(more=1), "header: Header: no such field: more"),
        (lambda head: head.update(time="noon"), "header: Invalid isoformat string"),
        (lambda head: head.update(time="2026-11-01T03:12"), "lacks its zone"),
        (lambda head: head.update(begins="again"), "header: begins: 'again' is not"),
        (lambda head: head["state"]["context"].pop("phase"), "state.context: Context: missing"),
        (lambda head: head["state"]["context"].update(new=1), "no such field: new"),
        (lambda head: head["state"]["context"].update(phase="?"), "state.context.phase: '?' is"),
        (lambda head: head["state"].update(deadline=None), "state.deadline: None is not a number"),
        (lambda head: head.pop("state"), "state.None is not an object of State"),
    ],
    ids=range(12),
)
def test_a_header_is_understood_wholly_or_refused(
    path: Path, lines: list[bytes], change: Change, words: str
) -> None:
    said = fails(path, b"".join([changed(lines[0], change), *lines[1:]]))
    assert said.startswith(f"{path}:1: ")
    assert words in said


def place_of(word: bytes, lines: list[bytes]) -> int:
    return next(place for place, line in enumerate(lines) if word in line)


@pytest.mark.parametrize(
    ("word", "change", "words"),
    [
        (b"Heard", lambda step: step[2]["Heard"]["peer"].pop("pulse"), "missing: pulse"),
        (b"Heard", lambda step: step[2]["Heard"]["peer"].update(x=1), "no such field: x"),
        (b"Heard", lambda step: step[2].update(Timer={}), "with the name of"),
        (b"Timer", lambda step: step.__setitem__(2, {"Tock": {}}), "'Tock' is not one of"),
        (b"Timer", lambda step: step.__setitem__(1, "inf"), "inf is no time"),
        (b"Timer", lambda step: step.__setitem__(1, True), "True is not a number"),
        (b"Timer", lambda step: step.append(1), "neither a header nor a step"),
        (b"Timer", lambda step: step.__setitem__(3, {"lowered": ""}), "no such field: lowered"),
        (b"RunScript", lambda step: step[3].append({"Jump": {}}), "'Jump' is not one of"),
        (b"Timer", lambda step: step.__setitem__(0, "1"), "neither a header nor a step"),
    ],
    ids=range(10),
)
def test_a_step_is_understood_wholly_or_refused(
    path: Path, lines: list[bytes], word: bytes, change: Change, words: str
) -> None:
    place = place_of(b'"' + word, lines)
    made = [*lines]
    made[place] = changed(lines[place], change)
    said = fails(path, b"".join(made))
    assert said.startswith(f"{path}:{place + 1}: ")
    assert words in said
    assert "damaged" in said


def test_words_that_are_not_json_are_refused(path: Path, lines: list[bytes]) -> None:
    place = place_of(b"Timer", lines)
    made = [*lines]
    step = json.loads(lines[place])
    made[place] = lines[place].replace(str(step[1]).encode(), b"NaN", 1)
    assert "NaN is not JSON" in fails(path, b"".join(made))
    made[place] = lines[place].replace(b'{"Timer":{}}', b'{"Timer":{},"Timer":{}}')
    assert "stands twice" in fails(path, b"".join(made))


def test_what_another_coloha_wrote_is_told_from_damage(path: Path, lines: list[bytes]) -> None:
    def other(head: Any) -> None:
        head.update(coloha="99.1", core="abc")
        head["state"]["context"]["new"] = 1

    said = fails(path, b"".join([changed(lines[0], other), *lines[1:]]))
    assert "replay it with the coloha that made it (99.1; this is" in said


@pytest.mark.parametrize("place", [1, 7, -1])
def test_a_line_that_is_missing_is_noticed(path: Path, lines: list[bytes], place: int) -> None:
    made = [*lines, lines[-1]] if place == -1 else [*lines]
    del made[place if place > 0 else -2]
    if place == -1:
        made.append(lines[-1])
    said = fails(path, b"".join(made))
    assert "lines are missing or moved" in said


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in (
        *("00000009-20260101T000000Z.jsonl.gz", "00000010-20250101T000000Z.jsonl.gz"),
        *("00000011-x.jsonl.gz", "notes.txt", "00000012-20260101T000000Z.jsonl", "x-y.jsonl.gz"),
    ):
        (tmp_path / name).touch()
    found = files(tmp_path)
    assert [path.name[:8] for path in found] == ["00000009", "00000010", "00000011"]
    assert is_next(found[0], found[1])
    assert not is_next(found[0], found[2])
    assert not is_next(found[1], found[0])
    assert record.next_file(tmp_path, found).name.startswith("00000012-")
    assert record.next_file(tmp_path, []).name.startswith("00000001-")
