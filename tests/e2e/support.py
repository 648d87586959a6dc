"""A pair on two hosts, with a client that talks to the guest all the time."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from coloha.flight.record import files, is_next, read
from coloha.flight.replay import Replay
from lab.assets import load_assets
from lab.client import Report, RunningClient, start_client
from lab.cluster import PAIR, Cluster, Timing
from lab.etcd import EtcdCluster, etcd_between
from lab.power import PowerSwitch
from lab.strike import BOOT_S
from lab.topology import GUEST_IP, Topology

PATIENT = Timing(interval="100ms", misses=6, stall_timeout="3s")
"""For tests: a machine that is busy with other things must not look like a fault."""


@dataclass
class Scene:
    """What a test acts on."""

    topology: Topology
    cluster: Cluster
    client: RunningClient
    etcd: EtcdCluster | None = None
    """The witness, if it is not the folder."""
    power: PowerSwitch | None = None
    """What switches the hosts off, if they fence."""
    _told: dict[str, int] = field(default_factory=dict)
    """How many events of each node were told before this test."""

    def begin(self) -> tuple[str, str]:
        """Begin a test on a pair that others were on: like `wait_protected`, and `kinds` will have
        only what is told from now on.
        """
        names = self.wait_protected()
        self._told = {name: len(self.cluster.events(name)) for name in self.topology.hosts}
        return names

    def wait_protected(self, timeout_s: float = 40.0) -> tuple[str, str]:
        """Wait for protection; return primary and secondary."""
        primary = self.cluster.wait_protected(timeout_s)
        return primary, self.cluster.other(primary)

    def generation(self) -> int:
        """The highest generation that a node knows."""
        return max(int(s.get("generation", 0)) for s in self.cluster.statuses().values())

    def wait_promoted(self, name: str) -> None:
        """Wait until a node speaks for the VM."""
        self.cluster.wait("a failover", lambda: self.cluster.status(name).get("role") == "primary")

    def wait_for_daemon(self, name: str) -> None:
        """Wait until a node's daemon answers."""
        self.cluster.wait("an answer", lambda: self.cluster.status(name))

    def qemu_pid(self, name: str) -> int:
        """The process of a node's QEMU."""
        process = self.cluster.qemu(name)
        assert process is not None
        return process.pid

    def freeze_qemu(self, name: str) -> None:
        """SIGSTOP a node's QEMU."""
        self.topology.hosts[name].signal(self.qemu_pid(name), signal.SIGSTOP)

    def answers_go_on(self, count: int = 20, timeout_s: float = 60.0) -> None:
        """Wait for `count` further answers: a TCP that backs off may take its time."""
        self.client.wait_for_answers(self.answers() + count, timeout_s)

    def answers(self) -> int:
        """How many answers there were."""
        reports = self.client.reports()
        return reports[-1].answers if reports else 0

    def kinds(self, name: str) -> list[str]:
        """The kinds of events that a node told in this test, in order."""
        return [event["kind"] for event in self.cluster.events(name)[self._told.get(name, 0) :]]

    def lives(self) -> int:
        """How often the VM was booted, on all nodes."""
        told = [
            event["kind"] for name in self.topology.hosts for event in self.cluster.events(name)
        ]
        return told.count("started")

    def replay(self, name: str) -> Replay:
        """Repeat all that a node decided so far; it must decide the same, step by step."""
        replay = Replay()
        last: Path | None = None
        for path in files(self.topology.hosts[name].state / "flight" / PAIR):
            for _ in replay.run(read(path), follows=last is not None and is_next(last, path)):
                pass
            last = path
        return replay

    def finish(self) -> Report:
        """End the client; every answer must have been right, on one connection, from one life, and
        the flight records must tell how it was decided.
        """
        for name in self.topology.hosts:
            replay = self.replay(name)
            assert replay.steps > 20
            assert replay.gaps == 0
        report = self.client.stop()
        assert report.flawless, replace(report, gap_list=[])
        assert self.lives() == 1
        return report


@contextlib.contextmanager
def scene(
    timing: Timing | None = None,
    *,
    guest_words: str = "",
    program: list[str] | None = None,
    qemu: Path | None = None,
    vm: dict[str, Any] | None = None,
    disks: int = 0,
    in_etcd: bool = False,
    on_silence: str | None = None,
    fencing: str = "none",
    managed: bool = False,
    shared: bool = False,
    together: bool = False,
    settings: dict[str, Any] | None = None,
) -> Iterator[Scene]:
    """Bring a pair up from nothing until the client is answered.

    The second daemon comes when the guest has booted, since checkpoints slow that down under TCG;
    unless they start `together`, as they must without a witness.

    `shared`: there will be other clients. `on_silence` is for a pair without a witness. With
    `fencing` each host has the power switch of the other one. `managed`: the daemons are started by
    a service manager that keeps their sockets. `settings` go over the host files.
    """
    with contextlib.ExitStack() as stack:
        topology = stack.enter_context(Topology())
        assets, witness, etcd = load_assets(), None, None
        power = stack.enter_context(PowerSwitch(topology)) if fencing != "none" else None
        if in_etcd:
            etcd = stack.enter_context(etcd_between(topology, assets.etcd))
            witness = {"type": "etcd", "endpoints": etcd.endpoints, "timeout": "2s"}
        if on_silence is not None:
            witness = {"type": "none", "on_silence": on_silence}
        cluster = Cluster(
            topology,
            assets,
            timing or PATIENT,
            guest_words=guest_words,
            qemu=qemu,
            vm=vm,
            disks=disks,
            witness=witness,
            fencing=fencing,
            agent=power.agent if power is not None else None,
            settings=settings,
        )
        if program is not None:
            cluster.program = program
        if managed:
            stack.enter_context(cluster.manage())
        later = [] if together or on_silence is not None else list(topology.hosts)[1:]
        for name in topology.hosts:
            if name not in later:
                cluster.start(name)
        client = start_client(
            topology.client,
            f"{GUEST_IP}:7",
            topology.directory / "client.jsonl",
            *("--think-ms", "2", "--connect-s", str(BOOT_S)),
            *(("--shared",) if shared else ()),
        )
        try:
            client.wait_for_answers(10, BOOT_S)
            for name in later:
                cluster.start(name)
            cluster.wait_protected(60)
            yield Scene(topology, cluster, client, etcd, power)
        except BaseException:
            print(cluster.report())
            for report in client.reports()[-1:]:
                print("client:", replace(report, gap_list=report.gap_list[-20:]))
            raise


def on_pair(name: str, **words: Any) -> pytest.MarkDecorator:
    """For tests of one file that share a pair, `stage`; `words` are what `scene` takes."""
    return pytest.mark.parametrize("stage", [pytest.param(words, id=name)], indirect=True)


def wait(seconds: float) -> None:
    """Let the pair live."""
    time.sleep(seconds)
