"""What can be configured: one host file, and one file per pair.

The models are the only list of settings: the loader, the JSON Schemas and the reference are made
from them. A description says what a setting does, and why one would change it. Rules within one
section are here; rules across sections and files are in `rules`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from coloha.config.attach import Attach
from coloha.config.checkpoint import Checkpoint
from coloha.config.disk import Disk
from coloha.config.fencing import FenceAgent
from coloha.config.hook import Hook
from coloha.config.mqtt import Mqtt
from coloha.config.nic import Nic
from coloha.config.recovery import Recovery
from coloha.config.section import Section
from coloha.config.units import (
    Address,
    Bytes,
    Seconds,
    as_written,
    bytes_between,
    format_seconds,
    seconds_between,
    shown,
)
from coloha.config.values import (
    Count,
    Cpu,
    ExistingFile,
    ExtraArgument,
    KeyFile,
    Machine,
    Name,
    NodeAddress,
    Program,
    ResolvedPath,
    disks_are_read_only,
)
from coloha.config.watchdog import Watchdog
from coloha.config.witness import Witness
from coloha.places import RUNTIME

LONGEST_HEALTHY_PAUSE_S = 0.1
"""How long a healthy daemon may fall silent in seconds: a garbage collection, a busy host."""

CONTROL_SOCKET = "control.sock"
"""In the runtime folder."""

LONGEST_SOCKET_PATH = 107
"""Bytes that Linux has for the path of a Unix socket."""

_MEBIBYTE = 2**20


class Listen(Section):
    """Where this node is reached by the other nodes. Both sockets speak to nodes only."""

    channel: Address = Field(
        description="TCP address for the channels between the daemons, which carry checkpoints."
        " Use the fastest network there is. 0.0.0.0 or [::] stands for every address of the host"
        " of that family."
    )
    heartbeat: Address = Field(
        description="UDP address for heartbeats. It may be on another network than the channel,"
        " so that a full channel delays no heartbeat. 0.0.0.0 or [::] stands for every address of"
        " the host of that family."
    )


class HostConfig(Section):
    """The host file, `coloha.yaml`: what is true for every pair on this host."""

    node: Name = Field(
        description="Name of this node. Pair files and witness records use it, so rename a node"
        " only while it has no pairs."
    )
    listen: Listen = Field(description="Where this node is reached by the other nodes.")
    key_file: KeyFile = Field(
        description="File with the key that all nodes share, at least 32 bytes after stripping"
        " white space, readable by its owner only. Daemons use it to prove to each other who they"
        " are. Relative paths start at this file's folder."
    )
    metrics: Address | None = Field(
        default=None,
        description="TCP address where Prometheus metrics are served. Without it there are none."
        " Metrics need no key, so keep the address on a network that you trust.",
    )
    runtime_directory: ResolvedPath = Field(
        default=RUNTIME,
        description="Folder for sockets, which a reboot may empty. Change it to run a second"
        " daemon on one host, for tests.",
    )
    state_directory: ResolvedPath = Field(
        default=Path("/var/lib/coloha"),
        description="Folder for what must survive a reboot. It must be on a local disk: coloha"
        " waits for its writes before it acts.",
    )
    overlay_directory: ResolvedPath = Field(
        default=Path("/run/coloha"),
        description="Folder for what a secondary's disks hold between two checkpoints. Each"
        " checkpoint empties it, so put it in memory (tmpfs) or on a fast disk; it needs room for"
        " what a guest writes in one epoch.",
    )
    pairs_directory: ResolvedPath = Field(
        default=Path("pairs.d"),
        description="Folder with one file per pair, each named after its pair. Only *.yaml is"
        " read. Relative paths start at this file's folder.",
    )
    launcher: Literal["child", "systemd"] = Field(
        default="child",
        description="What starts QEMUs. `child`: the daemon itself, which then needs to be root, or"
        " to have CAP_NET_ADMIN. `systemd`: the unit coloha-qemu@PAIR.service, so that each QEMU"
        " has a cgroup of its own and neither needs a capability; see docs/systemd.md.",
    )
    fencing: Mapping[Name, FenceAgent] = Field(
        default={},
        description="The other nodes by name, and how this host has the host of each switched off."
        " A host has one power supply, however many pairs there are, so it is here and not in their"
        " files.",
    )
    watchdog: Watchdog = Field(
        default_factory=Watchdog,
        description="What resets this host when its daemon decides nothing any more.",
    )
    mqtt: Mqtt | None = Field(
        default=None,
        description="An MQTT broker that is told what happens on this node. Without it none is.",
    )
    hooks: Mapping[Name, Hook] = Field(
        default={}, description="Programs, each by a name, that run when something happens."
    )
    event_loop: Literal["uvloop", "asyncio"] = Field(
        default="uvloop",
        description="Event loop of the daemon. uvloop is faster; choose asyncio to rule it out"
        " when you look for a fault.",
    )

    @property
    def control_socket(self) -> Path:
        """Where the daemon listens for the command line."""
        return self.runtime_directory / CONTROL_SOCKET

    @field_validator("metrics")
    @classmethod
    def _metrics_are_apart(cls, metrics: Address | None, info: ValidationInfo) -> Address | None:
        listen: Listen | None = info.data.get("listen")
        if metrics is None or listen is None:
            return metrics
        if metrics.covers(listen.channel) or listen.channel.covers(metrics):
            raise ValueError(f"{metrics} is taken by listen.channel: choose another port")
        return metrics

    @field_validator("launcher")
    @classmethod
    def _units_know_the_folder(cls, launcher: str, info: ValidationInfo) -> str:
        folder = info.data.get("runtime_directory", RUNTIME)
        if launcher == "systemd" and folder != RUNTIME:
            raise ValueError(
                f"the units of QEMUs know {RUNTIME} only: remove runtime_directory, or write child"
            )
        return launcher

    @field_validator("runtime_directory")
    @classmethod
    def _sockets_fit(cls, folder: Path) -> Path:
        excess = len(os.fsencode(folder / CONTROL_SOCKET)) - LONGEST_SOCKET_PATH
        if excess > 0:
            raise ValueError(
                f"is {excess} bytes too long for the path of a Unix socket in it: shorten it"
            )
        return folder


class NodeAddresses(Section):
    """Where one node is reached. The same on both nodes: it must agree with their `listen`."""

    channel: NodeAddress = Field(
        description="TCP address of the node for channels. It must agree with `listen.channel` of"
        " that node."
    )
    heartbeat: NodeAddress = Field(
        description="UDP address of the node for heartbeats. It must agree with"
        " `listen.heartbeat` of that node."
    )


def _whole_mebibytes(size: int) -> int:
    if size % _MEBIBYTE:
        raise ValueError(f"must be a whole number of MiB: write {size // _MEBIBYTE + 1}MiB")
    return size


class Vm(Section):
    """The virtual machine. Both nodes must describe the same one; only host paths may differ."""

    qemu: Program = Field(
        default="qemu-system-x86_64",
        description="QEMU to run: a name looked up in PATH, or a path, where a relative one with"
        " a slash starts at this file's folder. Both nodes need the same version.",
    )
    machine: Machine = Field(
        default="pc",
        description="Machine type. COLO works with `pc`; `q35` needs QEMU 11. Give a versioned"
        " type such as `pc-i440fx-7.2` to keep the guest's hardware across upgrades of QEMU.",
    )
    accelerator: Literal["kvm", "tcg", "qtest"] = Field(
        default="kvm",
        description="What runs the guest's CPUs. `tcg` needs no KVM, is slow and needs QEMU 11"
        " for COLO. `qtest` runs no CPU at all and is for tests.",
    )
    cpu: Cpu | None = Field(
        default=None,
        description="CPU model, as of QEMU's -cpu. Without it QEMU chooses. Name one that both"
        " hosts have; `host` is safe on equal hosts only.",
    )
    cpus: Annotated[Count, Field(ge=1, le=255)] = Field(
        default=1, description="Number of virtual CPUs."
    )
    memory: Annotated[Bytes, bytes_between("16MiB", "16TiB"), AfterValidator(_whole_mebibytes)] = (
        Field(
            description="Memory of the guest, whole MiB. The secondary's host needs twice as much:"
            " COLO keeps a second copy there."
        )
    )
    kernel: ExistingFile | None = Field(
        default=None,
        description="Kernel that QEMU boots directly, without firmware menus or a boot disk."
        " Excludes `firmware`. Relative paths start at this file's folder.",
    )
    initrd: ExistingFile | None = Field(
        default=None,
        description="Initial RAM disk for `kernel`. Relative paths start at this file's folder.",
    )
    append: str | None = Field(default=None, description="Command line for `kernel`.")
    firmware: ExistingFile | None = Field(
        default=None,
        description="Firmware image, as of QEMU's -bios, such as OVMF for UEFI. Excludes `kernel`."
        " Without both, QEMU's default firmware boots. Relative paths start at this file's folder.",
    )
    nics: Annotated[tuple[Nic, ...], Field(max_length=8)] = Field(
        default=(), description="Network interfaces of the guest, in the order of their slots."
    )
    disks: Annotated[tuple[Disk, ...], Field(max_length=8)] = Field(
        default=(), description="Disks of the guest, in the order of their slots."
    )
    qemu_img: Program = Field(
        default="qemu-img",
        description="qemu-img to run, for the disks: a name looked up in PATH, or a path, where a"
        " relative one with a slash starts at this file's folder.",
    )
    attach: Attach | None = Field(
        default=None,
        description="For a VM that somebody else starts on one of the nodes: coloha takes over the"
        " running QEMU there. See docs/runbook.md for what it must have.",
    )
    extra_arguments: Annotated[tuple[ExtraArgument, ...], AfterValidator(disks_are_read_only)] = (
        Field(
            default=(),
            description="Words added to QEMU's command line, such as devices. They must be the same"
            " on both nodes. Options that coloha sets itself are refused, and so are disks that the"
            " guest could write to: their writes would not reach the secondary.",
        )
    )

    @field_validator("initrd", "append")
    @classmethod
    def _needs_kernel(cls, value: object, info: ValidationInfo) -> object:
        # A kernel that was given but is wrong is absent from info.data.
        if value is not None and info.data.get("kernel", "wrong") is None:
            raise ValueError("means nothing without kernel: add vm.kernel or remove this")
        return value

    @field_validator("firmware")
    @classmethod
    def _boots_one_way(cls, firmware: Path | None, info: ValidationInfo) -> Path | None:
        if firmware is not None and info.data.get("kernel", "wrong") is not None:
            raise ValueError("kernel and firmware exclude each other: remove one of them")
        return firmware


class Heartbeat(Section):
    """How soon a silent node counts as dead: after `misses` intervals."""

    interval: Annotated[Seconds, seconds_between("20ms", "10s")] = Field(
        default=as_written("100ms"),
        description="Time between two heartbeats. Shorten it to notice a death sooner.",
    )
    misses: Annotated[Count, Field(ge=3, le=100)] = Field(
        default=5,
        description="Heartbeats in a row that must fail to arrive before the node counts as dead."
        " Raise it on networks that lose packets. interval x misses must be more than 200ms, twice"
        " what a healthy daemon can fall silent on a busy host.",
    )

    restart_hold: Annotated[Seconds, seconds_between("0s", "5m")] = Field(
        default=as_written("5s"),
        description="How long the other node's daemon may take to restart before it counts as"
        " silent: it said that it restarts, or its host answers that nobody listens on its port. A"
        " host that is dead gets no such time. Longer than a restart of the daemon takes.",
    )

    @property
    def detection_s(self) -> float:
        """How long a node is silent before it counts as dead, in seconds."""
        return self.interval * self.misses

    @property
    def reserve_s(self) -> float:
        """How long this node may speak, in seconds, once it heard that it was heard.

        A pulse and its echo take up to an interval each, and the lease keeps one back.
        """
        return self.interval * (self.misses - 3)

    @field_validator("misses")
    @classmethod
    def _outlasts_pauses(cls, misses: int, info: ValidationInfo) -> int:
        interval = info.data.get("interval", 0.0)
        least = 2 * LONGEST_HEALTHY_PAUSE_S
        if 0 < interval * misses <= least:
            raise ValueError(
                f"a silence of {format_seconds(interval * misses)} (interval x misses) would count"
                f" as death, but healthy daemons pause too: make it more than"
                f" {format_seconds(least)}, with misses: {int(least / interval) + 1} for instance"
            )
        return misses


def _first_node(data: dict[str, Any]) -> str:
    # Without valid nodes the pair is refused anyway; "unknown" only keeps that to one problem.
    return str(next(iter(data.get("nodes", ())), "unknown"))


class PairConfig(Section):
    """A pair file: one virtual machine on two nodes. Keep one copy of it on each node."""

    pair: Name = Field(description="Name of the pair. It must be the file's name without .yaml.")
    nodes: Annotated[Mapping[Name, NodeAddresses], Field(min_length=2, max_length=2)] = Field(
        description="The two nodes by name, and where each is reached."
    )
    first_primary: Name = Field(
        default_factory=_first_node,
        description="Node that boots the guest while there is no record of the pair yet. By"
        " default the first one under `nodes`. It means nothing afterwards.",
    )
    vm: Vm = Field(description="The virtual machine.")
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="How often the secondary catches up."
    )
    heartbeat: Heartbeat = Field(
        default_factory=Heartbeat, description="How soon a silent node counts as dead."
    )
    witness: Witness = Field(
        description="The third party that records which node may speak, so that never both do."
    )
    fencing: Literal["none", "optional", "required"] = Field(
        default="none",
        description="Whether the host of a silent primary is switched off before its secondary"
        " speaks. `required`: the secondary holds until that is confirmed. `optional`: with a"
        " witness it is tried, and its failure told; without one it confirms, or the secondary"
        " holds. How it is done is in the host files.",
    )
    recovery: Recovery = Field(
        default_factory=Recovery, description="How the pair becomes protected again."
    )

    @property
    def name(self) -> str:
        """The pair's name."""
        return self.pair

    @field_validator("first_primary")
    @classmethod
    def _is_a_node(cls, node: str, info: ValidationInfo) -> str:
        nodes = info.data.get("nodes")
        if nodes is not None and node not in nodes:
            raise ValueError(f"{shown(node)} is not under nodes: write {' or '.join(nodes)}")
        return node

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex over what is `shared`."""
        canonical = json.dumps(self.shared(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def shared(self) -> dict[str, Any]:
        """Return everything that both nodes must agree on, as in the file, plain.

        What each host may have its own way is left out: paths of QEMU and boot files (but not
        which of them there are) and of disk images, who starts it, bridges and taps, how this host
        reaches the witness, recovery, and what takes effect on reload, since two hosts never reload
        at once.
        """
        shared = self.model_dump(
            mode="json", exclude={"witness": True, "recovery": True, "checkpoint": {"period"}}
        )
        shared["witness"] = self.witness.agreed
        if self.checkpoint.mode == "buffer":
            for name in ("compare_timeout", "expired_scan_cycle", "max_queue_size"):
                del shared["checkpoint"][name]  # as nodes of a release say that does not know it
        if self.fencing == "none":
            del shared["fencing"]  # as nodes of a release say that does not know it
        del shared["vm"]["qemu"], shared["vm"]["qemu_img"], shared["vm"]["attach"]
        for disk in shared["vm"]["disks"]:
            del disk["image"]
        if not shared["vm"]["disks"]:
            del shared["vm"]["disks"]  # as nodes of a release say that does not know it
        for name in ("kernel", "initrd", "firmware"):
            shared["vm"][name] = shared["vm"][name] is not None
        for nic in shared["vm"]["nics"]:
            del nic["bridge"], nic["tap"]
            if nic["output"] == "held":
                del nic["output"]
        return shared
