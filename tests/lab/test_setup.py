"""Setup: a second run does nothing, an interrupted one heals, a failed one says what to do."""

import os
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from lab.assets import Assets, cache_folder, load_assets
from lab.namespace import CHECKOUT, LabError

SETUP = CHECKOUT / "lab" / "setup.sh"


def run_setup(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SETUP],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def snapshot(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Every file's identity, size and time of change, except what Python compiles in passing."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if "__pycache__" not in path.parts:
            status = path.lstat()
            size_of_file = 0 if path.is_dir() else status.st_size
            changed = 0 if path.is_dir() else status.st_mtime_ns
            found[path] = (status.st_ino, size_of_file, changed)
    return found


@pytest.fixture
def done() -> Assets:
    """Setup has run."""
    first = run_setup()
    assert first.returncode == 0, first.stderr
    return load_assets()


@pytest.fixture
def cache(done: Assets, tmp_path: Path) -> Path:
    """A cache of its own that has everything but the guest."""
    for name in (
        "qemu",
        "qemu-10.0",
        "qemu-7.2",
        "etcd",
        "promtool",
        "prometheus",
        "mosquitto",
        "kernel",
    ):
        if (cache_folder() / name).exists():
            (tmp_path / name).symlink_to(cache_folder() / name)
    return tmp_path


def test_a_second_run_changes_nothing_and_says_nothing(done: Assets) -> None:
    folders = (cache_folder(), CHECKOUT / ".venv")
    before = [snapshot(folder) for folder in folders]
    again = run_setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert [snapshot(folder) for folder in folders] == before


def test_what_is_missing_is_made_and_nothing_else(cache: Path) -> None:
    first = run_setup(COLOHA_CACHE=str(cache))
    assert (first.returncode, first.stdout) == (0, "setup: building the guest\n")
    recorded = (cache / "lab.env").read_text()
    assert f"initrd={cache}/guest/initrd.gz\n" in recorded
    assert (cache / "guest/initrd.gz").stat().st_size > 100_000


@pytest.mark.parametrize("harm", ["no stamp", "old stamp", "no lab.env", "half a build"])
def test_an_interrupted_run_heals(cache: Path, harm: str) -> None:
    run_setup(COLOHA_CACHE=str(cache))
    whole = (cache / "guest/initrd.gz").read_bytes()
    if harm == "no stamp":
        (cache / "guest/stamp").unlink()
        (cache / "guest/initrd.gz").write_bytes(b"half")
    elif harm == "old stamp":
        (cache / "guest/stamp").write_text("of another source\n")
        (cache / "guest/initrd.gz").write_bytes(b"old")
    elif harm == "no lab.env":
        (cache / "lab.env").unlink()
    else:
        (cache / "guest.new.abcdef/root").mkdir(parents=True)
        (cache / "guest/stamp").rename(cache / "guest.new.abcdef/stamp")
    healed = run_setup(COLOHA_CACHE=str(cache))
    assert healed.returncode == 0, healed.stderr
    assert (cache / "guest/initrd.gz").read_bytes() == whole
    assert not list(cache.glob("*.new*"))
    assert "initrd=" in (cache / "lab.env").read_text()


def test_an_unprepared_lab_says_how_to_prepare_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOHA_CACHE", str(tmp_path))
    with pytest.raises(LabError, match="run `make setup`"):
        load_assets()
    (tmp_path / "lab.env").write_text(
        "".join(f"{name}=/nowhere/{name}\n" for name in (field.name for field in fields(Assets)))
    )
    with pytest.raises(LabError, match="/nowhere/qemu is missing: run `make setup`"):
        load_assets()


def without(program: str, folder: Path) -> str:
    """A PATH on which everything is found but `program`, and `id` tells of an ordinary user."""
    for place in os.environ["PATH"].split(":"):
        for path in Path(place).glob("*"):
            link = folder / path.name
            if path.name not in {program, "id"} and not link.is_symlink():
                link.symlink_to(path)
    (folder / "id").write_text("#!/bin/sh\necho 1000\n")
    (folder / "id").chmod(0o755)
    return str(folder)


def test_a_user_is_told_which_packages_to_ask_for(done: Assets, tmp_path: Path) -> None:
    refused = run_setup(PATH=without("nft", tmp_path))
    assert refused.returncode == 1
    assert "Ask the administrator to run: apt-get install nftables\n" in refused.stderr


def test_a_failed_step_says_what_failed_why_and_what_to_do(cache: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    path = without("gzip", tools)
    (tools / "gzip").write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
    (tools / "gzip").chmod(0o755)
    failed = run_setup(COLOHA_CACHE=str(cache), PATH=path)
    assert failed.returncode == 1
    assert "the disk is full" in failed.stderr
    assert "setup: building the guest failed\n  See the messages above" in failed.stderr
    assert not (cache / "guest").exists()
