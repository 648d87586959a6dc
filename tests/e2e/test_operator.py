"""What an operator does: restarts, pauses, failovers by hand; and what happens when nobody does."""

import os
from dataclasses import replace

import pytest

from lab.cluster import PAIR
from lab.namespace import LabError
from tests.e2e.support import PATIENT, Scene, on_pair, scene, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

RESTARTS = int(os.environ.get("COLOHA_RESTARTS", "5"))
MANAGED_RESTARTS = 6

together = on_pair("pair", timing=replace(PATIENT, orphan_after="10s"))


def test_a_daemon_is_restarted_again_and_again() -> None:
    """Planned and by SIGKILL, on either node, with a detection time that none would survive."""
    timing = replace(PATIENT, restart_hold="20s", stall_timeout="10s")
    with scene(timing) as stage:
        primary, secondary = stage.wait_protected()
        pids = {name: stage.qemu_pid(name) for name in (primary, secondary)}
        generation = stage.generation()
        for turn in range(RESTARTS):
            name = (primary, primary, secondary)[turn % 3]
            if turn % 2:
                stage.cluster.kill_daemon(name)
            else:
                stage.cluster.stop_daemon(name)
            if turn % 7 == 6:
                wait(1.5)  # longer than a silence takes to count
            stage.cluster.start(name)
            stage.wait_for_daemon(name)
            assert stage.wait_protected() == (primary, secondary)
            stage.answers_go_on()
        assert {name: stage.qemu_pid(name) for name in pids} == pids
        assert stage.generation() == generation
        for name in (primary, secondary):
            assert not {"unprotected", "claimed", "yielded"} & set(stage.kinds(name))
        holds = [e["text"] for e in stage.cluster.events(secondary) if e["kind"] == "hold"]
        assert any("daemon restarts" in text for text in holds), "no word of a planned restart"
        assert any("its daemon does not" in text for text in holds), "no answer of the host"
        report = stage.finish()
        print(f"{RESTARTS} restarts, longest gap {report.longest_gap_ms:.0f} ms")


def test_a_planned_restart_under_a_service_manager() -> None:
    """It keeps the daemon's sockets: no host answers that nobody listens. No epoch is cut short."""
    timing = replace(PATIENT, restart_hold="20s", stall_timeout="10s")
    with scene(timing, managed=True) as stage:
        primary, secondary = stage.wait_protected()
        pids = {name: stage.qemu_pid(name) for name in (primary, secondary)}
        generation = stage.generation()
        before = {name: len(stage.cluster.events(name)) for name in pids}
        for turn in range(MANAGED_RESTARTS):
            name = (primary, secondary)[turn % 2]
            stage.cluster.stop_daemon(name)
            last = stage.replay(name)._after
            assert last is not None
            assert not last.busy, "an epoch, or its release, was cut short"
            kept = {kept for kept, _ in stage.cluster.managers[name].store}
            assert kept == {"heartbeat", "channel", "control", "metrics"}
            wait(1.5)  # longer than a silence takes to count
            stage.cluster.start(name)
            stage.wait_for_daemon(name)
            assert stage.wait_protected() == (primary, secondary)
            stage.answers_go_on()
        assert {name: stage.qemu_pid(name) for name in pids} == pids
        assert stage.generation() == generation
        for name in (primary, secondary):
            told = stage.cluster.events(name)[before[name] :]
            assert not {"unprotected", "claimed", "yielded"} & {event["kind"] for event in told}
            holds = [event["text"] for event in told if event["kind"] == "hold"]
            assert any("daemon restarts" in text for text in holds)
            refused = [text for text in holds if "its daemon does not" in text]
            assert not refused, "a host answered that nobody listens"
        stage.finish()


def test_an_operator_takes_the_vm_from_a_dead_host() -> None:
    with scene() as stage:
        primary, secondary = stage.wait_protected()
        _to_solo_and_dead(stage, primary, secondary)
        generation = stage.generation()
        stage.cluster.wait("silence", lambda: _forced(stage, secondary))
        stage.cluster.wait("the VM", lambda: stage.cluster.status(secondary)["phase"] == "solo")
        assert stage.generation() == generation + 1
        stage.topology.hosts[primary].power_on()
        stage.cluster.start(primary)
        assert stage.wait_protected() == (secondary, primary)
        assert stage.lives() == 2


def _to_solo_and_dead(stage: Scene, primary: str, secondary: str) -> None:
    """Leave the VM without a secondary, then let its host lose power."""
    stage.cluster.kill_daemon(secondary)
    stage.cluster.kill_qemu(secondary)
    stage.cluster.wait("solo", lambda: stage.cluster.in_phase("solo"))
    stage.topology.hosts[primary].power_off()
    stage.cluster.start(secondary)
    stage.cluster.wait("standby", lambda: stage.cluster.in_phase("standby"))


def _forced(stage: Scene, name: str) -> bool:
    try:
        stage.cluster.command(name, "failover", PAIR, "--force", "--yes")
    except LabError as error:
        if "it lives" not in str(error):
            raise
        return False
    return True


@together
def test_no_failover_while_paused(stage: Scene) -> None:
    primary, secondary = stage.begin()
    stage.cluster.command(secondary, "pause", PAIR)
    stage.cluster.wait("the pause", lambda: stage.cluster.status(primary)["paused"])
    stage.cluster.kill_qemu(primary)
    wait(2.0)
    assert stage.cluster.status(secondary)["phase"] == "follow"
    assert "paused" in stage.kinds(primary)
    # The pause outlives the daemon.
    stage.cluster.kill_daemon(secondary)
    stage.cluster.start(secondary)
    stage.wait_for_daemon(secondary)
    wait(1.5)
    assert stage.cluster.status(secondary)["phase"] == "follow"
    with pytest.raises(LabError, match=f"order it on {secondary}"):
        stage.cluster.command(primary, "failover", PAIR, "--yes")
    stage.cluster.command(secondary, "failover", PAIR, "--yes")
    stage.wait_promoted(secondary)
    stage.cluster.command(primary, "resume", PAIR)
    assert stage.wait_protected() == (secondary, primary)
    stage.answers_go_on()


@together
def test_no_orphan_speaks(stage: Scene) -> None:
    """Both daemons stay away. The primary's QEMU holds output: its guard kills it. The secondary's
    is left alone: it has what clients know, and goes on when its daemon is back.
    """
    primary, secondary = stage.begin()
    pid = stage.qemu_pid(secondary)
    wait(12.0)  # a QEMU that is looked after may hold output for ever
    assert stage.wait_protected() == (primary, secondary)
    for name in (primary, secondary):
        stage.cluster.kill_daemon(name)
    assert stage.cluster.qemu(primary) is not None
    stage.cluster.wait("the guard", lambda: stage.cluster.qemu(primary) is None)
    assert stage.qemu_pid(secondary) == pid
    for name in (primary, secondary):
        stage.cluster.start(name)
    stage.wait_promoted(secondary)
    assert stage.wait_protected() == (secondary, primary)
    stage.answers_go_on()
