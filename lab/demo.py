"""The demo: one VM on two hosts loses its host, twice, while a client keeps talking to it.

    make demo [ARGS=--no-tty]

Exit status 0 only if the VM is protected at the end and not one answer was wrong.
"""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lab.assets import load_assets
from lab.client import Report, start_client
from lab.cluster import Cluster, Timing
from lab.namespace import LabError
from lab.observer import Happening, Observer
from lab.privileges import become_privileged
from lab.topology import GUEST_IP, Host, Topology
from lab.view import draw, line

CALM_S = 5.0
CUT_S = 4.0
TIMING = Timing(period="40ms", interval="50ms", misses=6)


@dataclass(frozen=True, slots=True)
class Failover:
    """A failover as it was measured; times in milliseconds."""

    fault: str
    detection_ms: float
    """From the fault to the survivor's claim being granted."""
    promotion_ms: float
    """From there until the guest ran on the survivor, its output open."""
    gap_ms: float
    """The longest time that the client waited around then."""
    unprotected_s: float
    """From the fault to the VM being protected again."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done, when, and who survived it."""

    name: str
    at_s: float
    survivor: str
    protected_s: float


class Demo:
    """The acts, one after another."""

    def __init__(self, topology: Topology, cluster: Cluster, observer: Observer) -> None:
        self.topology = topology
        self.cluster = cluster
        self.observer = observer
        self.act = "bringing the pair up"
        self.faults: list[Fault] = []

    def begin(self, act: str) -> None:
        """Announce an act."""
        self.act = act
        self.observer.note(Happening(time.monotonic(), "", "act", act, "act"))

    def play(self) -> Report:
        """Play all acts and return what the client has to say."""
        self.begin("two hosts, from nothing: start the VM, copy it, hold its output, checkpoint")
        self.cluster.start_all()
        self.cluster.wait_protected(60)
        client = start_client(
            self.topology.client,
            f"{GUEST_IP}:7",
            self.topology.directory / "client.jsonl",
            *("--think-ms", "5"),
        )
        self.observer.watch(client)
        client.wait_for_answers(10, 60)
        self.begin("protected: every answer waits until the other host holds the state behind it")
        time.sleep(CALM_S)
        self._kill_qemu()
        self._cut_host_off()
        return client.stop()

    def _kill_qemu(self) -> None:
        primary = self.cluster.wait_protected()
        self.begin(f"SIGKILL to the VM's QEMU on {primary}")
        self._after("QEMU killed", self.cluster.kill_qemu(primary), primary)

    def _cut_host_off(self) -> None:
        primary = self.cluster.wait_protected()
        host = self.topology.hosts[primary]
        self.begin(
            f"{primary} is cut off: no link, no clients, no witness; its VM runs on, unheard"
        )
        cut_at = time.monotonic()
        host.cut()
        mend = threading.Timer(CUT_S, self._mend, [host])
        mend.start()
        try:
            self._after("host cut off", cut_at, primary)
        finally:
            mend.join()

    def _mend(self, host: Host) -> None:
        self.begin(f"{host.name} is back")
        host.mend()

    def _after(self, name: str, at_s: float, victim: str) -> None:
        """Wait until the other node has the VM and it is protected again."""
        survivor = self.cluster.other(victim)
        self.cluster.wait("promotion", lambda: self._promoted(survivor, at_s), 30)
        protected_by = self.cluster.wait_protected(40)
        protected_s = time.monotonic() - at_s
        if protected_by != survivor:
            raise LabError(f"{protected_by} has the VM, not {survivor}")
        self.faults.append(Fault(name, at_s, survivor, protected_s))
        self.begin(f"protected again, {survivor} has the VM and {victim} follows")
        time.sleep(CALM_S)

    def _promoted(self, survivor: str, since_s: float) -> bool:
        return any(
            event["kind"] == "promoted" and event["monotonic_s"] > since_s
            for event in self.cluster.events(survivor)
        )

    def failovers(self, report: Report) -> list[Failover]:
        """Return what each fault cost."""
        return [self._measure(fault, report) for fault in self.faults]

    def _measure(self, fault: Fault, report: Report) -> Failover:
        def first(kind: str) -> float:
            return next(
                float(event["monotonic_s"])
                for event in self.cluster.events(fault.survivor)
                if event["kind"] == kind and event["monotonic_s"] > fault.at_s
            )

        claimed, promoted = first("claimed"), first("promoted")
        gaps = [
            gap["length_ms"]
            for gap in report.gap_list
            if gap["start_monotonic"] + gap["length_ms"] / 1000 > fault.at_s
            and gap["start_monotonic"] < fault.at_s + CUT_S
        ]
        return Failover(
            fault.name,
            (claimed - fault.at_s) * 1000,
            (promoted - claimed) * 1000,
            max(gaps, default=0.0),
            fault.protected_s,
        )


def costs(failovers: list[Failover]) -> Table:
    """Make the table of the end."""
    table = Table(title="What it cost", title_justify="left")
    for heading in ("failover", "detection", "promotion", "client gap", "protected again after"):
        table.add_column(heading, justify="left" if heading == "failover" else "right")
    for each in failovers:
        table.add_row(
            each.fault,
            f"{each.detection_ms:.0f} ms",
            f"{each.promotion_ms:.0f} ms",
            f"{each.gap_ms:.0f} ms",
            f"{each.unprotected_s:.1f} s",
        )
    return table


def verdict(report: Report) -> str:
    """Say what the client has to say."""
    wrong = report.wrong
    return (
        f"{report.answers} answers on {report.connections} TCP connection: "
        f"{wrong['lost'] + report.unanswered} lost, {wrong['repeated']} repeated, "
        f"{wrong['reversed']} reversed, {wrong['skipped'] + wrong['corrupt']} otherwise wrong"
    )


@contextlib.contextmanager
def shown(demo: Demo, console: Console, *, live: bool) -> Iterator[None]:
    """Show what happens meanwhile: a live view, or lines."""
    start_s = time.monotonic()
    stop = threading.Event()
    shown_lines: set[Happening] = set()

    def show_lines() -> None:
        for happening in demo.observer.picture().happenings:
            if happening not in shown_lines:
                shown_lines.add(happening)
                print(line(happening, start_s), flush=True)

    def paint() -> None:
        if not live:
            while not stop.wait(0.1):
                show_lines()
            show_lines()
            return
        with Live(console=console, refresh_per_second=10, transient=False) as display:
            while not stop.wait(0.1):
                display.update(draw(demo.observer.picture(), demo.act, start_s))

    painter = threading.Thread(target=paint, daemon=True)
    painter.start()
    try:
        yield
    finally:
        stop.set()
        painter.join()


def run(*, live: bool) -> int:
    """Play the demo; return the exit status."""
    console = Console()
    began = time.monotonic()
    with Topology() as topology:
        cluster = Cluster(topology, load_assets(), TIMING)
        observer = Observer(cluster)
        observer.start()
        demo = Demo(topology, cluster, observer)
        try:
            with shown(demo, console, live=live):
                report = demo.play()
        finally:
            observer.stop()
        console.print()
        console.print(costs(demo.failovers(report)))
        print(f"\n{verdict(report)}")
        protected = cluster.protected()
    good = protected and report.flawless
    end = "protected, and not one answer was wrong" if good else "THIS WENT WRONG"
    print(f"{end} ({time.monotonic() - began:.0f} s)")
    return 0 if good else 1


def main() -> int:
    """Parse the command line and play."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--no-tty", action="store_true", help="print lines instead of a live view")
    options = parser.parse_args()
    become_privileged()
    try:
        return run(live=not options.no_tty and sys.stdout.isatty())
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
