"""Chaos, shortly: a few random faults on real QEMU; and two voices, which must be heard as such."""

import shutil
import time
from pathlib import Path

import pytest

from lab import chaos
from lab.assets import load_assets
from lab.cluster import Cluster
from lab.faults import plan
from lab.strike import GUEST_WORDS, TIMING, Striker
from lab.topology import Topology
from lab.voices import Verdict

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

SEED, COUNT = 17870, 7
"""A plan of faults that are over soon: `make chaos` has the time for longer ones."""


def test_chaos(tmp_path: Path) -> None:
    outcome = chaos.run(SEED, plan(SEED, COUNT), directory=tmp_path / "chaos")
    assert outcome.good, "see what it printed"
    assert len({result.blow.kind for result in outcome.results}) == COUNT
    assert sum(result.failovers for result in outcome.results) > 0


def divide_the_witness(topology: Topology, name: str) -> None:
    """Give one host a witness of its own, that says what the other's said up to now."""
    host = topology.hosts[name]
    own = topology.directory / "own-witness"
    shutil.copytree(topology.witness, own)
    host.unbind(host.witness)
    host.bind(own, host.witness)


def test_two_voices_are_heard() -> None:
    """Without one witness both hosts win when the link is cut: the listener must notice."""
    with Topology() as topology:
        cluster = Cluster(topology, load_assets(), TIMING, guest_words=GUEST_WORDS)
        striker = Striker(topology, cluster, print)
        striker.bring_up()
        primary = cluster.wait_protected()
        divide_the_witness(topology, primary)
        topology.hosts[primary].cut(clients=False, witness=False)
        cluster.wait("two primaries", lambda: set(cluster.phases().values()) == {"solo"})
        time.sleep(0.5)
        striker.listener.stop()
    voices = striker.listener.voices
    assert voices.counts[Verdict.RIGHT] > 0
    assert voices.counts[Verdict.SECOND] > 0
    assert "generation" in voices.examples[0]
