"""Hosts that are switched off before the other one speaks, on real QEMU with a Linux guest."""

import sys

import pytest

from lab.cluster import PAIR
from lab.power import PowerSwitch
from tests.e2e.support import Scene, on_pair, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


witnessed = on_pair("witness", fencing="required")
alone = on_pair("none", fencing="required", on_silence="hold")


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
    # What is decided is written down a little later.
    stage.cluster.wait(
        "the story", lambda: f"{primary}'s host was switched off" in story(stage, secondary)
    )


def story(stage: Scene, name: str) -> str:
    """What `coloha replay` tells of a node, on one line."""
    host = stage.topology.hosts[name]
    argv = [sys.executable, "-m", "coloha", "replay", str(host.state / "flight" / PAIR)]
    return " ".join(host.call(argv, 30.0).split())


def back_again(stage: Scene, primary: str, secondary: str) -> None:
    """The host comes back, and the VM is protected again by it."""
    stage.answers_go_on()
    stage.topology.hosts[primary].power_on()
    stage.cluster.start(primary)
    assert stage.wait_protected() == (secondary, primary)
    stage.answers_go_on()


@witnessed
def test_a_frozen_host_is_switched_off_before_the_other_speaks(stage: Scene) -> None:
    """Frozen, not dead: it could go on at any time, between a check and what it allowed."""
    a_frozen_host_is_switched_off(stage)


@witnessed
def test_an_agent_that_fails_makes_the_secondary_hold(stage: Scene) -> None:
    assert holds_while_the_agent_fails(stage) == "claim"


@alone
def test_without_a_witness_fencing_decides(stage: Scene) -> None:
    a_frozen_host_is_switched_off(stage)


@alone
def test_a_cut_link_without_a_witness_costs_one_host(stage: Scene) -> None:
    """Both live: the primary does not wait with the fencing, so it is the one that goes on."""
    primary, secondary = stage.begin()
    stage.topology.hosts[secondary].cut(clients=False)
    stage.cluster.wait("fencing", lambda: "fenced" in stage.kinds(primary))
    assert not stage.topology.hosts[secondary].alive
    assert "promoted" not in stage.kinds(secondary)
    stage.topology.hosts[secondary].mend()
    back_again(stage, secondary, primary)


@alone
def test_without_a_witness_an_agent_that_fails_makes_the_secondary_hold(stage: Scene) -> None:
    assert holds_while_the_agent_fails(stage) == "follow"


def a_frozen_host_is_switched_off(stage: Scene) -> None:
    primary, secondary = stage.begin()
    stage.topology.hosts[primary].freeze()
    fenced(stage, primary, secondary)
    back_again(stage, primary, secondary)


def holds_while_the_agent_fails(stage: Scene) -> str:
    """See that nobody speaks until the agent works; return the phase that the secondary held in."""
    primary, secondary = stage.begin()
    switch(stage).broken = True
    stage.topology.hosts[primary].freeze()
    stage.cluster.wait("a failure", lambda: "fence-failed" in stage.kinds(secondary))
    wait(2)
    phase = str(stage.cluster.status(secondary)["phase"])
    assert "promoted" not in stage.kinds(secondary)
    told = [e["text"] for e in stage.cluster.events(secondary) if e["kind"] == "fence-failed"]
    assert "the relay is stuck" in told[0]
    switch(stage).broken = False
    fenced(stage, primary, secondary)
    back_again(stage, primary, secondary)
    return phase
