"""What an operator may order, what it would do, and why it is refused: as sentences, first."""

from coloha.core.phases import Phase
from coloha.core.snapshot import Snapshot
from coloha.errors import OrderError


def failover_plan(s: Snapshot, now: float, *, forced: bool) -> list[str]:
    """Return what `coloha failover` would do now, step by step.

    :raises OrderError: if it would not be done, with the reason and what to do instead.
    """
    return _forced(s) if forced else _handed_over(s, now)


def _handed_over(s: Snapshot, now: float) -> list[str]:
    peer = s.peer
    if s.phase is Phase.PROTECTED and not s.paused:
        age = "" if s.committed_at is None else f", {(now - s.committed_at) * 1000:.0f} ms ago"
        return [
            f"{s.node} kills its QEMU. The guest loses what it did since its last commit{age};"
            " clients have seen nothing newer",
            f"{peer} takes generation {s.generation + 1} and runs the VM from that commit",
            f"{s.node} becomes the secondary, with a full copy of the VM; until then the VM is not"
            " protected",
        ]
    if s.phase is Phase.FOLLOW and s.paused and s.peer_gone:
        return [
            f"{s.node} takes generation {s.generation + 1}, if the witness agrees, and runs the VM"
            " from the last commit",
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


def _forced(s: Snapshot) -> list[str]:
    peer = s.peer
    if s.phase not in (Phase.STANDBY, Phase.YIELDED):
        raise OrderError(
            f"{s.node} is in phase {s.phase}: only a node without a copy of the VM, in standby or"
            " yielded, needs force"
        )
    if s.record == "none":
        raise OrderError("there is no record of this pair yet: nothing to take over")
    if not s.silent:
        raise OrderError(
            f"{peer} is heard, so it lives: order the failover there, or power it off first"
        )
    return [
        f"SEE TO IT THAT {peer} IS POWERED OFF: if its QEMU runs, clients will hear two VMs",
        f"the record, {s.record}, becomes solo({s.generation + 1}, {s.node})",
        f"{s.node} boots the VM anew: what it had in memory is lost",
        f"{peer}, when it is back, kills its QEMU and follows",
    ]
