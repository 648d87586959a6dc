"""Bring-up, and each way of losing a QEMU, a host or the link, on real QEMU with a Linux guest."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.e2e.support import PATIENT, Scene, scene, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def stage(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """One pair for the whole file: each test leaves it protected, as it must by itself."""
    together = request.param == "uvloop"
    with scene(replace(PATIENT, event_loop=request.param), together=together) as made:
        yield made
        made.finish()


def test_bring_up(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    cluster = stage.cluster
    cluster.wait("epochs", lambda: cluster.status(primary).get("epochs", 0) > 5)
    mine, theirs = cluster.status(primary), cluster.status(secondary)
    assert (mine["role"], mine["protected"], mine["why_not"]) == ("primary", True, None)
    assert (theirs["role"], theirs["protected"]) == ("secondary", True)
    assert mine["generation"] == theirs["generation"] == 1
    assert mine["last_pause_s"] > 0
    cluster.wait("loads", lambda: cluster.status(secondary)["loaded"] > 5)


def test_qemu_listens_on_no_network_port(stage: Scene) -> None:
    stage.wait_protected()
    for host in stage.topology.hosts.values():
        listening = {
            line.split()[3].rsplit(":", 1)[1]
            for line in host.call(["ss", "-Hltn"], 10).splitlines()
        }
        assert listening == {"7770", "9770"}
        datagrams = host.call(["ss", "-Hlun"], 10).splitlines()
        assert {line.split()[3].rsplit(":", 1)[1] for line in datagrams} == {"7771"}


def test_primary_qemu_is_killed(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    before = stage.generation()
    stage.cluster.kill_qemu(primary)
    stage.answers_go_on()
    assert stage.wait_protected() == (secondary, primary)
    assert stage.generation() == before + 1
    # From the other node, the monitor or the kernel: what it hears first is open.
    assert {"qemu-exited", "hung"} & {*stage.kinds(primary)}


def test_secondary_qemu_is_killed(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    stage.cluster.kill_qemu(secondary)
    stage.cluster.wait("unprotected", lambda: not stage.cluster.protected())
    stage.answers_go_on()
    assert stage.wait_protected() == (primary, secondary)


def test_primary_qemu_hangs(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    stage.freeze_qemu(primary)
    stage.wait_promoted(secondary)
    stage.answers_go_on()
    assert stage.wait_protected() == (secondary, primary)
    assert "hung" in stage.kinds(primary)


def test_secondary_qemu_hangs(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    before = stage.generation()
    stage.freeze_qemu(secondary)
    stage.cluster.wait("the next generation", lambda: stage.generation() > before)
    stage.answers_go_on()
    assert stage.wait_protected() == (primary, secondary)


def test_primary_host_loses_power(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    stage.topology.hosts[primary].power_off()
    stage.answers_go_on()
    stage.topology.hosts[primary].power_on()
    stage.cluster.start(primary)
    assert stage.wait_protected() == (secondary, primary)


def test_secondary_host_loses_power(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    stage.topology.hosts[secondary].power_off()
    stage.answers_go_on()
    stage.topology.hosts[secondary].power_on()
    stage.cluster.start(secondary)
    assert stage.wait_protected() == (primary, secondary)


def test_primary_host_is_cut_off(stage: Scene) -> None:
    """It lives on, alone with its QEMU and without a witness: it must hold its tongue."""
    primary, secondary = stage.wait_protected()
    stage.topology.hosts[primary].cut()
    stage.answers_go_on()
    cluster = stage.cluster
    cluster.wait("doubt", lambda: cluster.status(primary).get("witness_error"))
    cluster.wait("defence", lambda: cluster.status(primary).get("phase") == "defend")
    wait(1.0)
    assert cluster.status(primary)["phase"] == "defend"
    stage.topology.hosts[primary].mend()
    assert stage.wait_protected() == (secondary, primary)
    assert "overtaken" in stage.kinds(primary)


def test_link_is_cut_and_both_live(stage: Scene) -> None:
    """Both reach the witness: one of them wins, the other kills its QEMU."""
    primary, _ = stage.wait_protected()
    before = stage.generation()
    stage.topology.hosts[primary].cut(clients=False, witness=False)
    cluster = stage.cluster
    cluster.wait("one winner", lambda: sorted(cluster.phases().values()) == ["solo", "standby"])
    stage.answers_go_on()
    assert stage.generation() == before + 1
    stage.topology.hosts[primary].mend()
    stage.wait_protected()


def test_witness_alone_is_lost(stage: Scene) -> None:
    primary, secondary = stage.wait_protected()
    before = stage.generation()
    for host in stage.topology.hosts.values():
        host.cut(replication=False, clients=False)
    stage.answers_go_on(100)
    assert stage.cluster.in_phase("protected") == primary
    for host in stage.topology.hosts.values():
        host.mend()
    assert stage.wait_protected() == (primary, secondary)
    assert stage.generation() == before


def test_three_failovers_in_a_row(stage: Scene) -> None:
    before = stage.generation()
    for _ in range(3):
        primary, secondary = stage.wait_protected()
        stage.answers_go_on(5)
        stage.cluster.kill_qemu(primary)
        stage.wait_promoted(secondary)
    stage.wait_protected()
    assert stage.generation() == before + 3
