"""Hosts that are switched off before the other one speaks, on real QEMU with a Linux guest."""

import sys

import pytest

from lab.cluster import PAIR
from lab.power import PowerSwitch
from tests.e2e.support import Scene, scene, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


def switch(stage: Scene) -> PowerSwitch:
    assert stage.power is not None
    return stage.power


def fenced(stage: Scene, primary: str, secondary: str) -> None:
    """The secondary had the primary's host switched off, and speaks since then only."""
    stage.cluster.wait("a promotion", lambda: "promoted" in stage.kinds(secondary))
    assert not stage.topology.hosts[primary].alive
    kinds = stage.kinds(secondary)
    assert kinds.index("fencing") < kinds.index("fenced") < kinds.index("promoted")
    assert "fenced" not in stage.kinds(primary)
    record = stage.topology.hosts[secondary].state / "flight" / PAIR
    argv = [sys.executable, "-m", "coloha", "replay", str(record)]
    words = stage.topology.hosts[secondary].call(argv, 30.0)
    assert f"{primary}'s host was switched off" in " ".join(words.split())


def back_again(stage: Scene, primary: str, secondary: str) -> None:
    """The host comes back, and the VM is protected again by it."""
    stage.answers_go_on()
    stage.topology.hosts[primary].power_on()
    stage.cluster.start(primary)
    assert stage.wait_protected() == (secondary, primary)
    stage.answers_go_on()
    stage.finish()


def test_a_frozen_host_is_switched_off_before_the_other_speaks() -> None:
    """Frozen, not dead: it could go on at any time, between a check and what it allowed."""
    with scene(fencing="required") as stage:
        primary, secondary = stage.wait_protected()
        stage.topology.hosts[primary].freeze()
        fenced(stage, primary, secondary)
        back_again(stage, primary, secondary)


def test_without_a_witness_fencing_decides() -> None:
    with scene(on_silence="hold", fencing="required") as stage:
        primary, secondary = stage.wait_protected()
        stage.topology.hosts[primary].freeze()
        fenced(stage, primary, secondary)
        back_again(stage, primary, secondary)


def test_a_cut_link_without_a_witness_costs_one_host() -> None:
    """Both live: the primary does not wait with the fencing, so it is the one that goes on."""
    with scene(on_silence="hold", fencing="required") as stage:
        primary, secondary = stage.wait_protected()
        stage.topology.hosts[secondary].cut(clients=False)
        stage.cluster.wait("fencing", lambda: "fenced" in stage.kinds(primary))
        assert not stage.topology.hosts[secondary].alive
        assert "promoted" not in stage.kinds(secondary)
        stage.topology.hosts[secondary].mend()
        back_again(stage, secondary, primary)


@pytest.mark.parametrize("on_silence", [None, "hold"], ids=["witness", "none"])
def test_an_agent_that_fails_makes_the_secondary_hold(on_silence: str | None) -> None:
    with scene(on_silence=on_silence, fencing="required") as stage:
        primary, secondary = stage.wait_protected()
        switch(stage).broken = True
        stage.topology.hosts[primary].freeze()
        stage.cluster.wait("a failure", lambda: "fence-failed" in stage.kinds(secondary))
        wait(2)
        assert stage.cluster.status(secondary)["phase"] == ("follow" if on_silence else "claim")
        assert "promoted" not in stage.kinds(secondary)
        told = [e["text"] for e in stage.cluster.events(secondary) if e["kind"] == "fence-failed"]
        assert "the relay is stuck" in told[0]
        switch(stage).broken = False
        fenced(stage, primary, secondary)
        back_again(stage, primary, secondary)
