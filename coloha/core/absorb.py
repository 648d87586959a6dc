"""How each event changes the facts. Nothing is decided here but what holds in every phase."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coloha.core.actions import Beat, DropChannel, Severity, SwapRecord
from coloha.core.context import Context
from coloha.core.events import (
    ChannelFailed,
    ChannelReady,
    ColoExited,
    CopyBad,
    DiskFailed,
    Event,
    FailoverRequested,
    Fenced,
    FenceDone,
    GuestShutdown,
    Heard,
    Invited,
    Launched,
    LaunchFailed,
    Leaving,
    PauseRequested,
    PeriodChanged,
    ProtectRequested,
    QemuExited,
    RecordRead,
    Role,
    ScriptDone,
    ScriptFailed,
    Started,
    StartRequested,
    StopRequested,
    SwapDone,
    Timer,
    Unattended,
    UnprotectRequested,
    WitnessFailed,
)
from coloha.core.phases import Phase
from coloha.core.record import Record
from coloha.core.unwitnessed import compare


def _started(c: Context, event: Started) -> None:
    c.started = True
    c.durable = event.durable
    if not c.s.witnessed:
        c.record = event.durable.record
    c.run = event.found
    if event.found is not None:
        c.session = event.found.session


def _timer(c: Context, event: Timer) -> None:
    del c, event  # the time itself is the news


def _heard(c: Context, event: Heard) -> None:
    c.peer = event.peer
    c.spoken_at = c.now
    c.pulse.echoed(event.peer.echo)
    # A node in INIT does not know its own state yet: what it says is true, but no sign of life.
    if event.peer.phase is not Phase.INIT:
        c.detector.heard(c.now, event.peer.pulse)
    if event.peer.restarting:
        _hold(c, f"{c.s.peer}'s daemon restarts")
    if c.started and event.peer.pauses > c.durable.pauses:
        _count_pauses(c, event.peer.pauses)
    if c.started and event.peer.partings > c.durable.partings:
        _count_partings(c, event.peer.partings)
    if c.started and not c.s.witnessed:
        compare(c, event.peer)


def _unattended(c: Context, event: Unattended) -> None:
    del event
    _hold(c, f"{c.s.peer}'s host lives, its daemon does not")


def _hold(c: Context, why: str) -> None:
    if c.detector.hold(c.now, c.s.restart_hold_s):
        c.tell("hold", f"{why}: it is given {c.s.restart_hold_s:g} s")


def _count_pauses(c: Context, pauses: int) -> None:
    """Take over a count of pauses and resumes, and say so if that changes anything."""
    before = c.paused
    c.persist(replace(c.durable, pauses=pauses))
    c.actions.append(Beat())
    if c.paused and not before:
        c.tell("paused", "an operator wants no automatic failover", Severity.WARNING)
    elif before and not c.paused:
        c.tell("resumed", "failover is automatic again")


def _pause_requested(c: Context, event: PauseRequested) -> None:
    if event.paused != c.paused:
        _count_pauses(c, c.durable.pauses + 1)


def _count_partings(c: Context, partings: int) -> None:
    """Take over a count of unprotects and protects, and say so if that changes anything."""
    before = c.durable.alone
    c.persist(replace(c.durable, partings=partings))
    c.actions.append(Beat())
    if c.durable.alone and not before:
        c.tell("alone", "an operator wants the VM to have no secondary", Severity.WARNING)
    elif before and not c.durable.alone:
        c.tell("protection-wanted", "an operator wants the VM protected")


def _unprotect_requested(c: Context, event: UnprotectRequested) -> None:
    del event
    if not c.durable.alone:
        _count_partings(c, c.durable.partings + 1)


def _stop_requested(c: Context, event: StopRequested) -> None:
    if c.record is None or c.record.primary != c.s.me or c.run is None:
        return
    if event.hard:
        c.guest_shutdown = c.cut_short = True
        c.tell("stopped", "an operator switched the VM off", Severity.WARNING)
    else:
        c.power_down = True


def _failover_requested(c: Context, event: FailoverRequested) -> None:
    c.withdraw()  # an offer belongs to the order that it carries out
    c.ordered = event
    c.ordered_at = c.now


def _protect_requested(c: Context, event: ProtectRequested) -> None:
    del event
    if c.durable.alone:
        _count_partings(c, c.durable.partings + 1)
    c.turns.clear()
    c.protect_backoff.reset()
    c.protect_at = c.now


def _leaving(c: Context, event: Leaving) -> None:
    del event
    c.leaving = True
    c.actions.append(Beat())


def _answered(c: Context) -> None:
    c.asking = None
    c.doubt = False
    c.read_at = c.now
    c.witness_retry_at = float("-inf")
    c.witness_backoff.reset()
    if c.witness_error is not None:
        c.witness_error = None
        c.tell("witness-back", "the witness answers again")


def _record_read(c: Context, event: RecordRead) -> None:
    if event.record is None and c.durable.lineage is not None:
        # An unmounted folder looks like this. It must never be taken for a fresh start.
        _witness_failed(c, WitnessFailed("it has no record of this pair any more: is it mounted?"))
        return
    if _is_older(c, event.record):
        _witness_failed(c, WitnessFailed("its record is old: was it restored from a backup?"))
        return
    _answered(c)
    c.learn(event.record)


def _is_older(c: Context, record: Record | None) -> bool:
    """Whether this node has seen a later generation of the same life than `record`."""
    return (
        record is not None
        and record.lineage == c.durable.lineage
        and record.generation < c.durable.generation
    )


def _swap_done(c: Context, event: SwapDone) -> None:
    _answered(c)
    c.learn(event.record)


def _witness_failed(c: Context, event: WitnessFailed) -> None:
    c.doubt = c.doubt or (event.unknown and isinstance(c.asking, SwapRecord))
    c.asking = None
    c.witness_retry_at = c.now + c.witness_backoff.next()
    if c.witness_error is None:
        c.tell("witness-unreachable", f"the witness: {event.reason}", Severity.WARNING)
    c.witness_error = event.reason


def _launched(c: Context, event: Launched) -> None:
    if event.run == c.run:
        c.alive = True


def _launch_failed(c: Context, event: LaunchFailed) -> None:
    if event.run == c.run:
        c.trouble = event.reason
        c.tell("launch-failed", event.reason, Severity.ERROR)
        _forget_run(c)


def _qemu_exited(c: Context, event: QemuExited) -> None:
    if event.run != c.run:
        return
    if c.phase is not Phase.KILL and not c.guest_shutdown:
        c.trouble = f"QEMU died: {event.complaint}" if event.complaint else "QEMU died"
        c.tell("qemu-exited", c.trouble, Severity.ERROR)
    _lose_copy(c)
    _forget_run(c)


def _lose_copy(c: Context) -> None:
    """Give up the session whose only copy on this node is gone (R5, R6)."""
    if c.session is None or c.run is None or c.guest_shutdown:
        return
    taking_part = c.guarded or c.durable.asked == c.session
    if c.run.role is Role.SECONDARY and not c.owned and not c.guarded:
        taking_part = True
    if taking_part:
        c.give_up(c.session)


def _forget_run(c: Context) -> None:
    c.run = None
    c.alive = False
    c.guest_shutdown = False
    c.script = None
    c.outcome = None
    c.colo_exited = False
    c.copy_bad = None
    c.disk_failed = None
    c.releasable = False


def _script_over(c: Context, event: ScriptDone | ScriptFailed) -> None:
    if c.script is None or event.number != c.script.number:
        return  # a script that was cut short
    c.outcome = (c.script.script, event)
    c.script = None


def _colo_exited(c: Context, event: ColoExited) -> None:
    del event
    expected = c.phase in (Phase.LEAVE, Phase.PROMOTE, Phase.KILL)
    if c.run is None or c.colo_exited or expected:
        return
    c.colo_exited = True
    c.tell("colo-exit", "QEMU left COLO", Severity.WARNING)
    c.actions.append(Beat())


def _guest_shutdown(c: Context, event: GuestShutdown) -> None:
    if c.record is None or c.record.primary != c.s.me:
        return  # a secondary's guest says what only the primary's can mean
    c.guest_shutdown = True
    c.panicked = event.panicked
    if event.panicked:  # the copy would, too
        c.tell("guest-panicked", "the guest panicked: it boots again", Severity.ERROR)
    else:
        c.tell("guest-shutdown", "the guest shut itself down")


def _copy_bad(c: Context, event: CopyBad) -> None:
    if c.run is None or c.copy_bad is not None:
        return
    c.copy_bad = event.reason
    if c.session is not None and not c.owned:
        c.give_up(c.session)
    c.tell("copy-bad", f"the secondary's state is unusable: {event.reason}", Severity.ERROR)


def _disk_failed(c: Context, event: DiskFailed) -> None:
    """A secondary's guest has seen an error that the primary's has not: it is no copy any more.

    A primary's guest has not seen it if the other image took the write.
    """
    if c.run is None or c.disk_failed is not None:
        return
    if c.phase in (Phase.LOAD, Phase.FOLLOW, Phase.CLAIM):
        if not c.owned:
            _copy_bad(c, CopyBad(event.reason))
        return
    c.disk_failed = event
    c.tell("disk-failed", event.reason, Severity.ERROR)


def _invited(c: Context, event: Invited) -> None:
    if c.invited is not None:
        c.actions.append(DropChannel(c.invited.session, "a newer invitation came"))
    c.invited = event
    c.invited_at = c.now


def _channel_ready(c: Context, event: ChannelReady) -> None:
    if event.session == c.session:
        c.channel = True


def _channel_failed(c: Context, event: ChannelFailed) -> None:
    if event.session == c.session:
        c.channel = event.reason


def _fence_done(c: Context, event: FenceDone) -> None:
    """A confirmed fencing means: whatever ran there when it was asked for is dead."""
    if c.fence is None or event.number != c.fence.number:
        return
    c.fence = None
    if event.outcome is Fenced.CONFIRMED:
        c.fenced, c.fenced_at = c.fence_session, c.fence_asked_at
        c.fence_retry_at = float("-inf")
        c.fence_backoff.reset()
        c.tell("fenced", f"{c.s.peer}'s host was switched off", Severity.WARNING)
        return
    c.fence_failed_at = c.now
    c.fence_retry_at = c.now + c.fence_backoff.next()
    how = "may not have been" if event.outcome is Fenced.UNKNOWN else "was not"
    c.tell("fence-failed", f"{c.s.peer} {how} switched off: {event.reason}", Severity.ERROR)


def _period_changed(c: Context, event: PeriodChanged) -> None:
    c.pacing.period_s = event.period_s


def _start_requested(c: Context, event: StartRequested) -> None:
    del event
    if c.phase is Phase.OFF:
        c.persist(replace(c.durable, off=False))


_ABSORBERS: dict[type, Callable[[Context, Any], None]] = {
    Started: _started,
    Timer: _timer,
    Heard: _heard,
    Unattended: _unattended,
    RecordRead: _record_read,
    SwapDone: _swap_done,
    WitnessFailed: _witness_failed,
    Launched: _launched,
    LaunchFailed: _launch_failed,
    QemuExited: _qemu_exited,
    ScriptDone: _script_over,
    ScriptFailed: _script_over,
    ColoExited: _colo_exited,
    GuestShutdown: _guest_shutdown,
    CopyBad: _copy_bad,
    DiskFailed: _disk_failed,
    Invited: _invited,
    ChannelReady: _channel_ready,
    ChannelFailed: _channel_failed,
    FenceDone: _fence_done,
    PeriodChanged: _period_changed,
    StartRequested: _start_requested,
    Leaving: _leaving,
    PauseRequested: _pause_requested,
    FailoverRequested: _failover_requested,
    ProtectRequested: _protect_requested,
    UnprotectRequested: _unprotect_requested,
    StopRequested: _stop_requested,
}


def absorb(c: Context, event: Event) -> None:
    """Change the facts as `event` says."""
    _ABSORBERS[type(event)](c, event)
