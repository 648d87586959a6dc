"""The command line of a pair's QEMU."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coloha.config.checkpoint import Checkpoint
from coloha.config.disk import Disk
from coloha.config.model import Vm
from coloha.config.nic import Nic
from coloha.core.events import Role, Run
from coloha.qemu import compare
from coloha.qemu import disks as nodes
from coloha.qemu.guard import SWITCHED
from coloha.qemu.scripts import Plan, sink_id

_MONITOR = re.compile(r"([ps]-([0-9a-f]+))/qmp\.sock,server=on")
"""The rest of the argument by which a QEMU is known, after `mark`: it serves, others connect."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where a run keeps its sockets and logs."""

    directory: Path
    monitors: tuple[Path, Path] | None = None
    """The sockets of a QEMU that somebody else started."""

    @property
    def qmp(self) -> Path:
        """Socket for commands and events."""
        return self.monitors[0] if self.monitors else self.directory / "qmp.sock"

    @property
    def oob(self) -> Path:
        """Socket for out-of-band commands."""
        return self.monitors[1] if self.monitors else self.directory / "oob.sock"

    @property
    def stderr(self) -> Path:
        """What QEMU complained about."""
        return self.directory / "stderr.log"

    @property
    def exports(self) -> Path:
        """Socket where a secondary's images are written to."""
        return self.directory / "nbd.sock"

    def stream(self, name: str) -> Path:
        """Socket where a secondary of mode `compare` takes a stream; see `compare.streams`."""
        return self.directory / f"{name}.sock"

    @property
    def held(self) -> Path:
        """Exists while this QEMU holds output, and is touched while somebody looks after it."""
        return self.directory / "held"

    @property
    def switched(self) -> Path:
        """When the buffers were last switched (see `coloha.qemu.guard`)."""
        return self.directory / SWITCHED

    @property
    def guard_lock(self) -> Path:
        """Locked by the run's guard."""
        return self.directory / "guard.lock"

    @property
    def console(self) -> Path:
        """What the guest wrote to its serial console."""
        return self.directory / "console.log"


def directory_of(pair_directory: Path, run: Run) -> Path:
    """Return the folder of a run."""
    return pair_directory / run.id


def mark(pair_directory: Path) -> str:
    """Return how an argument of each QEMU of this pair begins, and of no other process."""
    return f"unix:{_quoted(pair_directory)}/"


def _quoted(path: Path) -> str:
    """Return a path as QEMU's options have it: a single comma would end it."""
    return str(path).replace(",", ",,")


def run_of(argv: list[str], pair_directory: Path) -> Run | None:
    """Return the run whose QEMU has these arguments, or None if it is none of this pair's."""
    start = mark(pair_directory)
    for argument in argv:
        found = _MONITOR.match(argument.removeprefix(start)) if argument.startswith(start) else None
        if found is not None and found[1][0] == Role.PRIMARY.value[0]:
            return Run(found[1], Role.PRIMARY)
        if found is not None:
            return Run(found[1], Role.SECONDARY, int(found[2], 16))
    return None


def netdevs(vm: Vm, output: Literal["held", "open"] | None = None) -> tuple[str, ...]:
    """Return the netdev ids of a VM's NICs in order, or of those with such an output."""
    numbered = enumerate(vm.nics)
    return tuple(f"net{index}" for index, nic in numbered if output in (None, nic.output))


def tap_name(pair: str, index: int, nic: Nic) -> str:
    """Return the tap of a NIC: the configured one, or one made for its bridge.

    Interface names have at most 15 characters, so the pair's name goes in as a hash.
    """
    if nic.tap is not None:
        return nic.tap
    return f"co{hashlib.sha256(pair.encode()).hexdigest()[:8]}n{index}"


def replicated(vm: Vm) -> tuple[str, ...]:
    """Return the numbers of a VM's replicated disks, by which scripts know them."""
    return tuple(str(index) for index, disk in enumerate(vm.disks) if disk.access == "replicated")


def plan(
    vm: Vm, files: Files, sync_rate: int | None = None, limits: compare.Limits | None = None
) -> Plan:
    """Return what scripts need to know of a VM, but for what QEMU's version decides."""
    return Plan(
        netdevs(vm, "held"),
        open_netdevs=netdevs(vm, "open"),
        disks=replicated(vm),
        exports=str(files.exports),
        sync_rate=sync_rate,
        limits=limits,
    )


def limits(checkpoint: Checkpoint) -> compare.Limits | None:
    """Return how output is compared, or None if it is not."""
    if checkpoint.mode != "compare":
        return None
    return compare.Limits(
        round(checkpoint.compare_timeout * 1000),
        round(checkpoint.expired_scan_cycle * 1000),
        checkpoint.max_queue_size,
    )


def overlay(folder: Path, pair: str, run: Run, node: str) -> Path:
    """Return the file of a secondary's overlay; `node` is its name in `coloha.qemu.disks`."""
    return folder / f"{pair}-{run.id}-{node}.qcow2"


def build(
    pair: str,
    vm: Vm,
    run: Run,
    files: Files,
    overlays: Path = Path(),
    *,
    compared: bool = False,
) -> list[str]:
    """Return the command line that starts `run`; a secondary's overlays are in folder `overlays`.

    Primary and secondary differ in three things only: the secondary waits for the migration, and
    until it is promoted its output goes to a sink (4.6), or to the primary to be `compared`, and
    its writes to overlays.
    """
    machine = f"{vm.machine},accel={vm.accelerator}"
    argv = [
        vm.qemu,
        *("-name", f"guest={pair},process=coloha-{pair}"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", machine, "-m", f"{vm.memory // 2**20}M", "-smp", str(vm.cpus)),
        *_optional("-cpu", vm.cpu),
        *_optional("-bios", vm.firmware),
        *_optional("-kernel", vm.kernel),
        *_optional("-initrd", vm.initrd),
        *_optional("-append", vm.append),
        *("-qmp", f"unix:{_quoted(files.qmp)},server=on,wait=off"),
        *("-qmp", f"unix:{_quoted(files.oob)},server=on,wait=off"),
        *("-chardev", f"file,id=console,path={_quoted(files.console)},append=on"),
        *("-serial", "chardev:console"),
    ]
    for index, nic in enumerate(vm.nics):
        plain = compared and nic.output == "held"
        argv += _nic(f"net{index}", tap_name(pair, index, nic), nic, plain=plain)
    for index, disk in enumerate(vm.disks):
        argv += _disk(str(index), disk, pair, run, overlays)
    if run.role is Role.SECONDARY:
        for netdev in netdevs(vm, "open") if compared else netdevs(vm):
            argv += _sink(netdev)
        for netdev in netdevs(vm, "held") if compared else ():
            argv += _compared(netdev, files)
        argv += ["-incoming", "defer"]
    return [*argv, *vm.extra_arguments]


def _optional(option: str, value: object | None) -> tuple[str, ...]:
    return () if value is None else (option, str(value))


_OFFLOADS = (
    *("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
)
"""What a virtio NIC may leave to the host: checksums and the cutting up of packets."""


def _nic(netdev: str, tap: str, nic: Nic, *, plain: bool) -> list[str]:
    # vhost moves packets past QEMU, where no filter can hold them.
    backend = f"tap,id={netdev},ifname={tap},script=no,downscript=no,vhost=off"
    # An option ROM differs between QEMU builds and is no use without network boot.
    device = f"{nic.model},netdev={netdev},mac={nic.mac},romfile="
    if plain and nic.model == "virtio-net-pci":
        # The rewriter computes whole checksums: one that the host is to complete would be wrong.
        device += "".join(f",{offload}=off" for offload in _OFFLOADS)
    return ["-netdev", backend, "-device", device]


def _disk(number: str, disk: Disk, pair: str, run: Run, overlays: Path) -> list[str]:
    """Return the arguments for a disk's block nodes (see `coloha.qemu.disks`) and its device.

    Errors go to the guest: one that stopped it would make QEMU abort at the next checkpoint (3.6).
    """
    image = _node(disk.format, nodes.image(number), disk.image)
    if disk.access == "read-only":
        return [*_blockdev({**image, "read-only": True}), *_drive(number, nodes.image(number))]
    argv, child = _blockdev(image), nodes.image(number)
    if run.role is Role.SECONDARY:
        child = nodes.copy(number)
        argv += _blockdev(_replication(number, pair, run, overlays))
    quorum = {"driver": "quorum", "node-name": nodes.top(number), "children": [child]}
    argv += _blockdev({**quorum, "read-pattern": "fifo", "vote-threshold": 1})
    return argv + _drive(number, nodes.top(number))


def _replication(number: str, pair: str, run: Run, overlays: Path) -> dict[str, object]:
    """Return the node that keeps apart what the secondary writes, and what the primary replaces."""
    active, hidden = (
        _node("qcow2", node, overlay(overlays, pair, run, node))
        for node in (nodes.active(number), nodes.hidden(number))
    )
    chain = {**active, "backing": {**hidden, "backing": nodes.image(number)}}
    names = {"node-name": nodes.copy(number), "top-id": nodes.top(number)}
    return {"driver": "replication", "mode": "secondary", **names, "file": chain}


def _node(driver: str, name: str, path: Path) -> dict[str, object]:
    kind = "host_device" if path.is_block_device() else "file"
    return {"driver": driver, "node-name": name, "file": {"driver": kind, "filename": str(path)}}


def _blockdev(node: Mapping[str, object]) -> list[str]:
    return ["-blockdev", json.dumps(node)]


def _drive(number: str, node: str) -> list[str]:
    device = f"virtio-blk-pci,drive={node},id=vd{number},werror=report,rerror=report"
    return ["-device", device]


def _sink(netdev: str) -> list[str]:
    chardev = f"null,id=null-{netdev}"
    sink = f"filter-redirector,id={sink_id(netdev)},netdev={netdev},queue=rx,outdev=null-{netdev}"
    return ["-chardev", chardev, "-object", sink]


def _compared(netdev: str, files: Files) -> list[str]:
    """Return what a secondary needs for mode `compare` (see `coloha.qemu.compare`).

    In this order: input meets the filter created first first, output the one created last.
    """
    argv = ["-chardev", f"null,id=null-{netdev}"]
    for name, stream in (("input", "in"), ("answers", "re")):
        path = _quoted(files.stream(f"{stream}{compare.number(netdev)}"))
        argv += ["-chardev", f"socket,id={name}-{netdev},path={path},server=on,wait=off"]
    for name, kind, properties in (
        ("deaf", "redirector", f"queue=tx,outdev=null-{netdev}"),
        ("input", "redirector", f"queue=tx,indev=input-{netdev},vnet_hdr_support=on"),
        ("sink", "redirector", f"queue=rx,outdev=answers-{netdev},vnet_hdr_support=on"),
        ("rewrite", "rewriter", "queue=all,vnet_hdr_support=on"),
    ):
        argv += ["-object", f"filter-{kind},id={name}-{netdev},netdev={netdev},{properties}"]
    return argv
