"""Chaos, shortly: a few random faults on real QEMU; and two voices, which must be heard as such."""

import shutil
import time
from pathlib import Path

import pytest

from lab import chaos
from lab.faults import plan
from lab.listener import Listener
from lab.topology import Topology
from lab.voices import Verdict
from tests.e2e.support import Scene, scene

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
    with scene(guest_words="beacon=10000") as stage:
        primary, _ = stage.wait_protected()
        listener = Listener(stage.topology)
        listener.start()
        listener.judge()
        divide_the_witness(stage.topology, primary)
        stage.topology.hosts[primary].cut(clients=False, witness=False)
        both_speak(stage)
        time.sleep(0.5)
        listener.stop()
    assert listener.voices.counts[Verdict.RIGHT] > 0
    assert listener.voices.counts[Verdict.SECOND] > 0
    assert "generation" in listener.voices.examples[0]


def both_speak(stage: Scene) -> None:
    def phases() -> bool:
        return list(stage.cluster.phases().values()) == ["solo", "solo"]

    stage.cluster.wait("two primaries", phases)
