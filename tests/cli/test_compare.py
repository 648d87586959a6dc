"""What differs between two hosts' pairs is found, placed, and nothing else is."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coloha.cli.main import main
from tests.cli.support import configure
from tests.config.support import PAIR, edit

Captured = pytest.CaptureFixture[str]
Export = Callable[..., str]


@pytest.fixture
def export(tmp_path: Path, capsys: Captured) -> Export:
    def exported(pair: str = PAIR) -> str:
        folder = tmp_path / "beta"
        folder.mkdir(exist_ok=True)
        host_file = configure(folder, pair)
        own = edit(host_file.read_text(), "node: alpha", "node: beta")
        host_file.write_text(own.replace("127.0.0.1", "127.0.0.2"))
        assert main(["check", "--config", str(host_file), "--export"]) == 0
        return capsys.readouterr().out

    return exported


def against(tmp_path: Path, exported: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(exported))
    host_file = configure(tmp_path, PAIR)
    return main(["check", "--config", str(host_file), "--against", "-"])


def test_the_same(
    tmp_path: Path, export: Export, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = edit(PAIR, "bridge: br0", "bridge: br7")
    assert against(tmp_path, export(own), monkeypatch) == 0
    assert capsys.readouterr().out == "ok      web: the same on beta\n"


def test_what_differs_is_placed(
    tmp_path: Path, export: Export, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = edit(edit(PAIR, "memory: 128MiB", "memory: 256MiB"), "12:34:56", "12:34:57")
    assert against(tmp_path, export(other), monkeypatch) == 1
    file = tmp_path / "pairs.d" / "web.yaml"
    lines = file.read_text().splitlines()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    for line, name, here, there in zip(
        said, ("vm.memory", "vm.nics[0].mac"), ('"128MiB"', '"52:54:00:12:34:56"'),
        ('"256MiB"', '"52:54:00:12:34:57"'), strict=True,
    ):  # fmt: skip
        place, _, words = line.removeprefix("PROBLEM web: ").partition(f": {name}: ")
        path, row, column = place.rsplit(":", 2)
        assert path == str(file)
        assert lines[int(row) - 1][int(column) - 1 :].startswith(("128MiB", "52:54:00"))
        assert words == f"{here} here, {there} on beta: make them the same"


def test_a_pair_that_one_of_them_lacks(
    tmp_path: Path, export: Export, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(export())
    content["pairs"]["mail"] = content["pairs"].pop("web")
    assert against(tmp_path, json.dumps(content), monkeypatch) == 1
    said = capsys.readouterr().out
    assert "mail: beta has this pair, alpha has not: copy its file" in said
    assert "web: beta does not have this pair: copy its file there" in said


def test_a_qemu_that_does_not_understand_the_other(
    tmp_path: Path, export: Export, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloha.cli.compare._version", lambda _: [11, 1, 3])
    content = json.loads(export())
    content["pairs"]["web"]["qemu"] = [7, 2, 0]
    assert against(tmp_path, json.dumps(content), monkeypatch) == 1
    assert "QEMU here and on beta: the primary runs QEMU 11.1.3" in capsys.readouterr().out


@pytest.mark.parametrize("exported", ["", "[]", '{"format": 2}', '{"format": 1}', "{}"])
def test_what_is_no_export_is_refused(
    tmp_path: Path, exported: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert against(tmp_path, exported, monkeypatch) == 1
    assert "not what coloha check --export prints" in capsys.readouterr().err


def test_findings_as_json(
    tmp_path: Path, export: Export, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(export()))
    host_file = configure(tmp_path, PAIR)
    assert main(["check", "--config", str(host_file), "--against", "-", "--json"]) == 0
    expected = {"about": "web", "good": True, "text": "the same on beta"}
    assert json.loads(capsys.readouterr().out) == [expected]
    assert main(["check", "--config", str(host_file), "--json"]) == 1
    assert not all(finding["good"] for finding in json.loads(capsys.readouterr().out))
