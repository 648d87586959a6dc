"""A pair without a witness (R7), on real QEMU."""

import pytest

from lab.cluster import PAIR
from tests.e2e.support import Scene, on_pair, scene, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


holding = on_pair("hold", on_silence="hold")


def _cut(stage: Scene, name: str) -> None:
    """Pull the cable between the hosts; clients still reach both."""
    stage.topology.hosts[name].cut(clients=False, witness=False)


@holding
def test_both_hold_until_they_hear_each_other(stage: Scene) -> None:
    primary, secondary = stage.begin()
    stage.cluster.kill_qemu(primary)  # what is said durably needs no witness
    stage.answers_go_on()
    assert stage.wait_protected() == (secondary, primary)
    # From the other node, the monitor or the kernel: what it hears first is open.
    assert {"qemu-exited", "hung"} & {*stage.kinds(primary)}

    primary, secondary, before = secondary, primary, stage.generation()
    _cut(stage, primary)
    stage.cluster.wait("held", lambda: stage.cluster.status(primary)["phase"] == "defend")
    wait(1.0)
    answers = stage.answers()
    wait(3.0)
    assert stage.answers() == answers
    assert stage.cluster.phases() == {primary: "defend", secondary: "follow"}
    assert "coloha failover --force" in stage.cluster.status(secondary)["waits_for"]
    stage.topology.hosts[primary].mend()
    stage.answers_go_on()
    stage.wait_protected()
    assert stage.generation() <= before + 1


@holding
def test_a_host_that_starts_alone_asks_first(stage: Scene) -> None:
    """The other one was given the VM by an operator meanwhile, and the link is still cut."""
    primary, secondary = stage.begin()
    _cut(stage, primary)
    stage.cluster.wait("held", lambda: stage.cluster.status(primary)["phase"] == "defend")
    stage.topology.hosts[primary].power_off()
    stage.cluster.command(secondary, "failover", PAIR, "--force", "--yes")
    stage.wait_promoted(secondary)
    stage.answers_go_on()
    stage.topology.hosts[primary].power_on()
    stage.cluster.start(primary)
    stage.cluster.wait("it asks", lambda: stage.cluster.status(primary).get("phase") == "yielded")
    stage.topology.hosts[primary].mend()
    assert stage.wait_protected() == (secondary, primary)


def test_the_primary_goes_on_alone() -> None:
    with scene(on_silence="primary") as stage:
        primary, secondary = stage.wait_protected()
        before = stage.generation()
        stage.topology.hosts[secondary].cut()
        stage.answers_go_on()
        assert stage.generation() == before + 1
        assert stage.cluster.status(secondary)["phase"] == "follow"
        stage.topology.hosts[secondary].mend()
        assert stage.wait_protected() == (primary, secondary)
        stage.finish()
