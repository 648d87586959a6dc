"""Phases of the node that speaks for the VM, or did a moment ago."""

from dataclasses import replace

from coloha.core import handover
from coloha.core.actions import Invite, Script, Severity
from coloha.core.common import forced, insist, launch, yield_lost
from coloha.core.context import Context, Fencing, OnSilence
from coloha.core.events import Committed, Failure, Kept, Role, ScriptDone, ScriptFailed
from coloha.core.ownership import entitled, move_record, own
from coloha.core.phases import Phase
from coloha.core.record import OPERATOR

ARM_TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = 5.0
LEAVE_TRIES = 12
YIELD_REREAD_S = 1.0
CHECK_S = 1.0
HUNG = "QEMU does not answer"
UNWANTED = "an operator wants the VM to have no secondary"
POWER_DOWN_S = 2.0


def boot(c: Context) -> None:
    """Start the VM's QEMU, once nobody else can have a say."""
    if c.record is not None and c.record.primary == c.s.peer:
        c.go(Phase.STANDBY)
    elif c.run is None and yield_lost(c):
        pass  # an earlier life's swap was made after all: the other node has the only copy
    elif not own(c):
        pass
    elif c.run is not None and c.alive:
        c.session = None
        c.boot_backoff.reset()
        c.tell("started", "the VM runs on this node")
        c.go(Phase.SOLO)
    elif c.run is not None:
        c.wait("QEMU to start")
    elif not (c.s.witnessed or c.met):
        _ask_for_company(c)
    elif c.now >= c.boot_at:
        c.boot_at = c.now + c.boot_backoff.next()
        c.persist(replace(c.durable, off=False))
        launch(c, Role.PRIMARY, None)
        c.wait("QEMU to start")
    else:
        c.wait("the next attempt to start QEMU", c.boot_at)


def _ask_for_company(c: Context) -> None:
    """Without a witness: an operator may have given the VM to the other node meanwhile (R7)."""
    c.trouble = f"{c.s.peer} may have the VM: nothing was heard of it since coloha started here"
    c.wait(f"{c.s.peer} to be heard, or an operator: coloha failover --force")
    if forced(c):
        assert c.record is not None
        move_record(c, c.record.take_over(c.s.me), OPERATOR)
        own(c)


def _gone(c: Context) -> bool:
    """If QEMU died while nobody could take over, start the VM again."""
    if c.run is not None:
        return False
    c.trouble = "QEMU died while it had no secondary"
    c.tell("restarting", f"{c.trouble}: the VM boots again", Severity.ERROR)
    c.go(Phase.BOOT)
    return True


def solo(c: Context) -> None:
    """Serve alone, and invite the other node as soon as it can follow."""
    if _gone(c):
        return
    c.session = None
    c.watch_record()
    peer = c.heard
    outcome = c.finished(Script.CHECK)
    if isinstance(outcome, ScriptFailed) and outcome.failure is Failure.LOST:
        c.go(Phase.ADOPT)  # the monitor closed while QEMU lives: connect to it anew
    elif not _answers(c, outcome):
        c.wait("QEMU to answer")
    elif c.durable.alone:
        c.trouble = UNWANTED
        c.wait("an operator: coloha protect")
    elif peer is None:
        c.trouble = _silence(c)
        c.wait(f"{c.s.peer} to be heard")
    elif peer.phase is not Phase.STANDBY:
        c.trouble = c.trouble or f"{c.s.peer} is in phase {peer.phase}"
        c.wait(f"{c.s.peer} to be ready (it is in phase {peer.phase})")
    elif c.now >= c.pulse.lease_until():
        c.trouble = f"{c.s.peer} does not hear this node"
        c.wait(f"{c.s.peer} to hear this node")
    elif not c.agreed:
        c.trouble = c.trouble or f"{c.s.peer} has another record: {peer.record or 'none'}"
        c.wait(f"{c.s.peer} to take the record over")
    elif c.now < c.calm_at:
        _calm_down(c)
    elif c.now < c.protect_at:
        c.wait("the next attempt to protect", c.protect_at)
    else:
        c.session = c.new_number()
        c.trouble = None
        c.channel = None
        c.colo_exited = False
        c.disk_failed = None
        assert c.record is not None
        c.actions.append(Invite(c.session, c.record.generation))
        c.go(Phase.INVITE)


def _calm_down(c: Context) -> None:
    """Do not protect a pair that fails over again and again: each time costs a full copy."""
    why = f"more than {c.s.flap_limit} generations within {c.s.flap_window_s:g} s"
    if c.trouble != why:
        c.trouble = why
        c.tell("flapping", f"{why}: protection waits, or for coloha protect", Severity.ERROR)
    c.wait("the pair to calm down (coloha protect tries at once)", c.calm_at)


def _answers(c: Context, outcome: ScriptDone | ScriptFailed | None) -> bool:
    """Look after the lonely QEMU once a second; return whether it answers.

    One that does not is told, never killed: there is no other copy of the VM.
    """
    if isinstance(outcome, ScriptFailed) and c.trouble != HUNG:
        c.trouble = HUNG
        c.tell("hung", f"{HUNG}; it is left alone, since it is the only copy", Severity.ERROR)
    elif isinstance(outcome, ScriptDone) and c.trouble == HUNG:
        c.trouble = None
        c.tell("answers-again", "QEMU answers again")
    if _powers_down(c):
        return True
    if c.script is None and c.now >= c.again_at:
        c.start(Script.CHECK, CHECK_S)
        c.again_at = c.now + CHECK_S
    c.wake(c.again_at)
    return c.trouble != HUNG


def _powers_down(c: Context) -> bool:
    """If the guest is to be asked to switch itself off and QEMU is idle, do so; return True."""
    if not c.power_down or c.script is not None:
        return False
    c.power_down = False
    c.tell("power-down", "the guest is asked to switch itself off, as an operator ordered")
    c.start(Script.POWER_DOWN, POWER_DOWN_S)
    return True


def _not_now(c: Context, why: str) -> None:
    """Take note that an attempt to protect failed."""
    c.trouble = why
    if c.durable.alone:
        return
    c.protect_at = c.now + c.protect_backoff.next()
    c.tell("protect-failed", why, Severity.WARNING)


def invite(c: Context) -> None:
    """Wait until the other node has a secondary at the far end of the channel."""
    if _gone(c):
        return
    if c.channel is True:
        c.start(Script.ENTER_COLO, c.s.sync_timeout_s)
        c.go(Phase.SYNC)
    elif c.channel is not None:
        _not_now(c, f"{c.s.peer}: {c.channel}")
        c.go(Phase.SOLO)
    else:
        c.wait(f"{c.s.peer} to prepare a secondary")


def sync(c: Context) -> None:
    """Wait until the VM's disks and memory are copied and COLO runs. The output stays open."""
    if _gone(c):
        return
    outcome = c.finished(Script.ENTER_COLO)
    why = UNWANTED if c.durable.alone else _partner_lost(c)
    if isinstance(outcome, ScriptFailed):
        why = outcome.reason
    elif isinstance(outcome, ScriptDone):
        c.start(Script.ARM, ARM_TIMEOUT_S)
        c.committed = 0
        c.kept = 0
        c.pause_s = None
        c.committed_at = c.now
        c.held_since = c.now
        c.releasable = False
        c.go(Phase.ARM)
        return
    if why is not None:
        _not_now(c, why)
        c.go(Phase.LEAVE)
    else:
        c.wait("the first copy of the VM")


def _partner_lost(c: Context) -> str | None:
    """Say why the secondary of this session is no longer one, or None."""
    if c.disk_failed is not None:
        return c.disk_failed.reason
    if c.colo_exited:
        return "COLO ended"
    if c.peer_gave_up:
        return f"{c.s.peer} lost its copy"
    if c.silent:
        return _silence(c)
    peer = c.heard
    if peer is None:
        return None
    if peer.session == c.session:
        return f"COLO ended on {c.s.peer}" if peer.colo_exited else None
    # A heartbeat from before it took part is no news; one from standby after it followed is.
    settled = c.phase in (Phase.PROTECTED, Phase.DEFEND)
    late = c.now >= c.phase_since + c.detector.detection_s
    return f"{c.s.peer} no longer follows" if settled or late else None


def _silence(c: Context) -> str:
    return f"{c.s.peer} is silent"


def _epoch_over(c: Context) -> str | None:
    """Take in what a finished script says; return why the epochs cannot go on, or None."""
    if c.outcome is None:
        return None
    script, outcome = c.outcome
    c.outcome = None
    if script is Script.EPOCH:
        c.pacing.end(c.now)
    if isinstance(outcome, ScriptFailed):
        return HUNG if outcome.failure in (Failure.SILENT, Failure.LOST) else outcome.reason
    if script is Script.RELEASE:
        c.held_since = c.now
    elif isinstance(outcome.result, Committed):
        c.committed += 1
        c.committed_at = c.now
        c.pause_s = outcome.result.pause_s
        c.releasable = True
        c.kept = 0
    elif isinstance(outcome.result, Kept):
        c.kept += 1
        if c.kept == 1:
            c.tell("epoch-kept", f"nothing released yet: {outcome.result.reason}")
    return None


def _epochs(c: Context) -> str | None:
    """Run epochs and release what is committed; return why that must end, or None.

    Release comes right after the commit it belongs to and before the next epoch begins: from then
    on buffer B also holds what only the next commit covers. It needs the lease: else the secondary
    may have taken this node for dead and be speaking already.
    """
    broken = _epoch_over(c) or _partner_lost(c)
    if broken is not None:
        return broken
    if c.offered_at is None and c.now >= c.committed_at + c.s.stall_timeout_s:
        return f"no commit for {c.s.stall_timeout_s:g} s"
    unheard_since = max(c.pulse.lease_until(), c.phase_since, c.detector.hold_until)
    if c.now >= unheard_since + c.s.stall_timeout_s:
        return f"{c.s.peer} has not heard this node for {c.s.stall_timeout_s:g} s"
    c.wake(c.committed_at + c.s.stall_timeout_s)
    if c.script is not None:
        return None
    if c.durable.alone:
        return UNWANTED
    if c.releasable and c.now < c.pulse.lease_until():
        c.releasable = False
        c.start(Script.RELEASE, c.s.stall_timeout_s)
    elif c.leaving or _powers_down(c):
        pass  # the next epoch comes after that, or is begun by the next life of this daemon
    elif handover.due(c):
        pass  # it is the last
    elif c.now >= c.pacing.due_at() or handover.ends_gently(c):
        c.releasable = False
        c.pacing.begin(c.now)
        c.start(Script.EPOCH, c.s.stall_timeout_s)
    else:
        c.wake(c.pacing.due_at())
    return None


def arm(c: Context) -> None:
    """Hold the output, commit once, then let the record say protected (R1)."""
    asked = c.guarded or c.durable.asked is not None
    if c.run is None and asked:
        c.go(Phase.YIELDED)
        return
    if _gone(c):
        return
    broken = _epochs(c)
    if c.guarded and c.agreed:
        c.trouble = None
        c.protect_backoff.reset()
        c.tell("protected", f"{c.s.peer} follows and may take over")
        c.go(Phase.PROTECTED)
    elif broken is not None and _hopeless(c, broken) and asked and c.may_hand_over:
        _hand_over(c, broken)
    elif broken is not None:
        _not_now(c, broken)
        c.go(Phase.LEAVE if c.owned else Phase.DEFEND)
    elif c.guarded:
        c.wait(f"{c.s.peer} to take the record over")
    elif c.committed == 0:
        c.wait("the first commit")
    elif not c.peer_can_take_over:
        c.wait(f"{c.s.peer} to say that it follows")
    else:
        _ask_for_protection(c)


def _hopeless(c: Context, broken: str) -> bool:
    """Whether the other node's copy is better than this one: QEMU hangs, or its disk misses what
    the guest believes to be there.
    """
    return broken == HUNG or (c.disk_failed is not None and c.disk_failed.behind)


def _hand_over(c: Context, why: str) -> None:
    kind = "hung" if why == HUNG else "handed-over"
    c.tell(kind, f"{why}: QEMU is killed, {c.s.peer} may take over", Severity.ERROR)
    c.go(Phase.KILL)


def _ask_for_protection(c: Context) -> None:
    assert c.record is not None
    assert c.session is not None
    if not c.s.witnessed:
        move_record(c, c.record.protect(c.s.peer, c.session), c.s.me)
        return
    c.wait("the witness")
    # From here on the other node may be able to take over, whatever becomes of the answer.
    c.persist(replace(c.durable, asked=c.session))
    c.swap_record(c.record.protect(c.s.peer, c.session))


def protected(c: Context) -> None:
    """Run epochs; when anything is in doubt, ask who may go on."""
    if c.run is None:
        c.tell("yielded", f"{c.s.peer} may take over at once", Severity.WARNING)
        c.go(Phase.YIELDED)
        return
    c.watch_record()
    # A swap of unknown outcome may have been made after all.
    broken = _epochs(c) if c.guarded else "the record says that there is no secondary"
    if broken is None and handover.due(c):
        handover.carry_out(c)
        return
    if broken is None:
        c.wait("the next epoch")
        return
    c.trouble = broken
    if _hopeless(c, broken) and c.may_hand_over:
        _hand_over(c, broken)
    else:
        c.tell("unprotected", broken, Severity.WARNING)
        c.go(Phase.DEFEND)


def defend(c: Context) -> None:
    """Hold the output until the witness says whose turn it is.

    First see that our own QEMU lives: COLO may have ended because it is dying, and the news from
    the other node can be quicker. To win a generation for a dead QEMU would lose the VM.
    """
    if c.run is None:
        c.go(Phase.YIELDED if not c.owned else Phase.BOOT)
        return
    outcome = c.finished(Script.CHECK)
    if isinstance(outcome, ScriptFailed) and outcome.failure is Failure.LOST:
        c.trouble = "QEMU closed its monitor"
        c.tell("monitor-lost", f"{c.trouble}: it is dying, or is killed now", Severity.ERROR)
        c.go(Phase.KILL)
    elif isinstance(outcome, ScriptFailed) and c.may_hand_over:
        c.trouble = HUNG
        _hand_over(c, HUNG)
    elif isinstance(outcome, ScriptFailed) and c.peer_can_take_over:
        # To go on alone with a QEMU that hangs would throw away the copy that does not.
        off = f"{c.s.peer}'s host is being switched off"
        c.trouble = f"{HUNG}, and {'failover is paused' if c.paused else off}"
        c.wait("an operator: coloha resume" if c.paused else "the end of that")
    elif outcome is None and not c.checked:
        c.wait("QEMU to answer")
        if c.script is None or c.script.script is not Script.CHECK:
            c.start(Script.CHECK, c.s.stall_timeout_s / 2)
    elif _recovered(c):
        c.tell("recovered", f"{c.s.peer} is heard again; protection goes on")
        c.trouble = None
        c.committed_at = c.now
        c.go(Phase.PROTECTED)
    else:
        c.checked = True
        ordered = not c.s.witnessed and forced(c)
        if own(c, forced=ordered):
            c.go(Phase.LEAVE)
        elif not c.s.witnessed:
            _hold(c)


def _hold(c: Context) -> None:
    """Without a witness: the other node is asked to give its copy up; have it fenced, or wait."""
    patience = c.phase_since + c.detector.detection_s
    c.wake(patience)
    if c.s.fencing is Fencing.NONE or c.s.on_silence is not OnSilence.HOLD:
        return
    if c.heard is not None and c.heard.claims:
        # It cannot give its copy up, and one host that is switched off is enough.
        c.wait(f"{c.s.peer}, which is having this host switched off")
        return
    c.wait(f"{c.s.peer} to give its copy up, or its host to be switched off")
    if c.silent or c.now >= patience:
        c.have_fenced()


def _recovered(c: Context) -> bool:
    """Whether what broke was only a silence, and it is over with nothing decided.

    A swap of ours whose outcome is unknown decides nothing that matters here: if it was made,
    nobody else can take over, and the output goes commit by commit until we learn of it.
    """
    return (
        c.guarded
        and c.trouble == _silence(c)
        and c.asking is None
        and not c.colo_exited
        and c.disk_failed is None
        and c.peer_can_take_over
        and c.now < c.pulse.lease_until()
    )


def leave(c: Context) -> None:
    """End COLO, open the output. The generation is ours alone: nothing can be forgotten now."""
    if _gone(c):
        return
    tries = LEAVE_TRIES if c.held_since is not None else None  # else clients hear the guest
    if insist(c, Script.LEAVE_COLO, LEAVE_TIMEOUT_S, tries):
        c.session = None
        c.colo_exited = False
        c.held_since = None
        c.tell("solo", "the VM runs on this node alone", Severity.WARNING)
        c.go(Phase.SOLO)


def yielded(c: Context) -> None:
    """QEMU is gone; the other node has the VM, unless it lost it too."""
    record, peer = c.record, c.heard
    assert record is not None
    if record.primary == c.s.peer:
        c.session = None
        c.go(Phase.STANDBY)
        return
    if peer is not None and peer.generation > record.generation:
        c.hint()
    both_lost = c.peer_gave_up or (
        peer is not None and peer.phase is Phase.STANDBY and peer.session != c.session
    )
    alone_at = c.abandoned_since + c.s.cold_start_after_s
    ordered = forced(c)
    abandoned = c.s.witnessed and c.now >= alone_at and not c.paused
    alone = both_lost if c.s.witnessed else entitled(c)
    if not record.protected or alone or abandoned or ordered:
        if own(c, forced=not c.s.witnessed and ordered):
            c.trouble = "both copies of the VM were lost"
            c.tell("cold-start", f"{c.trouble}: it boots again", Severity.ERROR)
            c.go(Phase.BOOT)
        return
    help_ = "" if c.s.witnessed or not c.silent else ", or an operator: coloha failover --force"
    c.wait(f"{c.s.peer} to take over{help_}")
    c.wake(alone_at)
    due = max(c.again_at, c.phase_since + YIELD_REREAD_S)
    if c.now >= due:
        c.again_at = due = c.now + YIELD_REREAD_S
        c.read_record()
    c.wake(due)
