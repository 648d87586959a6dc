"""Small files that survive a crash: whole, or as they were."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coloha import durable
from coloha.durable import NotSyncedError, replace_file

OLD, NEW = b"old" * 10, b"new" * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "vm.json"
    replace_file(file, OLD)
    return file


def fail_with(number: int) -> Any:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_content_is_replaced_and_nothing_else_is_left(path: Path) -> None:
    replace_file(path, NEW)
    assert path.read_bytes() == NEW
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_crash_left_beside_it_does_no_harm(path: Path) -> None:
    (path.parent / f".{path.name}.new").write_bytes(b"left by a crash" * 1000)
    replace_file(path, NEW)
    assert path.read_bytes() == NEW
    assert list(path.parent.iterdir()) == [path]


def test_data_reaches_the_disk_before_the_name_and_the_name_before_the_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut at any moment must leave the old or the new file; only this order does."""
    calls: list[str] = []

    def note(name: str) -> None:
        real = getattr(os, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            first = arguments[0]
            target = Path(f"/proc/self/fd/{first}").readlink() if type(first) is int else first
            calls.append(f"{name} {Path(target).name}")
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, noted)

    for name in ("write", "fsync", "replace", "rename"):
        note(name)
    replace_file(path, NEW)
    aside, folder = f".{path.name}.new", path.parent.name
    assert [call.replace("rename", "replace") for call in calls] == [
        f"write {aside}",
        f"fsync {aside}",
        f"replace {aside}",
        f"fsync {folder}",
    ]


def test_an_unsynced_file_is_never_given_the_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as caught:
        replace_file(path, NEW)
    assert not isinstance(caught.value, NotSyncedError)
    assert path.read_bytes() == OLD


def test_a_folder_that_cannot_be_synced_is_told_from_a_file_that_was_not_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "sync_folder", fail_with(errno.EIO))
    with pytest.raises(NotSyncedError, match="Input/output error"):
        replace_file(path, NEW)
    assert path.read_bytes() == NEW


def test_without_the_folder_nothing_happens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "gone" / "vm.json", NEW)
    assert not (tmp_path / "gone").exists()


def test_descriptors_are_closed_whatever_happens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()
    replace_file(path, NEW)
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        replace_file(path, NEW)
    with pytest.raises(OSError, match="Input/output"):
        durable.sync_folder(path.parent)
    assert open_descriptors() == before


@pytest.mark.parametrize("room", [0, 1, len(NEW) - 1])
def test_a_disk_with_room_for_a_part_changes_nothing(path: Path, room: int) -> None:
    """A full disk takes a part of a write and says so only by its count."""
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from coloha.durable import replace_file\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        f"replace_file(Path(sys.argv[1]), {NEW!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )
    assert path.read_bytes() == OLD
    assert done.returncode == 1
    assert "File too large" in done.stderr


def test_a_killed_writer_never_leaves_a_torn_file(path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from coloha.durable import replace_file\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        f"    replace_file(Path(sys.argv[1]), {OLD!r})\n"
        f"    replace_file(Path(sys.argv[1]), {NEW!r})\n"
    )
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            seen = {path.read_bytes() for _ in range(500)}
            writer.send_signal(signal.SIGKILL)
        assert seen | {path.read_bytes()} <= {OLD, NEW}
