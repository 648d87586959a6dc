"""What differs between the pairs of two hosts: `coloha check --export` and `--against`."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coloha import __version__
from coloha.config import Config, PairConfig
from coloha.config.source import KeyPath, Source, dotted, read
from coloha.errors import LaunchError, StartError
from coloha.qemu import versions
from coloha.qemu.probe import probe

FORMAT = 1
ABSENT = "nothing"
Finding = tuple[bool, str]


def export(loaded: Config) -> str:
    """Return what the other host needs to know to compare, as JSON. There are no secrets in it."""
    pairs = {pair.name: {"shared": pair.shared(), "qemu": _version(pair)} for pair in loaded.pairs}
    return json.dumps(
        {"format": FORMAT, "node": loaded.host.node, "version": __version__, "pairs": pairs}
    )


def _version(pair: PairConfig) -> list[int] | None:
    try:
        return list(asyncio.run(probe(pair.vm.qemu, pair.vm.accelerator)).version)
    except LaunchError:
        return None  # the check of that host says why


def load(file: str) -> dict[str, Any]:
    """Return what another host has exported into a file; "-" is the standard input.

    :raises StartError: if it is no such thing.
    """
    try:
        content = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}: use the same coloha on both hosts")
        return dict(content, pairs=dict(content["pairs"]), node=str(content["node"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartError(f"{file}: not what coloha check --export prints: {error}") from error


def differences(loaded: Config, other: Mapping[str, Any]) -> Iterator[tuple[str, Finding]]:
    """Yield, by pair, what differs and must not, or that nothing does."""
    there, theirs = other["node"], other["pairs"]
    ours = {pair.name: pair for pair in loaded.pairs if there in pair.nodes}
    for name in sorted(theirs.keys() - ours.keys()):
        if loaded.host.node in theirs[name]["shared"]["nodes"]:
            yield name, (False, f"{there} has this pair, {loaded.host.node} has not: copy its file")
    for name, pair in ours.items():
        if name not in theirs:
            yield name, (False, f"{there} does not have this pair: copy its file there")
            continue
        file = loaded.host.pairs_directory / f"{name}.yaml"
        found = list(_of_pair(pair, read(file), theirs[name], there))
        for finding in found or [(True, f"the same on {there}")]:
            yield name, finding


def _of_pair(
    pair: PairConfig, source: Source, theirs: Mapping[str, Any], there: str
) -> Iterator[Finding]:
    for path, here, other in _walk((), pair.shared(), theirs["shared"]):
        line, column = source.place(path)
        yield (
            False,
            f"{source.file}:{line}:{column}: {dotted(path)}: {_shown(here)} here,"
            f" {_shown(other)} on {there}: make them the same",
        )
    version = _version(pair)
    if version is not None and theirs["qemu"] is not None:
        (major, minor, micro), (*others,) = version, theirs["qemu"]
        problem = versions.misfit((major, minor, micro), (others[0], others[1], others[2]))
        if problem is not None:
            yield False, f"QEMU here and on {there}: {problem}"


def _walk(path: KeyPath, here: Any, there: Any) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield each path at which two plain values differ, and what is there."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted(here.keys() | there.keys()):
            yield from _walk((*path, key), here.get(key, ABSENT), there.get(key, ABSENT))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for index, (one, other) in enumerate(zip(here, there, strict=True)):
            yield from _walk((*path, index), one, other)
    elif here != there:
        yield path, here, there


def _shown(value: Any) -> str:
    return value if value == ABSENT else json.dumps(value)
