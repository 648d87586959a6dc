"""Phases of the node that follows, up to the moment when it speaks."""

from coloha.core.actions import Admit, Beat, DropChannel, Script, Severity
from coloha.core.common import forced, insist, refuse
from coloha.core.context import Context, Fencing, OnSilence
from coloha.core.events import Failure, ScriptDone, ScriptFailed
from coloha.core.handover import offered
from coloha.core.ownership import entitled, own
from coloha.core.phases import Phase

ACCEPT_TIMEOUT_S = 5.0
PROMOTE_TIMEOUT_S = 5.0
PROMOTE_TRIES = 3
CLAIM_SOON_S = 0.1
CLAIM_AGAIN_S = 1.0


def _gone(c: Context) -> bool:
    if c.run is not None:
        return False
    c.session = None
    c.go(Phase.STANDBY)
    return True


def _superseded(c: Context) -> bool:
    """Whether the primary has given this session up and asks for another."""
    if c.invited is None:
        return False
    refuse(c, c.invited.session, "the secondary of an earlier session is being removed")
    c.invited = None
    return True


def prepare(c: Context) -> None:
    """Start the secondary's QEMU and give it the channel."""
    if c.run is None and c.session is not None:
        c.actions.append(DropChannel(c.session, c.trouble or "the secondary's QEMU died"))
    if _gone(c):
        return
    outcome = c.finished(Script.ACCEPT_COLO)
    if isinstance(outcome, ScriptDone):
        assert c.session is not None
        c.actions.append(Admit(c.session))
        c.start(Script.AWAIT_COLO, c.s.sync_timeout_s)
        c.go(Phase.LOAD)
    elif isinstance(outcome, ScriptFailed):
        assert c.session is not None
        c.actions.append(DropChannel(c.session, outcome.reason))
        c.go(Phase.KILL)
    elif _superseded(c):
        c.go(Phase.KILL)
    elif not c.alive:
        c.wait("QEMU to start")
    elif c.script is None:
        c.start(Script.ACCEPT_COLO, ACCEPT_TIMEOUT_S)
        c.wait("QEMU to take the channel")


def load(c: Context) -> None:
    """Wait for the first copy of the VM."""
    if _gone(c):
        return
    outcome = c.finished(Script.AWAIT_COLO)
    if isinstance(outcome, ScriptDone) and not c.colo_exited:
        c.trouble = None
        c.tell("following", f"this node holds a copy of the VM on {c.s.peer}")
        c.go(Phase.FOLLOW)
    elif _still_copied(c, outcome):
        c.start(Script.AWAIT_COLO, c.s.sync_timeout_s)
    elif outcome is not None or c.colo_exited or c.copy_bad is not None or _superseded(c):
        if isinstance(outcome, ScriptFailed):
            c.trouble = outcome.reason
        c.go(Phase.KILL)
    else:
        c.wait("the first copy of the VM")


def _still_copied(c: Context, outcome: ScriptDone | ScriptFailed | None) -> bool:
    """Whether the wait was too short only because the primary's disks are large."""
    late = isinstance(outcome, ScriptFailed) and outcome.failure is Failure.STALLED
    peer = c.heard
    copies = peer is not None and peer.phase is Phase.SYNC and peer.session == c.session
    return late and copies and not c.colo_exited and c.copy_bad is None


def _guards(c: Context) -> bool:
    """Whether the record says that this node may take over in the session it follows."""
    return c.record is not None and c.record.protected and c.record.session == c.session


def _left_behind(c: Context) -> bool:
    """Whether the primary lives and has no part in our session any more, nor does the record."""
    peer = c.heard
    return peer is not None and peer.session != c.session and not c.peer_gave_up


def follow(c: Context) -> None:
    """Hold the copy; watch the primary."""
    if _gone(c):
        return
    if c.copy_bad is not None:
        c.go(Phase.KILL)
        return
    if c.owned:
        c.go(Phase.CLAIM)  # a swap of ours was made after all
        return
    if _conceded(c) or _seized(c):
        return
    if _superseded(c):
        c.hint()
    peer = c.heard
    if not _guards(c) and peer is not None and peer.phase is Phase.PROTECTED:
        c.hint()
    ordered = c.ordered_here(forced=False) or offered(c)
    may_claim = _may_claim(c) or (offered(c) and _guards(c))
    if may_claim and c.paused and not ordered:
        c.watch_record()
        c.wait("an operator: failover is paused (coloha resume, or coloha failover)")
        return
    if may_claim and c.now >= c.again_at:
        c.by_order = ordered
        c.go(Phase.CLAIM)
        return
    if c.silent and not c.s.witnessed:
        _hold(c)
        return
    if _left_behind(c):
        fresh = c.read_at is not None and c.read_at > c.detector.heard_at
        if fresh and not _guards(c):
            c.go(Phase.KILL)
            return
        c.hint()
    c.watch_record()
    c.wait(f"{c.s.peer}'s checkpoints", c.again_at)


def _may_claim(c: Context) -> bool:
    return c.peer_gone if c.s.witnessed else _guards(c) and entitled(c)


def _conceded(c: Context) -> bool:
    """Give this copy up for good if the primary lives and wants to go on alone (R7).

    Not from a heartbeat that waited while this node stood still: the primary's copy may have died
    since. Nor while its host is being switched off: that cannot be called back, and may leave this
    copy as the only one.
    """
    peer = c.heard
    if c.s.witnessed or peer is None or not peer.claims or peer.session != c.session:
        return False
    if c.now >= c.pulse.lease_until():  # what the primary had heard of this node is old, too
        return False
    if c.fence is not None:
        c.wait(f"{c.s.peer}'s host to be switched off, or not")
        return True
    if c.fenced == c.session:
        return False
    assert c.session is not None
    c.give_up(c.session)
    c.tell("conceded", f"{c.s.peer} goes on alone: the copy here is given up", Severity.WARNING)
    c.go(Phase.KILL)
    return True


def _seized(c: Context) -> bool:
    """Without a witness: take over if an operator says that the other host is off."""
    if c.s.witnessed or c.ordered is None or not c.ordered.forced:
        return False
    if forced(c):
        c.tell("seizing", f"an operator wants the VM of {c.s.peer} here", Severity.WARNING)
        own(c, forced=True)
        c.go(Phase.CLAIM)
    return True


def _hold(c: Context) -> None:
    """Without a witness silence says nothing: have the primary's host fenced, or wait."""
    peer = c.s.peer
    if c.s.on_silence is OnSilence.PRIMARY:
        c.wait(
            f"{peer} to be heard, which may go on alone; or an operator: coloha failover --force"
        )
    elif c.s.fencing is Fencing.NONE or c.paused or not _guards(c):
        c.wait(f"{peer} to be heard, or an operator: coloha failover --force")
    else:
        due = c.detector.silent_at() + c.s.fence_delay_s
        c.wait(f"{peer}'s host to be switched off", due)
        if c.now >= due:
            c.have_fenced()


def _may_speak(c: Context) -> bool:
    """Whether the primary, whose generation this node has won, cannot speak any more."""
    if not c.s.witnessed or c.peer_gave_up or (c.peer_gone and not c.silent):
        return True
    if not c.silent:
        c.wait(f"{c.s.peer} to stop")
        return False
    tried = c.s.fencing is Fencing.OPTIONAL and c.fence_failed_at >= c.phase_since
    if c.s.fencing is Fencing.NONE or tried or forced(c):
        return True
    c.have_fenced()
    c.wait(f"{c.s.peer}'s host to be switched off, or an operator: coloha failover --force")
    return False


def claim(c: Context) -> None:
    """Ask the witness for the next generation; speak once the primary cannot."""
    record = c.record
    assert record is not None
    if c.run is None:
        if not c.owned:
            c.session = None
        c.go(Phase.BOOT if c.owned else Phase.STANDBY)
    elif c.copy_bad is not None:
        c.go(Phase.KILL)
    elif c.owned or _taken(c):
        if c.durable.generation != record.generation:
            c.actions.append(Beat())  # a primary that lives waits for that
        own(c)
        if _may_speak(c):
            c.tell("claimed", f"{c.s.peer} is gone: this node takes over", Severity.WARNING)
            c.go(Phase.PROMOTE)
    elif not c.s.witnessed:
        _back_to_follow(c)
    else:
        _ask_for_generation(c)


def _taken(c: Context) -> bool:
    """Without a witness: take the generation, if it is this node's."""
    return not c.s.witnessed and _may_claim(c) and own(c)


def _ask_for_generation(c: Context) -> None:
    if c.asking is not None:
        c.wait("the witness")
    elif c.paused and not c.by_order and not c.doubt:
        _back_to_follow(c)
    elif not (c.peer_gone or c.doubt or offered(c)):
        c.tell("recovered", f"{c.s.peer} is heard again; following goes on")
        _back_to_follow(c)
    elif _guards(c):
        own(c)
    elif c.read_at is not None and c.read_at >= c.phase_since:
        # The record does not let this node take over; it may yet if the primary was about to ask.
        _back_to_follow(c)
    else:
        c.wait("the witness")
        c.read_record()


def _back_to_follow(c: Context) -> None:
    c.go(Phase.FOLLOW)
    c.again_at = c.now + (CLAIM_SOON_S if c.peer_gave_up else CLAIM_AGAIN_S)


def promote(c: Context) -> None:
    """Become the VM."""
    if c.run is None:
        c.session = None
        c.go(Phase.BOOT)
    elif c.copy_bad is not None:
        c.go(Phase.KILL)
    elif insist(c, Script.PROMOTE, PROMOTE_TIMEOUT_S, PROMOTE_TRIES):
        c.session = None
        c.colo_exited = False
        c.trouble = None
        c.tell("promoted", "the VM runs on this node now", Severity.WARNING)
        c.go(Phase.SOLO)
