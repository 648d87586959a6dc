"""The logs of a pair: its events, its QEMUs, and what comes next."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coloha.cli.main import main
from lab.namespace import CHECKOUT
from tests.adapters.support import PATIENCE_S
from tests.cli.support import configure


def event(number: int, pair: str = "web", text: str = "hello") -> dict[str, object]:
    return {
        "number": number, "at": "2026-11-25T12:00:00+00:00", "monotonic_s": 1.0, "node": "alpha",
        "pair": pair, "kind": "protected", "severity": "info", "generation": 3, "text": text,
    }  # fmt: skip


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    """No daemon runs: what it wrote is there."""
    host_file = configure(tmp_path)
    (tmp_path / "state").mkdir(exist_ok=True)
    lines = [json.dumps(event(number, text=f"event {number}")) for number in range(1, 100)]
    lines += ["{torn", json.dumps(event(100, pair="mail", text="somebody else's"))]
    (tmp_path / "state" / "events.jsonl").write_text("\n".join(lines) + "\n")
    for run, text in (("p-1", "first\nsecond\n"), ("s-2", "third\nnot yet whole")):
        (tmp_path / "run" / "web" / run).mkdir(parents=True)
        (tmp_path / "run" / "web" / run / "stderr.log").write_text(text)
    return host_file


def test_events_then_complaints(host_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--config", str(host_file), "web", "-n", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in said[:2]] == ["event 98", "event 99"]
    assert said[2:] == ["qemu p-1: first", "qemu p-1: second", "qemu s-2: third"]


def test_what_comes_next_is_followed(host_file: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "coloha", "logs", "--config", str(host_file), "web", "--follow"]
    with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while follower.stdout.readline() != "qemu s-2: third\n":
            assert time.monotonic() < deadline
        with (tmp_path / "run/web/s-2/stderr.log").open("a") as log:
            log.write(", now it is\n")
        assert follower.stdout.readline() == "qemu s-2: not yet whole, now it is\n"
        with (tmp_path / "state/events.jsonl").open("a") as file:
            file.write(json.dumps(event(101, text="the latest")) + "\n")
        assert follower.stdout.readline().endswith("protected: the latest\n")
        follower.terminate()
