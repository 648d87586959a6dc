"""What an operator may order, what it would do, and why it is refused: as sentences, first."""

from coloha.core.context import Fencing
from coloha.core.events import FailoverRequested
from coloha.core.phases import Phase
from coloha.core.snapshot import Snapshot
from coloha.errors import OrderError


def failover_plan(s: Snapshot, now: float, order: FailoverRequested) -> list[str]:
    """Return what an order to fail over would do now, step by step.

    :raises OrderError: if it would not be done, with the reason and what to do instead.
    """
    return _forced(s, vouched=order.vouched) if order.forced else _handed_over(s, now, order)


def stop_plan(s: Snapshot) -> None:
    """See that this node can stop the VM.

    :raises OrderError: if it cannot, with the reason and what to do instead.
    """
    if s.phase is Phase.OFF:
        raise OrderError("the VM is off")
    if s.role == "secondary":
        raise OrderError(f"{s.node} follows: order it on {s.peer}, which runs the VM")
    if s.phase is Phase.STANDBY and s.record != "none":
        raise OrderError(f"{s.node} does not run the VM, {s.peer} has it: order it there")
    if s.role != "primary" or s.run is None:
        raise OrderError(f"{s.node} does not run the VM, it is in phase {s.phase}")


def _handed_over(s: Snapshot, now: float, order: FailoverRequested) -> list[str]:
    peer = s.peer
    if s.phase is Phase.PROTECTED and (s.witnessed or not s.paused):
        age = "" if s.committed_at is None else f", {(now - s.committed_at) * 1000:.0f} ms ago"
        first = (
            f"{s.node} kills its QEMU. The guest loses what it did since its last commit{age};"
            " clients have seen nothing newer"
        )
        if order.gently:
            first = f"{s.node} makes one more commit, lets its output go, and stops"
        return [
            first,
            f"{peer} takes generation {s.generation + 1} and runs the VM from that commit",
            f"{s.node} becomes the secondary, with a full copy of the VM; until then the VM is not"
            " protected",
        ]
    if order.gently and s.phase in (Phase.FOLLOW, Phase.STANDBY) and s.record != "none":
        raise OrderError(f"{s.node} is in phase {s.phase}, {s.peer} has the VM: order it there")
    if order.gently:
        raise OrderError(
            f"only a protected VM can change over, and only the node that runs it can be told;"
            f" {s.node} is in phase {s.phase}" + (f" ({s.why_not})" if s.why_not else "")
        )
    if s.phase is Phase.FOLLOW and s.paused and s.peer_gone:
        agrees = ", if the witness agrees" if s.witnessed else ""
        return [
            f"{s.node} takes generation {s.generation + 1}{agrees}, and runs the VM from the last"
            " commit",
            f"failover stays paused; {peer}, when it is back, kills its QEMU and follows",
        ]
    if s.phase is Phase.PROTECTED:
        raise OrderError(f"failover is paused, {peer} would not take over: coloha resume first")
    if s.phase is Phase.YIELDED:
        raise OrderError(f"{s.node} has no copy any more: order it on {peer}")
    if s.phase is Phase.FOLLOW:
        raise OrderError(f"{s.node} follows: order it on {peer}, which runs the VM")
    raise OrderError(
        f"nobody could take over from {s.node}, which is in phase {s.phase}"
        f" ({s.why_not}); see coloha failover --force for a node that is dead for good"
    )


_BOOTS = "boots the VM anew: what it had in memory is lost"
_FORCED = {
    Phase.STANDBY: _BOOTS,
    Phase.YIELDED: _BOOTS,
}
_FORCED_UNWITNESSED = _FORCED | {
    Phase.BOOT: "boots the VM",
    Phase.FOLLOW: "runs the VM from the last commit that it has",
    Phase.DEFEND: "goes on alone, and its clients hear it again",
}


def _forced(s: Snapshot, *, vouched: bool) -> list[str]:
    peer, waits = s.peer, s.fencing is not Fencing.NONE
    phases = _FORCED if s.witnessed else _FORCED_UNWITNESSED
    if waits and s.witnessed:
        phases = phases | {Phase.CLAIM: _FORCED_UNWITNESSED[Phase.FOLLOW]}
    if s.phase not in phases:
        raise OrderError(
            f"{s.node} is in phase {s.phase}: only a node that waits for {peer}, in"
            f" {', '.join(phases)}, needs force"
        )
    if s.record == "none":
        raise OrderError("there is no record of this pair yet: nothing to take over")
    if not s.silent:
        raise OrderError(
            f"{peer} is heard, so it lives: order the failover there, or power it off first"
        )
    first = f"SEE TO IT THAT {peer} IS POWERED OFF: if its QEMU runs, clients will hear two VMs"
    if waits and not vouched:
        first = f"{peer}'s host is switched off; if that fails, nothing else is done"
    steps = [first]
    if s.phase is not Phase.CLAIM:
        steps.append(f"the record, {s.record}, becomes solo({s.generation + 1}, {s.node})")
    return [
        *steps,
        f"{s.node} {phases[s.phase]}",
        f"{peer}, when it is back, kills its QEMU and follows",
    ]
