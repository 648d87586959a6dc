"""What a pair looks like from outside: one immutable value after each step."""

from dataclasses import dataclass

from coloha.core.context import Context, Fencing
from coloha.core.events import PeerState
from coloha.core.handover import offers
from coloha.core.phases import Phase

_PRIMARY = frozenset(
    {
        Phase.BOOT,
        Phase.SOLO,
        Phase.INVITE,
        Phase.SYNC,
        Phase.ARM,
        Phase.PROTECTED,
        Phase.DEFEND,
        Phase.LEAVE,
        Phase.OFF,
    }
)
_SECONDARY = frozenset({Phase.PREPARE, Phase.LOAD, Phase.FOLLOW, Phase.CLAIM, Phase.PROMOTE})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pair on this node. Times are monotonic seconds of this node, None where there is none."""

    pair: str
    node: str
    peer: str
    phase: Phase
    phase_since: float
    role: str
    protected: bool
    why_not: str | None
    waiting: str | None
    waiting_until: float | None
    paused: bool
    alone: bool
    silent: bool
    peer_gone: bool
    busy: bool
    """A script is under way."""
    generation: int
    record: str
    committed: int
    pause_s: float | None
    period_s: float
    committed_at: float | None
    held_since: float | None
    heard_at: float | None
    lease_until: float | None
    run: str | None
    witnessed: bool
    fencing: Fencing
    witness_error: str | None
    wire: PeerState


def take(c: Context) -> Snapshot:
    """Return the snapshot of the machine's state."""
    peer = c.heard
    role = "primary" if c.phase in _PRIMARY else "secondary" if c.phase in _SECONDARY else "none"
    protected = c.phase is Phase.PROTECTED or (
        c.phase is Phase.FOLLOW and peer is not None and peer.phase is Phase.PROTECTED
    )
    epochs = c.phase in (Phase.ARM, Phase.PROTECTED, Phase.DEFEND)
    return Snapshot(
        pair=c.s.pair,
        node=c.s.me,
        peer=c.s.peer,
        phase=c.phase,
        phase_since=c.phase_since,
        role=role,
        protected=protected,
        why_not=None if protected else c.trouble or c.waiting or f"phase {c.phase}",
        waiting=c.waiting,
        waiting_until=c.waiting_until,
        paused=c.paused,
        alone=c.durable.alone,
        silent=c.silent,
        peer_gone=c.peer_gone if c.s.witnessed else c.peer_gave_up,
        busy=c.script is not None,
        generation=c.record.generation if c.record else c.durable.generation,
        record=str(c.record) if c.record else "none",
        committed=c.committed,
        pause_s=c.pause_s if epochs else None,
        period_s=c.pacing.period_s,
        committed_at=c.committed_at if epochs else None,
        held_since=c.held_since if epochs else None,
        heard_at=c.detector.heard_at if c.detector.pulse is not None else None,
        lease_until=c.pulse.lease_until() if c.pulse.echoed_at is not None else None,
        run=c.run.id if c.run else None,
        witnessed=c.s.witnessed,
        fencing=c.s.fencing,
        witness_error=c.witness_error,
        wire=wire(c),
    )


def _claims(c: Context) -> bool:
    """Whether this node goes on alone if it can: as primary its QEMU is seen to live, or off."""
    if c.s.witnessed:
        return False
    if c.phase is Phase.FOLLOW:
        return c.fence is not None
    defends = c.phase is Phase.DEFEND and c.checked
    return c.guarded and not c.silent and (defends or c.phase is Phase.OFF)


def wire(c: Context) -> PeerState:
    """Return what heartbeats tell the other node."""
    following = c.phase in (Phase.FOLLOW, Phase.CLAIM) and c.copy_bad is None
    return PeerState(
        phase=c.phase,
        generation=c.record.generation if c.record else 0,
        owner=c.record is not None and c.record.primary == c.s.me,
        session=c.session,
        gave_up=c.durable.gave_up,
        following=following,
        colo_exited=c.colo_exited,
        committed=c.committed,
        pulse=c.pulse.number,
        echo=c.detector.pulse or 0,
        restarting=c.leaving,
        pauses=c.durable.pauses,
        partings=c.durable.partings,
        record=c.durable.record,
        living=c.run is not None,
        claims=_claims(c),
        offers=offers(c),
    )
