"""A daemon is killed and comes back: the guest must not notice, whenever it happens."""

import random
from dataclasses import replace

import pytest

from lab.cluster import Timing
from tests.e2e.support import Scene, on_pair, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

FORGIVING = Timing(interval="200ms", misses=50, stall_timeout="10s", cold_start_after="30s")
"""The other node waits ten seconds: a daemon that restarts at once is back before."""


on_forgiving = on_pair("forgiving", timing=FORGIVING)
on_asyncio = on_pair("asyncio", timing=replace(FORGIVING, event_loop="asyncio"))
on_patient = on_pair("patient")


@on_forgiving
def test_primary_daemon_is_back_in_time(stage: Scene) -> None:
    primary_daemon_is_back_in_time(stage)


def primary_daemon_is_back_in_time(stage: Scene) -> None:
    primary, secondary = stage.begin()
    pid, generation = stage.qemu_pid(primary), stage.generation()
    for _ in range(5):
        stage.cluster.kill_daemon(primary)
        stage.cluster.start(primary)
        stage.cluster.wait("epochs", lambda: stage.cluster.status(primary).get("epochs", 0) > 5, 60)
        stage.answers_go_on()
    assert stage.wait_protected() == (primary, secondary)
    assert (stage.qemu_pid(primary), stage.generation()) == (pid, generation)
    assert stage.kinds(primary).count("adopted") == 5


@on_forgiving
def test_secondary_daemon_is_back_in_time(stage: Scene) -> None:
    primary, secondary = stage.begin()
    pid, generation = stage.qemu_pid(secondary), stage.generation()
    for _ in range(3):
        stage.cluster.kill_daemon(secondary)
        stage.cluster.start(secondary)
        stage.wait_protected()
        stage.answers_go_on()
    assert (stage.qemu_pid(secondary), stage.generation()) == (pid, generation)
    # What was adopted must be good for its purpose.
    stage.cluster.kill_qemu(primary)
    stage.wait_promoted(secondary)
    stage.answers_go_on()


@on_forgiving
def test_both_daemons_at_once(stage: Scene) -> None:
    primary, secondary = stage.begin()
    pids = [stage.qemu_pid(name) for name in (primary, secondary)]
    for name in (primary, secondary):
        stage.cluster.kill_daemon(name)
    wait(1.0)
    for name in (primary, secondary):
        stage.cluster.start(name)
    assert stage.wait_protected() == (primary, secondary)
    stage.answers_go_on(100)
    assert [stage.qemu_pid(name) for name in (primary, secondary)] == pids


@on_patient
def test_daemon_that_comes_back_too_late(stage: Scene) -> None:
    """The other node has taken over: the QEMU found running is of an older generation."""
    primary, secondary = stage.begin()
    pid = stage.qemu_pid(primary)
    stage.cluster.kill_daemon(primary)
    stage.wait_promoted(secondary)
    stage.answers_go_on()
    assert stage.qemu_pid(primary) == pid
    stage.cluster.start(primary)
    assert stage.wait_protected() == (secondary, primary)
    assert "overtaken" in stage.kinds(primary)
    assert stage.qemu_pid(primary) != pid


@on_patient
def test_daemon_of_a_lonely_vm(stage: Scene) -> None:
    primary, secondary = stage.begin()
    stage.topology.hosts[secondary].power_off()
    stage.cluster.wait("solo", lambda: stage.cluster.in_phase("solo"))
    pid = stage.qemu_pid(primary)
    for _ in range(3):
        stage.cluster.kill_daemon(primary)
        stage.answers_go_on()  # alone its output is open: no daemon is needed for it
        stage.cluster.start(primary)
        stage.cluster.wait("solo", lambda: stage.cluster.in_phase("solo"))
        assert stage.qemu_pid(primary) == pid
    stage.topology.hosts[secondary].power_on()
    stage.cluster.start(secondary)
    assert stage.wait_protected() == (primary, secondary)


@on_patient
def test_killed_at_any_time(stage: Scene) -> None:
    """Either daemon dies at random instants, in the middle of whatever it does, and comes back
    at once or late; in between a QEMU dies now and then. Never a wrong answer, never a new boot.
    """
    choose = random.Random(0)
    stage.begin()
    for _ in range(10):
        victim = choose.choice(list(stage.topology.hosts))
        wait(choose.choice([0.0, 0.05, 0.2, 0.5, 1.5]) * choose.random())
        stage.cluster.kill_daemon(victim)
        wait(choose.choice([0.0, 0.0, 0.1, 1.5]))
        stage.cluster.start(victim)
        stage.wait_for_daemon(victim)
        if choose.random() < 0.5:
            primary, _ = stage.wait_protected()
            stage.cluster.kill_qemu(primary)
    stage.wait_protected()
    stage.answers_go_on()


@on_asyncio
def test_primary_daemon_is_back_in_time_on_asyncio(stage: Scene) -> None:
    primary_daemon_is_back_in_time(stage)
