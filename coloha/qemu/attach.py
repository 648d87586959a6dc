"""A QEMU that somebody else started: found by its monitor's socket, and looked at before use."""

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloha.config.attach import Attach
from coloha.config.model import Vm
from coloha.core.commit import Message
from coloha.core.events import Role, Run
from coloha.errors import LaunchError
from coloha.qemu.command_line import netdevs
from coloha.qemu.guard import started
from coloha.qemu.process import Process
from coloha.qemu.steps import Command

Ask = Callable[[Command], Awaitable[Message]]
"""Executes one command; its reply may be an error."""

NOTE = "attached.json"
"""In a run's folder: which process it is."""

_LISTENING = "00010000"
"""__SO_ACCEPTCON, as /proc/net/unix has it (Linux, include/linux/net.h)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    started: int
    """When, clock ticks since the host's start (/proc/PID/stat, field 22)."""


def listener(path: Path) -> int | None:
    """Return the process that listens on a Unix socket, or None.

    Its creator need not be the one: managers of VMs make the socket and hand it on.

    :raises LaunchError: if there are several, or this user may not see which one it is.
    """
    rows = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    inodes = {row[6] for row in rows if row[3] == _LISTENING and row[7:] == [str(path)]}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = [pid for pid in _pids() if wanted & set(_descriptors(pid))]
    if len(found) == 1:
        return found[0]
    if found:
        raise LaunchError(f"several processes listen on {path}: {', '.join(map(str, found))}")
    raise LaunchError(f"who listens on {path} cannot be seen: does coloha run as another user?")


def _pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            yield int(entry.name)


def _descriptors(pid: int) -> Iterator[str]:
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            yield str(entry.readlink())
    except OSError:
        return  # it is gone, or not ours to see


def take(attach: Attach, directory: Path) -> Process:
    """Hold the QEMU that listens, and note in the run's folder that it is this run.

    :raises LaunchError: if there is none, or none that can be held.
    """
    pid = listener(attach.monitor)
    if pid is None:
        raise LaunchError(f"no QEMU listens on {attach.monitor}: whoever starts this VM must do so")
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise LaunchError(f"the QEMU of {attach.monitor} has just ended") from None
    ticks = started(pid)
    (directory / NOTE).write_text(json.dumps({"pid": pid, "started": ticks}))
    return Process(pid, pidfd, whose="somebody else started it")


def found(pair_directory: Path) -> Iterator[tuple[Process, Run]]:
    """Yield what an earlier daemon took, and still lives."""
    for note in pair_directory.glob(f"*/{NOTE}"):
        try:
            identity = Identity(**json.loads(note.read_text()))
            pidfd = os.pidfd_open(identity.pid)
        except (OSError, ValueError, TypeError):
            continue
        if started(identity.pid) == identity.started:
            yield (
                Process(identity.pid, pidfd, whose="somebody else started it"),
                Run(note.parent.name, Role.PRIMARY),
            )
        else:
            os.close(pidfd)


def is_attached(directory: Path) -> bool:
    """Return whether the run of this folder is a QEMU that somebody else started."""
    return (directory / NOTE).exists()


async def problems(ask: Ask, vm: Vm) -> list[str]:
    """Return what keeps coloha from protecting this QEMU, each with what to do."""
    return [text for look in _LOOKS async for text in _texts(look, ask, vm)]


async def _texts(look: Any, ask: Ask, vm: Vm) -> Any:
    for text in await look(ask, vm):
        yield text


async def _value(ask: Ask, name: str, **arguments: object) -> Any:
    reply = await ask(Command(name, arguments))
    return {} if reply.error is not None else reply.data


async def _runs(ask: Ask, vm: Vm) -> list[str]:
    del vm
    status = (await _value(ask, "query-status")).get("status")
    if status != "running":
        return [f"its guest is {status}: start it first (cont)"]
    migration = (await _value(ask, "query-migrate")).get("status", "none")
    if migration not in ("none", "completed", "failed", "cancelled"):
        return [f"it is migrating ({migration}): wait for the end of that, or cancel it"]
    return []


async def _is_the_same_machine(ask: Ask, vm: Vm) -> list[str]:
    """The secondary is started as `vm` says: what differs would not load there."""
    said = []
    memory = (await _value(ask, "query-memory-size-summary")).get("base-memory")
    if memory != vm.memory:
        said.append(f"it has {memory} bytes of memory, vm.memory is {vm.memory}: make them equal")
    cpus = len(await _value(ask, "query-cpus-fast"))
    if cpus != vm.cpus:
        said.append(f"it has {cpus} CPUs, vm.cpus is {vm.cpus}: make them equal")
    kind = await _value(ask, "qom-get", path="/machine", property="type")
    machines = await _value(ask, "query-machines")
    wanted = vm.machine.partition(",")[0]
    names = {f"{m['name']}-machine" for m in machines if wanted in (m["name"], m.get("alias"))}
    if kind not in names:
        said.append(f"it is a {kind}, vm.machine is {vm.machine}: give vm.machine its type")
    return said


async def _has_no_disks_of_its_own(ask: Ask, vm: Vm) -> list[str]:
    del vm
    devices = await _value(ask, "query-block")
    written = [
        device.get("qdev") or device.get("device")
        for device in devices
        if "inserted" in device and not device["inserted"].get("ro")
    ]
    if written:
        return [
            f"its guest writes to {', '.join(written)}: a disk can be replicated only by a QEMU"
            " that coloha started (vm.disks)"
        ]
    return []


async def _output_can_be_held(ask: Ask, vm: Vm) -> list[str]:
    """QEMU itself says so: with vhost, packets go past it."""
    said = []
    for netdev in netdevs(vm):
        name = f"coloha-tries-{netdev}"
        options = {"netdev": netdev, "queue": "rx", "interval": 1, "status": "off"}
        buffer = {"qom-type": "filter-buffer", "id": name, **options}
        reply = await ask(Command("object-add", buffer))
        if reply.error is None:
            await ask(Command("object-del", {"id": name}))
        else:
            said.append(
                f"the output of netdev {netdev} cannot be held ({reply.error}): its NICs must have"
                " the netdevs net0, net1 and so on, in the order of vm.nics, with vhost=off"
            )
    return said


_LOOKS = (_runs, _is_the_same_machine, _has_no_disks_of_its_own, _output_can_be_held)
