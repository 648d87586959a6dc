"""A small host with one pair, and helpers to break it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from coloha.config import Config, PairConfig, load
from coloha.errors import ConfigError

HOST = """\
node: alpha
listen:
  channel: 10.9.0.1:7770
  heartbeat: 10.9.0.1:7771
key_file: key
"""

PAIR = """\
pair: web
nodes:
  alpha:
    channel: 10.9.0.1:7770
    heartbeat: 10.9.0.1:7771
  beta:
    channel: 10.9.0.2:7770
    heartbeat: 10.9.0.2:7771
vm:
  memory: 128MiB
  nics:
    - mac: 52:54:00:12:34:56
      bridge: br0
witness:
  type: file
  directory: /srv/witness
"""

ETCD = (
    PAIR[: PAIR.index("witness:")]
    + """\
witness:
  type: etcd
  endpoints: [https://10.9.0.1:2379, https://10.9.0.2:2379, https://10.9.0.3:2379]
  user: coloha
  password_file: ../key
  ca_file: ../key
  cert_file: ../key
  key_file: ../key
"""
)
"""The pair with a witness in etcd. Any file will do where only its form is looked at."""

KEY = "0123456789abcdef0123456789abcdef\n"


def edit(text: str, old: str, new: str) -> str:
    """Replace the only `old` in `text`: an edit that changes nothing would test nothing."""
    assert text.count(old) == 1, f"{old!r} is in the text {text.count(old)} times"
    return text.replace(old, new)


def pair_named(name: str, mac: str) -> str:
    return edit(edit(PAIR, "pair: web", f"pair: {name}"), "52:54:00:12:34:56", mac)


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write a whole configuration, with `files` in place of or beside the good ones."""
    content: dict[str, str | bytes] = {
        "coloha.yaml": HOST,
        "key": KEY,
        "pairs.d/web.yaml": PAIR,
        **files,
    }
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "key").chmod(0o600)
    return folder / "coloha.yaml"


def load_from(folder: Path, files: Mapping[str, str | bytes] | None = None) -> Config:
    return load(write(folder, files or {}))


def load_pair(folder: Path, text: str) -> PairConfig:
    return load_from(folder, {"pairs.d/web.yaml": text}).pairs[0]


def problems_of(host_file: Path) -> list[str]:
    """Load what must be refused; return its problems, with files relative to the host file."""
    with pytest.raises(ConfigError) as caught:
        load(host_file)
    prefix = f"{host_file.parent}/"
    lines = [str(problem) for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(lines)
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def check(problems: list[str], *expected: tuple[str, ...]) -> None:
    """Compare with (place and path, words...): all problems, in order, with all of the words."""
    starts = [
        next((s for s, *_ in expected if line.startswith(f"{s}: ")), line) for line in problems
    ]
    assert starts == [start for start, *_ in expected], "\n".join(problems)
    for line, (start, *words) in zip(problems, expected, strict=True):
        assert words, "a problem without words to look for checks nothing"
        message = line.removeprefix(f"{start}: ")
        for word in words:
            assert word in message, line


def refuse(folder: Path, files: Mapping[str, str | bytes], *expected: tuple[str, ...]) -> None:
    """Write `files`, load, and compare all problems."""
    check(problems_of(write(folder, files)), *expected)


def refuse_pair(folder: Path, text: str, *expected: tuple[str, ...]) -> None:
    """Like `refuse`, for one pair file; the places in `expected` leave its name out."""
    placed = [(f"pairs.d/web.yaml:{start}", *words) for start, *words in expected]
    refuse(folder, {"pairs.d/web.yaml": text}, *placed)
