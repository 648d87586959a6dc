"""Rules across the sections of a pair, and across the files of a host.

Each rule gets what was valid by itself and yields the paths that break it, with what to do.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from coloha.config.disk import Disk
from coloha.config.model import (
    LONGEST_SOCKET_PATH,
    HostConfig,
    Listen,
    NodeAddresses,
    PairConfig,
)
from coloha.config.source import KeyPath, Source
from coloha.config.units import Address, format_seconds, shown
from coloha.config.watchdog import LATE_S
from coloha.core.wire import MAX_PAIRS
from coloha.errors import Problem

_Socket: TypeAlias = Literal["channel", "heartbeat"]
_SOCKETS: tuple[_Socket, ...] = ("channel", "heartbeat")


@dataclass(frozen=True, slots=True)
class ValidHost:
    """A host that is valid by itself, and its file."""

    config: HostConfig
    source: Source


@dataclass(frozen=True, slots=True)
class ValidPair:
    """A pair that is valid by itself, and its file."""

    config: PairConfig
    source: Source

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Make a problem of this pair's file."""
        return self.source.problem(path, message)

    def address(self, node: str, socket: _Socket) -> Address:
        """Return where the node is reached."""
        addresses: NodeAddresses = self.config.nodes[node]
        return addresses.channel if socket == "channel" else addresses.heartbeat

    def sockets(self) -> Iterator[tuple[str, _Socket, KeyPath, Address]]:
        """Yield all sockets: the node, which socket, the path of its setting, its address."""
        for node, socket in itertools.product(self.config.nodes, _SOCKETS):
            yield node, socket, ("nodes", node, socket), self.address(node, socket)


def check(host: ValidHost | None, pairs: list[ValidPair]) -> list[Problem]:
    """Return what breaks a rule; without a valid host, only the rules between pairs apply."""
    problems = [problem for rule in _RULES for problem in rule(pairs)]
    if host is not None:
        for pair in pairs:
            problems.extend(_own_node(host.config, pair))
            problems.extend(_run_sockets_fit(host.config, pair))
            problems.extend(_can_fence(host.config, pair))
            problems.extend(_primary_fences_first(host, pair))
            problems.extend(_reset_in_time(host, pair))
        problems.extend(_others_are_fenced(host, pairs))
    return problems


def _named_after_file(pairs: list[ValidPair]) -> Iterator[Problem]:
    """A folder holds no two files of one name, so this also keeps pairs' names apart."""
    for pair in pairs:
        name, stem = pair.config.name, pair.source.file.stem
        if name != stem:
            yield pair.problem(
                ("pair",),
                f"is {name!r}, but the file is named {shown(stem)}: make the two equal",
            )


def _time_to_fail_over(pairs: list[ValidPair]) -> Iterator[Problem]:
    for pair in pairs:
        config = pair.config
        least = 2 * (config.heartbeat.detection_s + config.witness.timeout)
        if config.recovery.cold_start_after < least:
            yield pair.problem(
                ("recovery", "cold_start_after"),
                f"{format_seconds(config.recovery.cold_start_after)} leaves the other node no time"
                f" to take over: write at least {format_seconds(least)}, twice the sum of"
                " heartbeat.interval x heartbeat.misses and witness.timeout",
            )


def _same_family(pairs: list[ValidPair]) -> Iterator[Problem]:
    for pair, socket in itertools.product(pairs, _SOCKETS):
        first, second = pair.config.nodes
        if not pair.address(first, socket).same_family(pair.address(second, socket)):
            yield pair.problem(
                ("nodes", second, socket),
                f"IPv4 and IPv6 are mixed: use the family that nodes.{first}.{socket} uses",
            )


def _one_node_per_address(pairs: list[ValidPair]) -> Iterator[Problem]:
    owners: dict[tuple[_Socket, Address], tuple[str, ValidPair]] = {}
    for pair in pairs:
        for node, socket, path, address in pair.sockets():
            owner, where = owners.setdefault((socket, address), (node, pair))
            if owner != node:
                yield pair.problem(
                    path,
                    f"{address} is the {socket} of node {owner} in {where.source.file.name}:"
                    f" give {node} an address of its own",
                )


def _one_address_per_node(pairs: list[ValidPair]) -> Iterator[Problem]:
    """Every pair of the same two nodes shares their one connection, so their addresses are one."""
    known: dict[tuple[frozenset[str], str, _Socket], tuple[Address, ValidPair]] = {}
    for pair in pairs:
        both = frozenset(pair.config.nodes)
        for node, socket, path, address in pair.sockets():
            first, where = known.setdefault((both, node, socket), (address, pair))
            if first != address:
                yield pair.problem(
                    path, f"is {address}, but {where.source.file.name} says {first}: agree on one"
                )


def _room_in_heartbeat(pairs: list[ValidPair]) -> Iterator[Problem]:
    together: dict[frozenset[str], list[ValidPair]] = defaultdict(list)
    for pair in pairs:
        together[frozenset(pair.config.nodes)].append(pair)
    for members in together.values():
        if len(members) > MAX_PAIRS:
            yield members[MAX_PAIRS].problem(
                ("nodes",),
                f"{' and '.join(members[0].config.nodes)} have {len(members)} pairs, but one"
                f" heartbeat carries {MAX_PAIRS}: move pairs to other nodes",
            )


def _unique(pairs: list[ValidPair], key: Literal["mac", "tap"]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for pair in pairs:
        for index, nic in enumerate(pair.config.vm.nics):
            value = nic.mac if key == "mac" else nic.tap
            if value is None:
                continue
            if value in seen:
                path = ("vm", "nics", index, key)
                yield pair.problem(path, f"{value} is used by {seen[value]}: choose another")
            seen.setdefault(value, f"vm.nics[{index}] of {pair.source.file.name}")


def _unique_macs(pairs: list[ValidPair]) -> Iterator[Problem]:
    return _unique(pairs, "mac")


def _unique_taps(pairs: list[ValidPair]) -> Iterator[Problem]:
    return _unique(pairs, "tap")


def _unique_images(pairs: list[ValidPair]) -> Iterator[Problem]:
    """Nobody else may use a disk that a guest writes to."""
    writers: dict[Path, str] = {}
    for pair, index, disk in _disks(pairs):
        if disk.access == "replicated":
            writers.setdefault(disk.image, f"vm.disks[{index}] of {pair.source.file.name}")
    for pair, index, disk in _disks(pairs):
        here = f"vm.disks[{index}] of {pair.source.file.name}"
        writer = writers.get(disk.image, here)
        if writer != here:
            path = ("vm", "disks", index, "image")
            yield pair.problem(
                path, f"{disk.image} is written to by {writer}: give each disk an image of its own"
            )


def _disks(pairs: list[ValidPair]) -> Iterator[tuple[ValidPair, int, Disk]]:
    for pair in pairs:
        for index, disk in enumerate(pair.config.vm.disks):
            yield pair, index, disk


def _attached(pairs: list[ValidPair]) -> Iterator[Problem]:
    for pair in pairs:
        attach = pair.config.vm.attach
        if attach is not None and attach.node not in pair.config.nodes:
            yield pair.problem(
                ("vm", "attach", "node"),
                f"is {attach.node!r}, which is none of the pair's nodes: name the one on which"
                " somebody else starts the VM",
            )
    for pair, index, disk in _disks(pairs):
        if pair.config.vm.attach is not None and disk.access == "replicated":
            yield pair.problem(
                ("vm", "disks", index),
                "a disk cannot be replicated for a VM that somebody else starts: remove it, or"
                " vm.attach",
            )


def _own_node(host: HostConfig, pair: ValidPair) -> Iterator[Problem]:
    if host.node not in pair.config.nodes:
        yield pair.problem(
            ("nodes",),
            f"this host is {host.node!r}, which is not one of them: add it, or remove this file",
        )
        return
    for socket in _SOCKETS:
        bound = _bound(host.listen, socket)
        address = pair.address(host.node, socket)
        if not bound.covers(address):
            yield pair.problem(
                ("nodes", host.node, socket),
                f"is {address}, but this host listens on {bound} (listen.{socket} of the host"
                " file): make the two agree",
            )


def _run_sockets_fit(host: HostConfig, pair: ValidPair) -> Iterator[Problem]:
    """QEMU's sockets are in a folder per pair and run; a run's name has up to 18 characters."""
    longest = host.runtime_directory / pair.config.name / ("s" * 18) / "qmp.sock"
    excess = len(os.fsencode(longest)) - LONGEST_SOCKET_PATH
    if excess > 0:
        yield pair.problem(
            ("pair",),
            f"makes paths of QEMU's sockets {excess} bytes too long: shorten it, or the host file's"
            " runtime_directory",
        )


def _can_fence(host: HostConfig, pair: ValidPair) -> Iterator[Problem]:
    if pair.config.fencing == "none":
        return
    for node in pair.config.nodes:
        if node != host.node and host.node in pair.config.nodes and node not in host.fencing:
            yield pair.problem(
                ("fencing",),
                f"is {pair.config.fencing}, but the host file does not say how {node}'s host is"
                f" switched off: add fencing.{node} there, or write none",
            )


def _primary_fences_first(host: ValidHost, pair: ValidPair) -> Iterator[Problem]:
    """Without a witness and with the link cut, only one of two hosts is to be switched off.

    A primary sees first whether its QEMU lives, and may have waited for a commit before.
    """
    config = pair.config
    if config.fencing == "none" or config.witness.type != "none":
        return
    least = 1.5 * config.checkpoint.stall_timeout + config.heartbeat.detection_s
    for node, agent in host.config.fencing.items():
        if node in config.nodes and node != host.config.node and agent.delay <= least:
            path = ("fencing", node)
            yield host.source.problem(
                path,
                f"a delay of {format_seconds(agent.delay)} lets the secondary of {config.name}"
                " switch the primary's host off while that does the same: make it more than"
                f" {format_seconds(least)} (1.5 x checkpoint.stall_timeout, and"
                " heartbeat.interval x heartbeat.misses), and what fencing takes",
                host.source.key_place(path),
            )


def _others_are_fenced(host: ValidHost, pairs: list[ValidPair]) -> Iterator[Problem]:
    known = {node for pair in pairs for node in pair.config.nodes}
    for node in host.config.fencing:
        if node == host.config.node:
            message = "is this host, which never switches itself off: name the other node"
        elif known and node not in known:
            message = f"no pair of this host has a node {node}: correct the name, or remove it"
        else:
            continue
        path = ("fencing", node)
        yield host.source.problem(path, message, host.source.key_place(path))


def _reset_in_time(host: ValidHost, pair: ValidPair) -> Iterator[Problem]:
    """The host is reset before the other node may speak.

    A watchdog counts from when it was last fed, the other node's patience from the pulse that it
    last heard of: three intervals may lie between (a pulse, its echo, the lease's reserve).
    """
    watchdog, heartbeat = host.config.watchdog, pair.config.heartbeat
    least = watchdog.timeout + LATE_S
    if watchdog.mode != "required" or watchdog.in_time(heartbeat.reserve_s):
        return
    misses = int(least / heartbeat.interval) + 4
    yield pair.problem(
        ("heartbeat",),
        f"the other node may take over {format_seconds(heartbeat.reserve_s)} after the last sign of"
        f" life (interval x (misses - 3) = {format_seconds(heartbeat.interval)} x"
        f" {heartbeat.misses - 3}), but the watchdog needs {format_seconds(least)} to reset this"
        f" host (watchdog.timeout of {host.source.file.name}, and {format_seconds(LATE_S)} for food"
        f" that comes late): write misses: {misses}, or a shorter watchdog.timeout",
    )


def _bound(listen: Listen, socket: _Socket) -> Address:
    return listen.channel if socket == "channel" else listen.heartbeat


def _something_to_compare(pairs: list[ValidPair]) -> Iterator[Problem]:
    for pair in pairs:
        held = any(nic.output == "held" for nic in pair.config.vm.nics)
        if pair.config.checkpoint.mode == "compare" and pair.config.vm.attach is not None:
            yield pair.problem(
                ("checkpoint", "mode"),
                "cannot compare what a VM sends that somebody else started (vm.attach): its NICs"
                " may leave checksums to the host; write buffer",
            )
        elif pair.config.checkpoint.mode == "compare" and not held:
            yield pair.problem(
                ("checkpoint", "mode"),
                "compares nothing: give the VM a NIC whose output is `held`, or write buffer",
            )


_RULES: tuple[Callable[[list[ValidPair]], Iterator[Problem]], ...] = (
    _something_to_compare,
    _named_after_file,
    _time_to_fail_over,
    _same_family,
    _one_node_per_address,
    _one_address_per_node,
    _room_in_heartbeat,
    _unique_macs,
    _unique_taps,
    _unique_images,
    _attached,
)
