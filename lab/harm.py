"""Does to a cluster what a fault says, and mends it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping

from lab.cluster import HEARTBEAT_PORT, PAIR, Cluster
from lab.faults import Fault, Kind, Target
from lab.namespace import LabError
from lab.topology import Host

Mend = Callable[[], None]
STOPPED = frozenset({Kind.QEMU_STOP, Kind.HOST_FREEZE})
"""Kinds that make processes stand still."""


def _nothing() -> None:
    """There is nothing to mend."""


class Harm:
    """Faults of one cluster. What is not there to be hurt (a host that is off) is left alone."""

    def __init__(self, cluster: Cluster, powered_on: Callable[[Host], None]) -> None:
        """`powered_on` is told of each host that has power again, before anything runs on it."""
        self._cluster, self._powered_on = cluster, powered_on
        self._hosts = cluster.topology.hosts
        self._hung: set[str] = set()
        self.stood_still: list[tuple[str, int, int]] = []
        """Whose processes were stopped, from when to when (ns of Unix time)."""

    def begin(self, fault: Fault, roles: Mapping[Target, str]) -> Mend:
        """Let a fault happen; return what ends it. `roles`: which node has which role."""
        names = list(roles.values()) if fault.target is Target.BOTH else [roles[fault.target]]
        act = self._act(fault.kind)
        mends = [act(self._hosts[name]) for name in names if self._hosts[name].alive]

        def mend() -> None:
            for each in mends:
                each()

        return mend

    def mend_all(self) -> None:
        """Make everything whole, whatever happened before."""
        for host in self._hosts.values():
            if not host.alive:
                self._power_on(host)
            host.thaw()
            host.mend()
            self._answer_witness(host)
            self._start_daemon(host)

    def _act(self, kind: Kind) -> Callable[[Host], Mend]:
        acts: dict[Kind, Callable[[Host], Mend]] = {
            Kind.QEMU_KILL: self._kill_qemu,
            Kind.BOTH_COPIES: self._kill_qemu,
            Kind.QEMU_STOP: self._stop_qemu,
            Kind.DAEMON_KILL: self._kill_daemon,
            Kind.HOST_FREEZE: self._freeze,
            Kind.HOST_KILL: self._power_off,
            Kind.HOST_CUT: self._cut,
            Kind.LINK: self._deafen,
            Kind.LINK_ONE_WAY: self._deafen,
            Kind.HEARTBEATS: self._lose_heartbeats,
            Kind.WITNESS_GONE: self._unmount_witness,
            Kind.WITNESS_HANGS: self._hang_witness,
        }
        return acts[kind]

    def _kill_qemu(self, host: Host) -> Mend:
        if self._cluster.qemu(host.name) is not None:
            with contextlib.suppress(ProcessLookupError):
                self._cluster.kill_qemu(host.name)
        return _nothing

    def _stop_qemu(self, host: Host) -> Mend:
        process, start_ns = self._cluster.qemu(host.name), time.time_ns()
        if process is None:
            return _nothing
        pid = process.pid

        def go_on() -> None:
            self._note(host, start_ns)
            with contextlib.suppress(LabError, ProcessLookupError):
                host.signal(pid, signal.SIGCONT)

        with contextlib.suppress(ProcessLookupError):
            host.signal(pid, signal.SIGSTOP)
        return go_on

    def _kill_daemon(self, host: Host) -> Mend:
        if not self._daemon_runs(host):
            return _nothing
        self._cluster.kill_daemon(host.name)
        return lambda: self._start_daemon(host)

    def _freeze(self, host: Host) -> Mend:
        start_ns = time.time_ns()
        host.freeze()

        def thaw() -> None:
            self._note(host, start_ns)
            host.thaw()

        return thaw

    def _note(self, host: Host, start_ns: int) -> None:
        self.stood_still.append((host.name, start_ns, time.time_ns()))

    def _power_off(self, host: Host) -> Mend:
        host.power_off()
        self._hung.discard(host.name)

        def power_on() -> None:
            self._power_on(host)
            self._start_daemon(host)

        return power_on

    def _power_on(self, host: Host) -> None:
        host.power_on()
        self._powered_on(host)

    def _cut(self, host: Host) -> Mend:
        host.cut()
        return host.mend

    def _deafen(self, host: Host) -> Mend:
        host.cut_one_way()
        return lambda: host.mend(clients=False, witness=False)

    def _lose_heartbeats(self, host: Host) -> Mend:
        host.cut_one_way(only=f"udp dport {HEARTBEAT_PORT}")
        return lambda: host.mend(clients=False, witness=False)

    def _unmount_witness(self, host: Host) -> Mend:
        host.cut(replication=False, clients=False)
        return lambda: host.mend(replication=False, clients=False)

    def _hang_witness(self, host: Host) -> Mend:
        pipe = host.directory / "witness.pipe"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(pipe)
        host.bind(pipe, host.witness / f"{PAIR}.json")
        self._hung.add(host.name)
        return lambda: self._answer_witness(host)

    def _answer_witness(self, host: Host) -> None:
        if host.name not in self._hung:
            return
        self._hung.remove(host.name)
        # A swap of the other node replaces the record, and what is mounted on it here goes too.
        with contextlib.suppress(OSError):
            host.unbind(host.witness / f"{PAIR}.json")
        # Whoever still waits for a writer gets an empty file.
        os.close(os.open(host.directory / "witness.pipe", os.O_RDWR | os.O_NONBLOCK))

    def _daemon_runs(self, host: Host) -> bool:
        try:
            self._cluster.daemon(host.name)
        except LabError:
            return False
        return True

    def _start_daemon(self, host: Host) -> None:
        if host.alive and not self._daemon_runs(host):
            self._cluster.start(host.name)
