"""`coloha check`: would the pairs of this node work? It asks, and changes nothing."""

import argparse
import asyncio
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from coloha import config
from coloha.adapters.fence import Fencer
from coloha.adapters.network import see_own_addresses
from coloha.adapters.watchdog import unusable
from coloha.adapters.witness import WitnessError
from coloha.cli import compare, exits, tellers
from coloha.cli.service import become_daemon, unit_finding, usable_tap
from coloha.config import Config, PairConfig
from coloha.errors import FenceError, LaunchError, StartError
from coloha.qemu import command_line, images, versions
from coloha.qemu.probe import probe
from coloha.qemu.process import ChildLauncher
from coloha.runtime.keeper import SECONDARY_MEMORY_FACTOR, available_memory_bytes
from coloha.runtime.witnesses import open_witness

EXAMPLE = """example:
  coloha check --config /etc/coloha/coloha.yaml
  ssh beta coloha check --export | coloha check --against -

Run it on both hosts: each must be able to run the secondary. --against says what differs between
their pair files.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--export", action="store_true", help="print what another host compares with")
    way.add_argument(
        "--against",
        metavar="FILE",
        help="say what differs from what another host has exported; - reads it from a pipe",
    )


def call(arguments: argparse.Namespace) -> int:
    """Print what was checked, and every problem."""
    loaded = config.load(arguments.config)
    problems = 0
    other = compare.load(arguments.against) if arguments.against is not None else None
    if loaded.host.launcher == "systemd":
        become_daemon()
    if arguments.export:
        print(compare.export(loaded))
        return exits.OK
    if arguments.json:
        return _as_json(compare.differences(loaded, other) if other else _all_findings(loaded))
    findings = compare.differences(loaded, other) if other else _all_findings(loaded)
    for name, (good, line) in findings:
        print(f"{'ok     ' if good else 'PROBLEM'} {name}: {line}", flush=True)
        problems += not good
    if not loaded.pairs:
        print(f"no pairs in {loaded.host.pairs_directory}")
    return exits.FAILED if problems else exits.OK


Finding = tuple[bool, str]


def _as_json(findings: Iterator[tuple[str, Finding]]) -> int:
    """Print the findings as one JSON list."""
    found = [{"about": about, "good": good, "text": text} for about, (good, text) in findings]
    print(json.dumps(found))
    return exits.OK if all(finding["good"] for finding in found) else exits.FAILED


def _all_findings(loaded: Config) -> Iterator[tuple[str, Finding]]:
    for pair in loaded.pairs:
        for finding in _findings(loaded, pair):
            yield pair.name, finding
    for finding in _of_host(loaded):
        yield loaded.host.node, finding


def _of_host(loaded: Config) -> Iterator[Finding]:
    host = loaded.host
    if host.launcher == "systemd":
        yield unit_finding()
    for peer, section in host.fencing.items():
        yield asyncio.run(_agent(Fencer(host.node, peer, section), peer, section.agent))
    if host.watchdog.mode != "off":
        yield from _watchdog(loaded)
    yield from tellers.findings(host)


async def _agent(fencer: Fencer, peer: str, name: str) -> Finding:
    """Ask the agent if it reaches its device. Nothing is switched off."""
    try:
        words = await fencer.monitor()
    except FenceError as error:
        return False, f"fencing of {peer}: {error}"
    return True, f"fencing of {peer}: {name} reaches its device" + (f" ({words})" if words else "")


def _watchdog(loaded: Config) -> Iterator[Finding]:
    """Look at the device without opening it: that would arm it. An optional one is no problem."""
    section = loaded.host.watchdog
    optional = section.mode == "optional"
    problem = unusable(section.device)
    if problem is not None:
        yield optional, f"watchdog{' (optional), not used' if optional else ''}: {problem}"
        return
    yield True, f"watchdog {section.device} is there; coloha arms it for {section.timeout:g} s"
    for pair in loaded.pairs:
        if not section.in_time(pair.heartbeat.reserve_s):
            yield (
                optional,
                f"watchdog (optional) resets this host too late for {pair.name}: mode: required"
                " says what to change",
            )


def _findings(loaded: Config, pair: PairConfig) -> Iterator[Finding]:
    yield True, "configuration"
    yield from _qemu(pair)
    yield from _devices(pair)
    yield _memory(loaded, pair)
    yield from _interfaces(pair)
    yield from _disks(loaded, pair)
    yield _addresses(loaded, pair)
    yield asyncio.run(_witness(pair))


def _qemu(pair: PairConfig) -> Iterator[Finding]:
    vm = pair.vm
    try:
        found = asyncio.run(probe(vm.qemu, vm.accelerator))
    except LaunchError as error:
        yield False, str(error)
        return
    version = ".".join(map(str, found.version))
    refused = versions.problems(found.version, versions.Traits(vm.machine, vm.accelerator))
    for problem in refused:
        yield False, problem
    if not found.colo:
        yield (
            False,
            f"{vm.qemu} {version} was built without COLO (capability x-colo): install a "
            "distribution's full QEMU (Debian: qemu-system-x86)",
        )
    elif not refused:
        path = "on" if versions.needs_return_path(found.version) else "off"
        tests_only = "; TCG is for tests only" if vm.accelerator == "tcg" else ""
        yield True, f"QEMU {version}, COLO built in, return-path {path}{tests_only}"


_SCREEN = ("VGA", "cirrus-vga", "qxl", "virtio-vga", "virtio-gpu", "bochs-display", "vmware-svga")
_IDE = ("ide-", "piix3-ide", "piix4-ide", "ahci", "ich9-ahci")
_COSTS = ((_SCREEN, "a screen", 3.8), (_IDE, "IDE or AHCI", 1.1))
"""What resetting and saving a device cost in each checkpoint, milliseconds, as the authors of COLO
measured it (qemu-devel, February 2016)."""


def _devices(pair: PairConfig) -> Iterator[Finding]:
    """Advise on devices that make each pause longer."""
    words = pair.vm.extra_arguments
    named = [value for option, value in itertools.pairwise(words) if option in ("-device", "-vga")]
    named = ["VGA" if value in ("std", "cirrus", "qxl", "virtio") else value for value in named]
    for kinds, what, cost_ms in _COSTS:
        found = [name for name in named if name.startswith(kinds)]
        if found:
            yield (
                True,
                f"{found[0].partition(',')[0]}: {what} made each pause {cost_ms} ms longer when"
                " COLO's authors measured it: leave it out if the guest does without",
            )


def _memory(loaded: Config, pair: PairConfig) -> Finding:
    directory = loaded.host.runtime_directory / pair.name
    running = ChildLauncher().find(command_line.mark(directory))
    for process, _ in running:
        process.close()
    if running:
        return True, f"a QEMU of this pair runs here already (pid {running[0][0].pid})"
    available = available_memory_bytes() >> 20
    needed = SECONDARY_MEMORY_FACTOR * pair.vm.memory >> 20
    total = sum(SECONDARY_MEMORY_FACTOR * other.vm.memory for other in loaded.pairs) >> 20
    text = f"a secondary needs {needed} MiB (twice the guest's), {available} MiB are available"
    if total > needed:
        text += f"; all pairs together need up to {total} MiB"
    return available >= needed, text


def _interfaces(pair: PairConfig) -> Iterator[Finding]:
    for index, nic in enumerate(pair.vm.nics):
        name = nic.tap or nic.bridge
        path = Path("/sys/class/net") / str(name)
        good = path.exists() if nic.tap else (path / "bridge").is_dir()
        kind = "tap" if nic.tap else "bridge"
        advice = "" if good else f": {kind} {name} does not exist on this host, make it first"
        if good and nic.tap and not usable_tap(path):
            good, advice = False, ": it belongs to somebody else: make it with `user coloha`"
        yield good, f"NIC {index} on {kind} {name}{advice}"


def _disks(loaded: Config, pair: PairConfig) -> Iterator[Finding]:
    for index, disk in enumerate(pair.vm.disks):
        try:
            size = asyncio.run(images.size(pair.vm.qemu_img, disk))
        except LaunchError as error:
            yield False, f"disk {index}: {error}"
            continue
        yield True, f"disk {index}: {disk.image}, {disk.format}, {size >> 20} MiB, {disk.access}"
    folder = loaded.host.overlay_directory
    if command_line.replicated(pair.vm) and folder.exists() and not os.access(folder, os.W_OK):
        yield False, f"overlay_directory {folder} cannot be written to: correct its mode"


def _addresses(loaded: Config, pair: PairConfig) -> Finding:
    try:
        see_own_addresses(pair, loaded.host.node)
    except StartError as error:
        return False, str(error)
    return True, f"this host is {loaded.host.node}: its addresses are here"


def _without_witness(pair: PairConfig) -> str:
    if isinstance(pair.witness, config.NoWitness) and pair.witness.on_silence == "primary":
        then = "the primary goes on alone, and the death of its host needs an operator"
    elif pair.fencing == "none":
        then = "both hold the output until they do, or an operator decides"
    else:
        then = "both hold the output until they do, or one is fenced"
    return f"no witness: when the nodes do not hear each other, {then}"


async def _witness(pair: PairConfig) -> Finding:
    witness = open_witness(pair.witness)
    if witness is None:
        return True, _without_witness(pair)
    try:
        record = await witness.read(pair.name)
        await witness.probe(pair.name)
    except WitnessError as error:
        return False, f"witness: {error}"
    finally:
        await witness.close()
    return True, f"witness {pair.witness.place}, record: {record or 'none yet'}"
