"""Record failovers on real QEMU: what `tests/flight/test_real_record.py` replays.

    make record

Two hosts; the primary's QEMU is killed, then the new primary's host is cut off for some seconds.
Both hosts' flight records are written to tests/flight/records/, without paths of this machine. Do
this again whenever the core decides something differently, or its state has another form.
"""

import signal
import sys
import time

from coloha.flight.record import compressed, files, inflated, read
from coloha.flight.replay import Replay
from lab.assets import load_assets
from lab.cluster import PAIR, Cluster, Timing
from lab.namespace import CHECKOUT, LabError
from lab.privileges import become_privileged
from lab.topology import Host, Topology

RECORDS = CHECKOUT / "tests" / "flight" / "records"
CALM_S = 1.5
CUT_S = 3.0
TIMING = Timing(period="40ms", interval="50ms", misses=6)


def play(cluster: Cluster) -> None:
    """Live through both failovers, and end the daemons."""
    cluster.start_all()
    primary = cluster.wait_protected(60)
    time.sleep(CALM_S)
    cluster.kill_qemu(primary)
    primary = failed_over(cluster, primary)
    cluster.topology.hosts[primary].cut()
    time.sleep(CUT_S)
    cluster.topology.hosts[primary].mend()
    failed_over(cluster, primary)
    for name, host in cluster.topology.hosts.items():
        host.signal(cluster.daemon(name).pid, signal.SIGTERM)
        cluster.daemons.pop(name).wait(20)


def failed_over(cluster: Cluster, victim: str) -> str:
    """Wait until the other node has the VM, protected again, and some time more; return it."""
    survivor = cluster.other(victim)
    cluster.wait("a failover", lambda: cluster.in_phase("protected") == survivor)
    cluster.wait_protected()
    time.sleep(CALM_S)
    return survivor


def keep(host: Host, topology: Topology) -> None:
    """Write a host's record to the tests, once it is seen to replay."""
    lines = b""
    for path in files(host.state / "flight" / PAIR):
        lines += b"".join(inflated(path))
    lines = lines.replace(str(topology.directory).encode(), b"/lab")
    for word in (str(CHECKOUT), "/tmp"):
        if word.encode() in lines:
            raise LabError(f"the record of {host.name} holds {word}: it must not")
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{host.name}.jsonl.gz"
    path.write_bytes(compressed(lines))
    replay = Replay()
    for _ in replay.run(read(path)):
        pass
    print(f"{path.relative_to(CHECKOUT)}: {replay.steps} steps, {path.stat().st_size} bytes")


def main() -> int:
    """Record."""
    become_privileged()
    with Topology() as topology:
        cluster = Cluster(topology, load_assets(), TIMING)
        try:
            play(cluster)
            for host in topology.hosts.values():
                keep(host, topology)
        except LabError as error:
            print(f"record: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
