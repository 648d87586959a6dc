"""Looking at a QEMU program: the real one, and ones that only say they are."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from coloha.errors import LaunchError
from coloha.qemu import probe as module
from coloha.qemu.probe import Probe, probe
from lab.assets import load_assets
from tests.qemu.children import patiently, state_of
from tests.qemu.loops import Loop

GREETING = '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 2, "major": 10}}}}'

VERSION = {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": ""}


def program(folder: Path, script: str) -> str:
    """An executable that runs a shell script."""
    path = folder / "fake-qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def speaker(folder: Path, *lines: object) -> str:
    """One that says these lines, whatever it is asked."""
    said = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return program(folder, f"cat > /dev/null <<'X' ; cat <<'END'\nX\n{said}\nEND")


def capabilities(*names: str) -> dict[str, object]:
    listed = [{"state": False, "capability": name} for name in names]
    return {"return": listed, "id": "query-migrate-capabilities"}


def refusal(run: Loop, name: str, accelerator: str = "tcg") -> str:
    with pytest.raises(LaunchError) as caught:
        run(probe(name, accelerator))
    return str(caught.value)


# The real one


@pytest.mark.qemu
@pytest.mark.parametrize("accelerator", ["qtest", "tcg"])
def test_the_real_qemu(run: Loop, accelerator: str) -> None:
    found = run(probe(str(load_assets().qemu), accelerator))
    assert found.version >= (11, 0, 0)
    assert found.colo


@pytest.mark.qemu
def test_the_real_qemu_without_the_accelerator(run: Loop) -> None:
    text = refusal(run, str(load_assets().qemu), "hvf")
    assert "accelerator hvf" in text
    assert "invalid accelerator" in text


# What looks like one


def test_what_a_qemu_says(run: Loop, folder: Path) -> None:
    said = [
        GREETING,
        {"return": {}, "id": "qmp_capabilities"},
        {"event": "NIC_RX_FILTER_CHANGED", "data": {}},
        {"return": VERSION, "id": "query-version"},
        capabilities("xbzrle", "x-colo"),
        {"return": {}, "id": "quit"},
    ]
    assert run(probe(speaker(folder, *said), "kvm")) == Probe((11, 1, 3), colo=True)


@pytest.mark.parametrize("entry", [capabilities("xbzrle"), capabilities(), {"event": "STOP"}])
def test_one_that_was_built_without_colo(run: Loop, folder: Path, entry: object) -> None:
    said = [GREETING, {"return": VERSION, "id": "query-version"}, entry]
    assert run(probe(speaker(folder, *said), "kvm")) == Probe((11, 1, 3), colo=False)


def test_it_is_started_without_a_machine(run: Loop, folder: Path) -> None:
    """Nothing that the user's configuration, or a default, could add."""
    name = program(folder, f'echo "$@" > {folder}/args; cat > {folder}/stdin; exit 1')
    refusal(run, name, "kvm")
    words = (folder / "args").read_text()
    assert "-nodefaults -no-user-config -display none" in words
    assert "-machine none,accel=kvm" in words
    assert (folder / "stdin").read_text().count('"execute"') == 4


def test_no_such_program(run: Loop) -> None:
    text = refusal(run, "no-such-qemu")
    assert text.startswith("no-such-qemu: no such program")
    assert "install" in text


def test_a_file_that_is_no_program(run: Loop, folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(b"\x7fELF and no more")
    path.chmod(0o755)
    text = refusal(run, str(path))
    assert text.startswith(str(path))
    assert "cannot be started" in text or run.kind == "uvloop", "which has a shell try it"


def test_a_program_that_fails(run: Loop, folder: Path) -> None:
    text = refusal(run, program(folder, "echo 'out of luck' >&2; exit 1"))
    assert "out of luck" in text


@pytest.mark.parametrize("script", ["exit 0", "exec true"])
def test_a_program_that_says_nothing(run: Loop, folder: Path, script: str) -> None:
    assert "it said nothing" in refusal(run, program(folder, script))


@pytest.mark.parametrize(
    "line",
    [
        *("hello", "{", "1", "[]", "null", '"text"', '{"id": []}', '{"id": {}, "return": 1}'),
        '{"return": {}, "id": "query-version"}',
        '{"return": null, "id": "query-version"}',
        '{"error": {"class": "CommandNotFound"}, "id": "query-version"}',
    ],
)
def test_a_program_that_says_something_else(run: Loop, folder: Path, line: str) -> None:
    text = refusal(run, speaker(folder, GREETING, line))
    assert str(folder / "fake-qemu") in text


def test_a_program_that_hangs(run: Loop, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.3)
    name = program(folder, f"echo $$ > {folder}/pid; exec sleep 3600")
    text = refusal(run, name)
    assert "did not answer" in text
    gone(folder)


def gone(folder: Path) -> None:
    """The program is dead and collected."""
    pid = int((folder / "pid").read_text())
    patiently(lambda: state_of(pid) == "", "the end of the program")
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_probe_that_is_cut_short(run: Loop, folder: Path) -> None:
    name = program(folder, f"echo $$ > {folder}/new; mv {folder}/new {folder}/pid; exec sleep 3600")

    async def main() -> None:
        probing = asyncio.create_task(probe(name, "kvm"))
        while not (folder / "pid").exists():
            await asyncio.sleep(0.002)
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing

    run(main())
    gone(folder)
