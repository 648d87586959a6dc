"""Two coloha daemons on the hosts of a topology, configured, started, watched and hurt."""

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coloha.adapters.control import ControlClient
from coloha.errors import ControlError
from lab.assets import Assets
from lab.disks import make_image
from lab.manager import Manager
from lab.namespace import CHECKOUT, LabError, Process
from lab.topology import GUEST_IP, Host, Topology

PAIR = "vm"
MAC = "52:54:00:c0:10:a1"
CHANNEL_PORT, HEARTBEAT_PORT = 7770, 7771


@dataclass(frozen=True, slots=True)
class Timing:
    """What of the configuration the lab varies. Durations are as in the pair file."""

    period: str = "50ms"
    interval: str = "50ms"
    misses: int = 6
    stall_timeout: str = "1s"
    cold_start_after: str = "10s"
    restart_hold: str = "1s"
    orphan_after: str = "10m"
    event_loop: str = "uvloop"
    mode: str = "buffer"


class Cluster:
    """The daemons of a topology's two hosts and the VM they share."""

    def __init__(
        self,
        topology: Topology,
        assets: Assets,
        timing: Timing | None = None,
        *,
        guest_words: str = "",
        qemu: Path | None = None,
        vm: dict[str, Any] | None = None,
        disks: int = 0,
        witness: dict[str, Any] | None = None,
        fencing: str = "none",
        agent: Callable[[str], dict[str, Any]] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """`guest_words` go to the guest's kernel command line, `vm` over the pair file's `vm`. The
        guest logs its answers on `disks`; the first host's have a file system, the other's nothing.

        `witness` is the pair file's, instead of the hosts' folder. `fencing` is the pair file's as
        well, and `agent` gives the section of the agent that switches a node's host off. `settings`
        go over the host files.
        """
        self.topology = topology
        self.timing = timing or Timing()
        self.daemons: dict[str, subprocess.Popen[Any]] = {}
        self.program = ["-m", "coloha"]
        """What Python runs as the daemon."""
        self.managers: dict[str, Manager] = {}
        """What starts each node's daemon as systemd does, if anything; see `manage`."""
        self._witness = witness
        self._fencing, self._agent = fencing, agent
        self._over = settings or {}
        key = secrets.token_hex(32)
        vm = {**_with_disks(topology, assets, disks), **(vm or {})}
        guest_words = f"{guest_words} logs={disks}" if disks else guest_words
        for host in topology.hosts.values():
            self._configure(host, assets, key, guest_words, qemu or assets.qemu, vm)

    def _configure(
        self,
        host: Host,
        assets: Assets,
        key: str,
        guest_words: str,
        qemu: Path,
        vm: dict[str, Any],
    ) -> None:
        pairs = host.directory / "pairs.d"
        pairs.mkdir(exist_ok=True)
        key_file = host.directory / "key"
        key_file.write_text(key)
        key_file.chmod(0o600)
        ip = host.replication_ip
        settings: dict[str, Any] = {
            "node": host.name,
            "listen": {
                "channel": f"{ip}:{CHANNEL_PORT}",
                "heartbeat": f"{ip}:{HEARTBEAT_PORT}",
            },
            "key_file": str(key_file),
            "metrics": f"{ip}:9770",
            "runtime_directory": str(host.runtime),
            "state_directory": str(host.state),
            "overlay_directory": str(host.runtime),
            "event_loop": self.timing.event_loop,
        }
        if self._agent is not None:
            peer = self.other(host.name)
            settings["fencing"] = {peer: self._agent(peer)}
        self.host_file(host.name).write_text(yaml.safe_dump({**settings, **self._over}))
        self._write_pair(host, assets, guest_words, qemu, vm)

    def _write_pair(
        self, host: Host, assets: Assets, guest_words: str, qemu: Path, vm: dict[str, Any]
    ) -> None:
        nodes = {
            name: {
                "channel": f"{other.replication_ip}:{CHANNEL_PORT}",
                "heartbeat": f"{other.replication_ip}:{HEARTBEAT_PORT}",
            }
            for name, other in self.topology.hosts.items()
        }
        timing = self.timing
        # On a busy machine TCG's timer may fail the kernel's test of it.
        words = ("console=ttyS0", "quiet", "panic=-1", "no_timer_check", f"ip4={GUEST_IP}/24")
        append = " ".join([*words, guest_words]).strip()
        pair: dict[str, Any] = {
            "pair": PAIR,
            "nodes": nodes,
            "vm": {
                "qemu": str(qemu),
                "accelerator": "tcg",
                "memory": "128MiB",
                "kernel": str(assets.kernel),
                "initrd": str(assets.initrd),
                "append": append,
                "nics": [{"mac": MAC, "bridge": "br0"}],
                "extra_arguments": ["-plugin", str(assets.plugin)],
                **vm,
            },
            "checkpoint": {
                "mode": timing.mode,
                "period": timing.period,
                "stall_timeout": timing.stall_timeout,
            },
            "heartbeat": {
                "interval": timing.interval,
                "misses": timing.misses,
                "restart_hold": timing.restart_hold,
            },
            "witness": self._witness or {"type": "file", "directory": str(host.witness)},
            "fencing": self._fencing,
            "recovery": {
                "sync_timeout": "30s",
                "retry_max": "2s",
                "cold_start_after": timing.cold_start_after,
                "flap_limit": 1000,
                "orphan_after": timing.orphan_after,
            },
        }
        self.pair_file(host.name).write_text(yaml.safe_dump(pair, sort_keys=False))

    def host_file(self, name: str) -> Path:
        """The host file of a node."""
        return self.topology.hosts[name].directory / "coloha.yaml"

    def pair_file(self, name: str) -> Path:
        """The pair file of a node."""
        return self.topology.hosts[name].directory / "pairs.d" / f"{PAIR}.yaml"

    def log_file(self, name: str) -> Path:
        """What a node's daemons logged."""
        return self.topology.hosts[name].directory / "daemon.log"

    # Daemons

    @contextlib.contextmanager
    def manage(self) -> Iterator[None]:
        """Have daemons started by a service manager that keeps their sockets. None must lose its
        power meanwhile: what is kept would outlive its host.
        """
        for name, host in self.topology.hosts.items():
            self.managers[name] = Manager(host.directory / "notify")
        try:
            yield
        finally:
            while self.managers:
                self.managers.popitem()[1].close()

    def start(self, name: str) -> None:
        """Start a node's daemon."""
        argv: list[str | Path] = [sys.executable, *self.program, "run", "--config"]
        argv.append(self.host_file(name))
        options: dict[str, Any] = {}
        if name in self.managers:
            argv, options = self.managers[name].launch(argv)
        with self.log_file(name).open("a") as log:
            self.daemons[name] = self.topology.hosts[name].popen(
                argv,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **options,
            )

    def start_all(self) -> None:
        """Start every daemon."""
        for name in self.topology.hosts:
            self.start(name)

    def processes(self, name: str, word: str) -> list[Process]:
        """The live processes of a host with this word on their command line."""
        host = self.topology.hosts[name]
        return [p for p in host.pids() if any(word in argument for argument in p.argv)]

    def daemon(self, name: str) -> Process:
        """A node's daemon."""
        found = [p for p in self.processes(name, "coloha.yaml") if "run" in p.argv]
        if not found:
            raise LabError(f"no daemon runs on {name}")
        return found[0]

    def qemu(self, name: str) -> Process | None:
        """A node's QEMU, if one runs."""
        found = self.processes(name, f"guest={PAIR}")
        return found[0] if found else None

    def command(self, name: str, verb: str, *arguments: str) -> str:
        """Run a verb of the `coloha` command on a host; return what it printed."""
        config = str(self.host_file(name))
        argv = [sys.executable, "-m", "coloha", verb, "--config", config, *arguments]
        return self.topology.hosts[name].call(argv, 30.0)

    def kill_daemon(self, name: str) -> None:
        """SIGKILL a node's daemon, and see it dead."""
        self.topology.hosts[name].signal(self.daemon(name).pid, signal.SIGKILL)
        self.daemons.pop(name).wait(10)

    def stop_daemon(self, name: str) -> None:
        """SIGTERM a node's daemon, and see it end well."""
        self.topology.hosts[name].signal(self.daemon(name).pid, signal.SIGTERM)
        if self.daemons.pop(name).wait(10) != 0:
            raise LabError(f"the daemon of {name} did not end well")

    def kill_qemu(self, name: str) -> float:
        """SIGKILL a node's QEMU; return when, monotonic seconds."""
        process = self.qemu(name)
        if process is None:
            raise LabError(f"no QEMU runs on {name}")
        now = time.monotonic()
        self.topology.hosts[name].signal(process.pid, signal.SIGKILL)
        return now

    # What there is to see

    def status(self, name: str) -> dict[str, Any]:
        """What `coloha status --json` says of the pair on a node; `{}` if no daemon answers."""
        try:
            client = ControlClient(self.topology.hosts[name].runtime / "control.sock")
            try:
                status = client.ask("status")["ok"]["pairs"][0]
            finally:
                client.close()
        except (ControlError, OSError):
            return {}
        assert isinstance(status, dict)
        return status

    def statuses(self) -> dict[str, dict[str, Any]]:
        """The status of every node."""
        return {name: self.status(name) for name in self.topology.hosts}

    def events(self, name: str) -> list[dict[str, Any]]:
        """All that a node's daemons told, oldest first, from their file."""
        path = self.topology.hosts[name].state / "events.jsonl"
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def phases(self) -> dict[str, str]:
        """The phase of every node."""
        return {name: status.get("phase", "-") for name, status in self.statuses().items()}

    def in_phase(self, phase: str) -> str | None:
        """The node in a phase, if there is one."""
        return next((name for name, now in self.phases().items() if now == phase), None)

    def protected(self) -> bool:
        """Whether both sides say so."""
        return set(self.phases().values()) == {"protected", "follow"}

    def wait(self, what: str, reached: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        """Return what `reached` returns once that is true.

        :raises LabError: with the nodes' last words, if it does not come true in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = reached()
            if found:
                return found
            if time.monotonic() > deadline:
                raise LabError(f"{what}: not within {timeout_s:g} s\n{self.report()}")
            time.sleep(0.02)

    def wait_protected(self, timeout_s: float = 30.0) -> str:
        """Wait until the VM is protected; return the primary."""
        self.wait("protection", self.protected, timeout_s)
        primary = self.in_phase("protected")
        return primary if primary is not None else self.wait_protected(timeout_s)

    def other(self, name: str) -> str:
        """The other node."""
        return next(host for host in self.topology.hosts if host != name)

    def report(self) -> str:
        """Each node's state and last words, and those of all its guests in the order in which they
        spoke last, for a test that failed.
        """
        lines = []
        for name, host in self.topology.hosts.items():
            lines.append(f"--- {name}: {self.status(name)}")
            consoles = host.runtime.glob("*/*/console.log")
            for log in (self.log_file(name), *sorted(consoles, key=lambda c: c.stat().st_mtime)):
                lines.append(f"-- {log.parent.name}/{log.name}")
                with contextlib.suppress(OSError):
                    lines += log.read_text(errors="replace").splitlines()[-200:]
        return "\n".join(lines)


def disk_image(host: Host, number: int) -> Path:
    """Return a host's image of one of the guest's disks."""
    return host.directory / f"disk{number}.img"


def _with_disks(topology: Topology, assets: Assets, count: int) -> dict[str, Any]:
    """Make the images; return what the pair files say of them."""
    for index, host in enumerate(topology.hosts.values()):
        for number in range(count):
            make_image(disk_image(host, number), formatted=index == 0)
    disks = [{"image": f"../disk{number}.img", "format": "raw"} for number in range(count)]
    return {"qemu_img": str(assets.qemu_img), "disks": disks} if count else {}
