"""The benchmark: what a checkpoint costs, and how long a failover takes.

    make bench [ARGS="--failovers 30"]

Both parts run on the lab's hosts and guest. Absolute times say something about this machine only;
the ratio is measured within one run, with the two ways of bringing a pair up taking turns.

The pause of the documented way is mostly waiting for delayed acknowledgements, 40 ms each: one with
the frames of an Ethernet, two with those of a loopback interface, where QEMU's writes are not cut
up otherwise. So both are measured. The goal is for the loopback's: it comes from an experiment on
one.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from lab.assets import load_assets
from lab.client import start_client
from lab.cluster import Cluster, Timing
from lab.documented import documented_pauses
from lab.namespace import LabError
from lab.privileges import become_privileged
from lab.topology import GUEST_IP, Topology

PERIOD_MS = 150
GUEST_BOOTS_S = 4.0
ETHERNET, LOOPBACK = 1500, 65535
"""Sizes of the replication network's frames, bytes."""
GOAL_RATIO = 0.09
GOAL_FAILOVER_MS = 40.0


@dataclass(frozen=True, slots=True)
class Spread:
    """What a series of measurements looks like, in its own unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def row(self) -> Iterator[str]:
        """Number, minimum, median, 95th percentile, maximum."""
        ordered = sorted(self.values)
        yield str(len(ordered))
        for value in (ordered[0], self.median, ordered[int(len(ordered) * 0.95)], ordered[-1]):
            yield f"{value:.1f}"


def frames(topology: Topology, size: int) -> None:
    """Set the size of the replication network's frames, bytes."""
    for host in topology.hosts.values():
        host.ip(f"link set repl0 mtu {size}\n")
        topology.world.ip(f"link set {host.ports['replication']} mtu {size}\n")


@contextmanager
def running(timing: Timing, frame_size: int = ETHERNET) -> Iterator[Cluster]:
    """Run a protected pair with an idle guest."""
    with Topology() as topology:
        frames(topology, frame_size)
        cluster = Cluster(topology, load_assets(), timing)
        cluster.start_all()
        cluster.wait_protected(60)
        time.sleep(GUEST_BOOTS_S)
        yield cluster


def coloha_pauses(count: int, frame_size: int) -> list[float]:
    """Measure the guest's pause of `count` checkpoints of coloha, milliseconds."""
    with running(Timing(period=f"{PERIOD_MS}ms"), frame_size) as cluster:
        primary = cluster.wait_protected()
        pauses: list[float] = []
        seen = cluster.status(primary)["epochs"]
        while len(pauses) < count:
            time.sleep(PERIOD_MS / 1000 / 5)
            status = cluster.status(primary)
            if status["epochs"] > seen:
                seen = status["epochs"]
                pauses.append(status["last_pause_s"] * 1000)
        return pauses


@dataclass(frozen=True, slots=True)
class Pauses:
    """The guest's pauses, milliseconds, by the way it was brought up."""

    documented: Spread
    coloha: Spread

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.coloha.median / self.documented.median


def compare_pauses(rounds: int, count: int, frame_size: int) -> Pauses:
    """Measure both ways in turn."""
    documented: list[float] = []
    ours: list[float] = []
    for turn in range(rounds):
        what = f"pauses with {frame_size}-byte frames"
        print(f"{what}, round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        with Topology() as topology:
            frames(topology, frame_size)
            work = documented_pauses(topology, load_assets(), PERIOD_MS, count, GUEST_BOOTS_S)
            documented += asyncio.run(work)
        ours += coloha_pauses(count, frame_size)
    return Pauses(Spread(tuple(documented)), Spread(tuple(ours)))


@dataclass(frozen=True, slots=True)
class Failovers:
    """Times of failovers, milliseconds from the kill of the primary's QEMU."""

    noticed: Spread
    claimed: Spread
    promoted: Spread
    protected: Spread


def time_failovers(count: int) -> Failovers:
    """Kill the primary's QEMU `count` times, with a client at work."""
    columns: dict[str, list[float]] = {
        kind: [] for kind in ("qemu-exited", "claimed", "promoted", "protected")
    }
    with running(Timing(period="50ms")) as cluster:
        path = cluster.topology.directory / "client.jsonl"
        client = start_client(cluster.topology.client, f"{GUEST_IP}:7", path, "--think-ms", "5")
        client.wait_for_answers(10)
        for turn in range(count):
            primary = cluster.wait_protected(60)
            time.sleep(0.3 + 0.037 * (turn % 7))
            at_s = cluster.kill_qemu(primary)
            cluster.wait("promotion", lambda: _told(cluster, "promoted", at_s))  # noqa: B023
            cluster.wait_protected(60)
            for kind, column in columns.items():
                told = _told(cluster, kind, at_s)
                if told is not None:
                    column.append((told - at_s) * 1000)
            print(f"failover {turn + 1} of {count}", file=sys.stderr, flush=True)
        report = client.stop()
    if not report.flawless:
        raise LabError(f"the client had something to complain of: {report.wrong}")
    return Failovers(*(Spread(tuple(column)) for column in columns.values()))


def _told(cluster: Cluster, kind: str, since_s: float) -> float | None:
    """When a node first told `kind` after `since_s`."""
    times = [
        float(event["monotonic_s"])
        for name in cluster.topology.hosts
        for event in cluster.events(name)
        if event["kind"] == kind and event["monotonic_s"] > since_s
    ]
    return min(times, default=None)


def _table(title: str, unit: str, rows: dict[str, Spread]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("n", "min", "median", "p95", "max"):
        table.add_column(heading if heading == "n" else f"{heading} {unit}", justify="right")
    for name, spread in rows.items():
        table.add_row(name, *spread.row())
    return table


def main() -> int:
    """Measure, print, and say whether the goals were reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each bring-up (2)")
    parser.add_argument("--checkpoints", type=int, default=60, help="per turn (60)")
    parser.add_argument("--failovers", type=int, default=30, help="(30)")
    options = parser.parse_args()
    become_privileged()
    pauses = {
        size: compare_pauses(options.rounds, options.checkpoints, size)
        for size in (LOOPBACK, ETHERNET)
    }
    failovers = time_failovers(options.failovers)
    console = Console(width=100)
    for size, compared in pauses.items():
        rows = {
            "as QEMU's manual brings COLO up": compared.documented,
            "coloha, stop first": compared.coloha,
        }
        title = f"Pause per checkpoint, STOP to RESUME, {size}-byte frames"
        console.print(_table(title, "ms", rows))
        goal = f" (goal: {GOAL_RATIO} or less)" if size == LOOPBACK else ""
        console.print(f"ratio of the medians: {compared.ratio:.3f}{goal}\n")
    console.print(
        _table(
            "Failover, from SIGKILL to the primary's QEMU",
            "ms",
            {
                "noticed by its own node": failovers.noticed,
                "claimed by the other node": failovers.claimed,
                "promoted, output open": failovers.promoted,
                "protected again": failovers.protected,
            },
        )
    )
    median = failovers.promoted.median
    console.print(f"kill to promoted, median: {median:.1f} ms (goal: {GOAL_FAILOVER_MS:g} or less)")
    reached = pauses[LOOPBACK].ratio <= GOAL_RATIO and median <= GOAL_FAILOVER_MS
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
