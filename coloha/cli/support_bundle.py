"""`coloha support-bundle`: one file with all that somebody needs to help, and no secret."""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coloha import __version__, config
from coloha.adapters.control import ControlClient
from coloha.cli import exits
from coloha.errors import ColohaError, StartError

EXAMPLE = """example:
  coloha support-bundle /tmp/coloha.tar.gz

It holds the configuration, status, events, flight records, logs, and what the host says of itself.
Keys and passwords are removed, what guests wrote to their consoles is left out. Look at it before
you give it away: names and addresses are in it.
"""

LONGEST_BYTES = 8 << 20
"""Of each part; the end of it counts."""
COMMAND_S = 60.0
FLIGHTS = 3
"""Newest flight records of each pair."""
REMOVED = b"[removed]"
SHORTEST_SECRET = 4

_SECRET_FILE = re.compile(rb"(?:key|password)_file['\"]?\s*:\s*['\"]?([^'\"\s,}#]+)")
_SECRET_VALUE = re.compile(
    rb"(?i)((?:passw|secret|token|community|credential)[\w-]*['\"]?\s*[:=]\s*)(?!\s*[{\[]?\s*$)([^\n,}]+)"
)
_COMMANDS = {
    "host": ("uname", "-a"),
    "release": ("cat", "/etc/os-release"),
    "addresses": ("ip", "-brief", "address"),
    "bridges": ("bridge", "link"),
    "space": ("df", "-h"),
    "memory": ("cat", "/proc/meminfo"),
    "processes": ("ps", "-eo", "pid,ppid,user,stat,etime,rss,comm"),
    "units": ("systemctl", "status", "--no-pager", "--lines=0", "coloha", "coloha-qemu@*"),
    "journal": ("journalctl", "--no-pager", "-n", "5000", "-u", "coloha", "-u", "coloha-qemu@*"),
    "packages": (sys.executable, "-m", "pip", "list", "--disable-pip-version-check"),
}

Part = tuple[str, Callable[[], bytes]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("file", nargs="?", type=Path, help="where to write it (.tar.gz)")


def call(arguments: argparse.Namespace) -> int:
    """Write the bundle; what cannot be had is noted in it."""
    host_file: Path = arguments.config
    name = f"coloha-support-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    target = arguments.file or Path(f"{name}.tar.gz")
    secrets = _secrets(host_file)
    notes = [f"coloha {__version__}, made {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}"]
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StartError(f"{target} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as bundle:
        for path, read in _parts(host_file):
            try:
                data = read()
            except (OSError, ColohaError, subprocess.SubprocessError) as error:
                notes.append(f"{path}: not there: {error}")
                continue
            _add(bundle, f"{name}/{path}", without(secrets, data)[-LONGEST_BYTES:])
        _add(bundle, f"{name}/README", without(secrets, ("\n".join(notes) + "\n").encode()))
    print(f"{target}: {target.stat().st_size >> 10} KiB; look at it before you give it away")
    return exits.OK


def without(secrets: list[bytes], data: bytes) -> bytes:
    """Return data without the secrets, and without what is called one."""
    for secret in secrets:
        data = data.replace(secret, REMOVED)
    return _SECRET_VALUE.sub(lambda found: found[1] + REMOVED, data)


def _add(bundle: tarfile.TarFile, path: str, data: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
    bundle.addfile(entry, io.BytesIO(data))


def _files(host_file: Path) -> list[Path]:
    """Return the files of the configuration, right or wrong."""
    folder = host_file.parent / "pairs.d"
    with contextlib.suppress(ColohaError):
        folder = config.load(host_file).host.pairs_directory
    return [host_file, *sorted(folder.glob("*"))]


def _secrets(host_file: Path) -> list[bytes]:
    """Return what is in the files of secrets that the configuration names, longest first."""
    found: set[bytes] = set()
    for file in _files(host_file):
        with contextlib.suppress(OSError):
            for name in _SECRET_FILE.findall(file.read_bytes()):
                with contextlib.suppress(OSError):
                    content = (file.parent / name.decode(errors="replace")).read_bytes()
                    found |= {content.strip(), *map(bytes.strip, content.splitlines())}
    return sorted((s for s in found if len(s) >= SHORTEST_SECRET), key=len, reverse=True)


def _parts(host_file: Path) -> Iterator[Part]:
    for file in _files(host_file):
        yield f"config/{file.name}", file.read_bytes
    yield "status.json", lambda: _asked(host_file, "status")
    yield "events.jsonl", lambda: _asked(host_file, "events")
    verb = (sys.executable, "-m", "coloha", "check", "--config", str(host_file))
    for name, command in {"check": verb, **_COMMANDS}.items():
        yield f"host/{name}", lambda command=command: _ran(command)  # type: ignore[misc]
    runtime, state = config.folders(host_file)
    for file in sorted(state.glob("*.json")):
        yield f"state/{file.name}", file.read_bytes
    for folder in sorted(state.glob("flight/*")):
        newest = sorted(filter(Path.is_file, folder.iterdir()), key=lambda p: p.stat().st_mtime)
        for file in newest[-FLIGHTS:]:
            yield f"flight/{folder.name}/{file.name}", file.read_bytes
    for file in sorted(runtime.glob("*/*/stderr.log")):
        yield f"qemu/{file.parent.parent.name}/{file.parent.name}.log", file.read_bytes


def _asked(host_file: Path, verb: str) -> bytes:
    """Return what the daemon answers, a line for each."""
    lines: list[Any] = []
    with contextlib.closing(ControlClient(config.control_socket(host_file))) as client:
        answer = client.ask(verb)
        while "ok" in answer:
            lines.append(answer["ok"])
            if verb == "status":
                break
            answer = client.next()
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _ran(command: tuple[str, ...]) -> bytes:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_S,
        check=False,
    )
    return done.stdout
