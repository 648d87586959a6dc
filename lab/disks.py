"""The guest's disks, seen from outside: made before it boots, read after it is gone.

The guest's service writes each answer to a log on every disk before it gives it (guest/service.c).
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.namespace import LabError

SIZE_BYTES = 16 * 1024 * 1024
_TOOL_S = 30
_FNV, _PRIME = 0xCBF29CE484222325, 0x100000001B3


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer in a log."""

    value: int
    token: str


def make_image(path: Path, *, formatted: bool) -> None:
    """Make a raw image, with an ext4 file system or with nothing in it."""
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    if formatted:
        # Its tables are written at once: else the kernel does so in the background, much later.
        lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        _run("mke2fs", "-q", "-t", "ext4", "-E", lazy, str(path))


def check_file_system(path: Path) -> None:
    """Replay an image's journal, as any mount does; then look at everything.

    :raises LabError: if the file system is damaged.
    """
    _run("e2fsck", "-p", str(path))
    _run("e2fsck", "-f", "-n", str(path))


def read_log(path: Path) -> list[Entry]:
    """Return the log on an image. A last line that was not synced may be incomplete.

    :raises LabError: if any other line is damaged.
    """
    lines = _run("debugfs", "-R", "cat /log", str(path)).splitlines()
    entries = []
    for number, line in enumerate(lines):
        words, _, check = line.rpartition(" ")
        value, _, token = words.partition(" ")
        if check != f"{_hash(words):016x}" or not value.isdecimal():
            if number == len(lines) - 1:
                break
            raise LabError(f"{path}: line {number + 1} of the log is damaged: {line!r}")
        entries.append(Entry(int(value), token))
    return entries


def _hash(text: str) -> int:
    value = _FNV
    for byte in text.encode():
        value = (value ^ byte) * _PRIME % (1 << 64)
    return value


def _run(*argv: str) -> str:
    path = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=_TOOL_S, env=path
    )
    if done.returncode not in ({0, 1} if "-p" in argv else {0}):
        raise LabError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout
