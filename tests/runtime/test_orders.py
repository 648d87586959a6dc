"""What an operator is told before an order is carried out, and what is refused."""

import dataclasses

import pytest

from coloha.core.context import Fencing, Settings
from coloha.core.events import FailoverRequested
from coloha.core.machine import PairMachine
from coloha.core.phases import Phase
from coloha.core.snapshot import Snapshot
from coloha.errors import OrderError
from coloha.runtime.orders import failover_plan, stop_plan

BARE = PairMachine(Settings("vm", "alpha", "beta", first=True, incarnation=1), 0.0).snapshot()


def order(
    *, forced: bool = False, vouched: bool = False, gently: bool = False
) -> FailoverRequested:
    return FailoverRequested(forced, 4, vouched, gently)


def seen(phase: Phase, **more: object) -> Snapshot:
    known = {"generation": 4, "record": "solo(4, beta)", "committed_at": 9.98, "silent": False}
    known["peer_gone"] = False
    return dataclasses.replace(BARE, phase=phase, **{**known, **more})  # type: ignore[arg-type]


def test_a_failover_is_planned() -> None:
    plan = failover_plan(seen(Phase.PROTECTED), 10.0, order())
    assert "its last commit, 20 ms ago" in plan[0]
    assert "beta takes generation 5" in plan[1]


@pytest.mark.parametrize("silent", [True, False])
def test_a_paused_pair_can_be_failed_over_by_hand_when_the_primary_is_gone(silent: bool) -> None:
    """Silent, or heard to say that its QEMU died."""
    gone = seen(Phase.FOLLOW, paused=True, silent=silent, peer_gone=True)
    plan = failover_plan(gone, 10.0, order())
    assert "alpha takes generation 5" in plan[0]


def test_force_is_planned() -> None:
    for phase in (Phase.STANDBY, Phase.YIELDED):
        plan = failover_plan(seen(phase, silent=True), 10.0, order(forced=True))
        assert "beta IS POWERED OFF" in plan[0]
        assert "solo(5, alpha)" in plan[1]
        assert "boots the VM anew" in plan[2]


def test_force_has_the_other_host_switched_off_first() -> None:
    fenced = seen(Phase.STANDBY, silent=True, fencing=Fencing.OPTIONAL)
    assert "beta's host is switched off" in failover_plan(fenced, 10.0, order(forced=True))[0]
    vouched = failover_plan(fenced, 10.0, order(forced=True, vouched=True))
    assert "beta IS POWERED OFF" in vouched[0]


def test_without_a_witness_a_copy_can_be_forced() -> None:
    alone = seen(Phase.FOLLOW, silent=True, witnessed=False)
    assert "from the last commit" in failover_plan(alone, 10.0, order(forced=True))[2]
    alone = seen(Phase.DEFEND, silent=True, witnessed=False)
    assert "goes on alone" in failover_plan(alone, 10.0, order(forced=True))[2]


def test_a_winner_that_waits_for_fencing_can_be_forced() -> None:
    claims = seen(Phase.CLAIM, silent=True, fencing=Fencing.REQUIRED)
    plan = failover_plan(claims, 10.0, order(forced=True))
    assert not any("becomes" in step for step in plan)


@pytest.mark.parametrize(
    ("snapshot", "forced", "why"),
    [
        (seen(Phase.PROTECTED, paused=True, witnessed=False), False, "coloha resume first"),
        (seen(Phase.FOLLOW), False, "order it on beta"),
        (seen(Phase.FOLLOW, paused=True), False, "order it on beta"),
        (seen(Phase.YIELDED), False, "order it on beta"),
        (seen(Phase.SOLO, why_not="beta is silent"), False, "beta is silent"),
        (seen(Phase.STANDBY), True, "it lives"),
        (seen(Phase.SOLO, silent=True), True, "phase solo"),
        (seen(Phase.FOLLOW, silent=True), True, "phase follow"),
        (seen(Phase.STANDBY, silent=True, record="none"), True, "no record"),
    ],
)
def test_what_is_refused(snapshot: Snapshot, forced: bool, why: str) -> None:
    with pytest.raises(OrderError, match=why):
        failover_plan(snapshot, 10.0, order(forced=forced))


def test_a_switchover_is_planned() -> None:
    plan = failover_plan(seen(Phase.PROTECTED, paused=True), 10.0, order(gently=True))
    assert "one more commit" in plan[0]
    assert "beta takes generation 5" in plan[1]


@pytest.mark.parametrize("phase", [Phase.SOLO, Phase.FOLLOW, Phase.STANDBY])
def test_a_switchover_needs_a_protected_vm_here(phase: Phase) -> None:
    with pytest.raises(OrderError, match=f"phase {phase}"):
        failover_plan(seen(phase, paused=True, peer_gone=True), 10.0, order(gently=True))
    if phase is not Phase.SOLO:
        with pytest.raises(OrderError, match="beta has the VM: order it there"):
            failover_plan(seen(phase), 10.0, order(gently=True))


@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        (seen(Phase.OFF, role="primary"), "is off"),
        (seen(Phase.FOLLOW, role="secondary"), "order it on beta"),
        (seen(Phase.STANDBY), "beta has it: order it there"),
        (seen(Phase.STANDBY, record="none"), "phase standby"),
        (seen(Phase.BOOT, role="primary"), "phase boot"),
    ],
)
def test_a_vm_is_stopped_where_it_runs(snapshot: Snapshot, why: str) -> None:
    with pytest.raises(OrderError, match=why):
        stop_plan(snapshot)
    stop_plan(seen(Phase.SOLO, role="primary", run="p-1"))
