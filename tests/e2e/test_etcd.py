"""Failovers with the record in etcd, on real QEMU, three members and both hosts."""

from collections.abc import Iterator

import pytest

from tests.e2e.support import Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(in_etcd=True) as made:
        yield made
        made.finish()


def test_the_leader_dies_together_with_the_primarys_qemu(stage: Scene) -> None:
    """etcd elects a leader while the secondary asks it who may speak."""
    assert stage.etcd is not None
    primary, secondary = stage.wait_protected()
    before = stage.generation()
    leader = stage.etcd.leader()
    stage.etcd.kill(leader)
    stage.cluster.kill_qemu(primary)
    stage.answers_go_on()
    stage.wait_promoted(secondary)
    assert stage.wait_protected() == (secondary, primary)
    assert stage.generation() == before + 1
    stage.etcd.start(leader)
    stage.etcd.wait_ready()


def test_a_host_and_a_member_are_lost_at_once(stage: Scene) -> None:
    """As when one of three members runs on the host that dies."""
    assert stage.etcd is not None
    primary, secondary = stage.wait_protected()
    before = stage.generation()
    stage.etcd.freeze(0)
    stage.topology.hosts[primary].power_off()
    stage.answers_go_on()
    stage.topology.hosts[primary].power_on()
    stage.cluster.start(primary)
    assert stage.wait_protected() == (secondary, primary)
    assert stage.generation() == before + 1
    stage.etcd.thaw(0)
