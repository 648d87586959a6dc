"""`coloha replay`: what it prints, what it refuses, how it ends."""

import gzip
import json
from pathlib import Path

import pytest

from coloha.cli import exits
from coloha.cli.main import main
from coloha.flight.record import Begins
from tests.flight.scenes import scene

NAMES = ("00000001-20261101T031200Z.jsonl.gz", "00000002-20261101T031204Z.jsonl.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The record of a secondary that took over, in two files of which the second has no end."""
    with scene() as played:
        played.kill_qemu("alpha")
        played.settle()
        played.run(4.0 - played.tapes["beta"].now)
        tape = played.tapes["beta"]
        first, tape.lines = b"".join(tape.lines), []
        tape.head(Begins.CONTINUED)
        played.run(2.0)
    (tmp_path / NAMES[0]).write_bytes(gzip.compress(first))
    (tmp_path / NAMES[1]).write_bytes(gzip.compress(b"".join(tape.lines))[:-8])
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["replay", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_folder_is_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, folder)
    assert (code, err) == (exits.OK, "")
    assert "vm on beta, recorded by coloha" in out
    assert "2026-11-01 03:12:00.000 to 2026-11-01 03:12:0" in flat(out)
    assert "all decided the same again" in flat(out)
    assert f"{NAMES[1]} has no proper end" in flat(out)
    why, saw = out.index("Why did it fail over?"), out.index("What beta saw and decided (UTC)")
    assert why < saw
    paragraph = flat(out[why:saw])
    assert "the VM failed over from alpha to beta. Why: alpha said that its copy" in paragraph
    assert "the copy on beta is the VM now: clients hear it" in flat(out[saw:])
    assert max(map(len, out.splitlines())) <= 100


def test_a_time_can_be_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--from", "2026-11-01T03:12:02", folder)
    assert code == exits.OK
    assert "It did not fail over in this time." in out
    assert "as the record begins, beta is in phase protected, protected" in flat(out)
    _, out, _ = call(capsys, "--to", "2026-11-01T03:12:02", folder)
    assert "Why did it fail over?" in out
    assert NAMES[1] not in out  # it was begun later
    code, _, err = call(capsys, "--to", "2025-11-01", folder)
    assert code == exits.BAD_CONFIG
    assert "holds nothing of that time" in err
    with pytest.raises(SystemExit) as caught:
        call(capsys, "--from", "yesterday", folder)
    assert caught.value.code == exits.BAD_CONFIG


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--json", folder)
    made = json.loads(out)
    assert code == exits.OK
    assert (made["pair"], made["node"], made["same"], made["gaps"]) == ("vm", "beta", True, 0)
    (incident,) = made["incidents"]
    assert incident["failover"]
    assert (incident["winner"], incident["won"]) == ("beta", 2)
    assert "Why: alpha said" in incident["text"]
    assert any(moment["text"].startswith("protected") for moment in made["moments"])
    assert made["without_end"] == [str(folder / NAMES[1])]


def test_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--steps", folder / NAMES[0])
    lines = out.splitlines()
    assert code == exits.OK
    assert lines[0] == "2026-11-01 03:12:00.000 --- start: phase init"
    assert lines[1].startswith("2026-11-01 03:12:00.000 #1 init: Started(")
    assert any("follow -> claim: Heard(" in line and "SwapRecord(" in line for line in lines)


def altered(path: Path, old: bytes, new: bytes) -> None:
    text = gzip.decompress(path.read_bytes())
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1)))


def test_another_decision_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / NAMES[0]
    altered(path, b'"script":"promote"', b'"script":"check"')
    code, out, err = call(capsys, folder)
    assert code == exits.FAILED
    assert err.startswith(f"{path}:")
    assert "this coloha decides otherwise\nstep " in err
    recorded, decided = err.splitlines()[2:4]
    assert recorded.startswith("recorded: ")
    assert decided.startswith("decided:  ")
    assert recorded.replace("CHECK: 'check'", "PROMOTE: 'promote'")[10:] == decided[10:]
    assert "then one differs" in flat(out)
    assert "Why: alpha said" in flat(out)  # what came before still holds
    code, out, _ = call(capsys, "--json", folder)
    assert code == exits.FAILED
    assert not json.loads(out)["same"]


def test_a_bad_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / NAMES[0]
    altered(path, b'{"Timer":{}}', b'{"Tock":{}}')
    code, out, err = call(capsys, path)
    assert code == exits.BAD_CONFIG
    assert out == ""
    assert err.startswith(f"{path}:")
    assert "'Tock' is not one of" in err
    assert "the file is damaged" in err


def test_files_of_two_hosts_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / NAMES[1]
    path.write_bytes(gzip.compress(gzip.decompress((folder / NAMES[0]).read_bytes())))
    altered(path, b'"node":"beta"', b'"node":"alpha"')
    code, _, err = call(capsys, folder)
    assert code == exits.BAD_CONFIG
    assert "give the files of one at a time" in err


@pytest.mark.parametrize("there", [True, False])
def test_no_record_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, there: bool
) -> None:
    path = tmp_path / "flight"
    if there:
        path.mkdir()
    code, _, err = call(capsys, path)
    assert code == exits.BAD_CONFIG
    assert err.startswith(f"{path}: {'no flight record is in' if there else 'No such file'}")


def test_it_needs_no_configuration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record is often read on another machine than the one that made it."""
    with pytest.raises(SystemExit):
        call(capsys, "--config", "x", folder)
