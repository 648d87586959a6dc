"""Phases that belong to neither side: finding out where this node stands, and standing aside."""

from dataclasses import replace

from coloha.core.actions import DropChannel, Kill, Launch, Script, Severity, SwapRecord
from coloha.core.context import Context, Fencing
from coloha.core.events import Adopted, ColoMode, Failure, Role, Run, ScriptDone
from coloha.core.ownership import move_record, own
from coloha.core.phases import SPEAKING, Phase
from coloha.core.record import OPERATOR, first_record

SECONDARY_WAITS = 2
"""A secondary waits so many times longer than its primary before it boots the VM anew (R8)."""

KILL_AGAIN_S = 1.0
INSIST_AGAIN_S = 0.5
ADOPT_TIMEOUT_S = 5.0
SHUTDOWN_S = 5.0


def init(c: Context) -> None:
    """Read the record before anything else (R4), then take the place it gives this node."""
    if not c.started:
        return
    if c.read_at is None or c.read_at < c.phase_since:
        c.wait("the witness")
        c.read_record()
        return
    record, known = c.record, c.durable.lineage
    if record is None and c.run is not None:
        _halt(c, "a QEMU of this pair runs, but there is neither a record nor a state file")
    elif record is None:
        _begin(c)
    elif known not in (None, record.lineage):
        _halt(c, "the witness holds the record of another life of this pair")
    elif record.primary not in (c.s.me, c.s.peer):
        _halt(c, f"the record names {record.primary}, which is not a node of this pair")
    elif c.run is not None:
        _found(c)
    else:
        _without_qemu(c)


def _halt(c: Context, reason: str) -> None:
    c.trouble = reason
    c.tell("halted", reason, Severity.ERROR)
    c.go(Phase.HALTED)


def _begin(c: Context) -> None:
    """There has never been a record: the first primary makes it, the other node waits for it.

    A node that lost its state file, and whose witness is not mounted, must not take that for the
    beginning: so the other node is listened to first.
    """
    listened_at = c.phase_since + c.detector.detection_s
    if not c.s.first:
        c.go(Phase.STANDBY)
    elif not c.s.witnessed:
        _begin_unwitnessed(c)
    elif c.peer is not None and c.peer.generation > 0:
        c.trouble = f"{c.s.peer} knows a record, the witness here does not: is it mounted?"
        c.wait("the witness")
        c.hint()
    elif c.peer is None and c.now < listened_at:
        c.wait(f"{c.s.peer} to be heard", listened_at)
    else:
        c.wait("the witness")
        c.swap_record(first_record(f"{c.s.incarnation:x}", c.s.me))


def _begin_unwitnessed(c: Context) -> None:
    """A disk that was wiped looks like the beginning: the other node must know nothing either."""
    if c.heard is not None and c.heard.record is None and not c.heard.living:
        move_record(c, first_record(f"{c.s.incarnation:x}", c.s.me), c.s.me)
        _without_qemu(c)
    else:
        c.wait(f"{c.s.peer} to be heard: only then is it known that the VM runs nowhere")


def yield_lost(c: Context) -> bool:
    """If the record names this node and a secondary, our copy is gone: yield and return True."""
    assert c.record is not None
    if c.record.session is None:
        return False
    c.session = c.record.session
    c.give_up(c.record.session)
    c.go(Phase.YIELDED)
    return True


def _without_qemu(c: Context) -> None:
    assert c.record is not None
    if c.record.primary == c.s.me:
        if not yield_lost(c):
            c.go(Phase.OFF if c.durable.off else Phase.BOOT)
        return
    if c.record.secondary == c.s.me and c.record.session is not None:
        c.give_up(c.record.session)
    c.session = None
    c.go(Phase.STANDBY)


def _found(c: Context) -> None:
    """A QEMU runs: keep it if the record and the state file agree that it is no older life."""
    if c.durable.generation == 0:
        _halt(c, "a QEMU of this pair runs, but the state file that says of what age is gone")
    elif _entitled(c):
        c.met = True  # it has run all the time
        c.go(Phase.ADOPT)
    else:
        c.tell("stale-qemu", "the QEMU found running belongs to an older generation")
        c.go(Phase.KILL)


def _entitled(c: Context) -> bool:
    record, run, generation = c.record, c.run, c.durable.generation
    assert record is not None
    assert run is not None
    if record.primary == c.s.me:
        # Another node's turn would have used up a generation in between: one step is our own swap.
        ours = record.generation == generation or (
            record.generation == generation + 1 and not record.protected
        )
        return ours and (run.session is None or run.session != c.durable.gave_up)
    if run.role is Role.PRIMARY or run.session == c.durable.gave_up:
        return False
    if record.protected:
        return record.session == run.session
    return record.generation == generation


def adopt(c: Context) -> None:
    """Ask the QEMU that was found what it is doing, and go on from there."""
    record = c.record
    assert record is not None
    if c.run is None:
        c.go(Phase.INIT)
        return
    if c.script is None and c.outcome is None and c.now >= c.again_at:
        c.start(Script.ADOPT, ADOPT_TIMEOUT_S)
    outcome = c.finished(Script.ADOPT)
    if outcome is None:
        c.wait("QEMU to answer", c.again_at if c.script is None else None)
    elif isinstance(outcome, ScriptDone):
        assert isinstance(outcome.result, Adopted)
        c.alive = True
        c.tell("adopted", "the running QEMU was taken over; the guest never noticed")
        _adopted(c, outcome.result.colo)
    elif c.owned:
        # It may be the only copy of the VM there is: never kill it for being slow.
        c.tell("adopt-failed", f"QEMU does not answer: {outcome.reason}", Severity.ERROR)
        c.again_at = c.now + KILL_AGAIN_S
        c.wait("QEMU to answer", c.again_at)
    else:
        c.go(Phase.KILL)


def _adopted(c: Context, colo: ColoMode) -> None:
    record = c.record
    assert record is not None
    if record.primary == c.s.me and record.protected:
        c.session = record.session
        c.committed_at = c.now
        c.held_since = c.now
        c.go(Phase.PROTECTED if colo is ColoMode.PRIMARY else Phase.DEFEND)
    elif record.primary == c.s.me and colo is ColoMode.SECONDARY:
        c.go(Phase.CLAIM)
    elif record.primary == c.s.me:
        c.session = None if c.owned else c.durable.asked
        c.held_since = c.now if colo is ColoMode.PRIMARY else None
        if c.owned:
            c.enter_generation()  # the daemon before may have died between our swap and this
        c.go(Phase.LEAVE if c.owned else Phase.DEFEND)
    else:
        c.go(Phase.FOLLOW if colo is ColoMode.SECONDARY else Phase.KILL)


def standby(c: Context) -> None:
    """Wait to be invited; watch for the record to name this node."""
    record, peer = c.record, c.heard
    if record is not None and record.primary == c.s.me:
        if not yield_lost(c):
            c.go(Phase.BOOT)
        return
    if peer is not None and peer.generation > (record.generation if record else 0):
        c.hint()
    if _seized(c) or _cold_start(c):
        return
    if c.invited is None:
        c.wait(f"an invitation from {c.s.peer}")
        c.watch_record()
        return
    if c.read_at is None or c.read_at < c.invited_at:
        c.wait("the witness")
        c.read_record()
        return
    _answer_invitation(c)


def forced(c: Context) -> bool:
    """Whether an operator's force stands, and the other host is off as far as can be seen to.

    With fencing it is switched off first; if that fails, the order lapses.
    """
    if c.ordered is None or not c.ordered.forced:
        return False
    if not c.ordered_here(forced=True) or c.fence_failed_at >= c.ordered_at:
        c.lapse()
        return False
    unfenced = c.s.fencing is Fencing.NONE or c.ordered.vouched
    if unfenced or c.fenced_at >= c.ordered_at:
        return True
    c.have_fenced()
    c.wait(f"{c.s.peer}'s host to be switched off")
    return False


def _seized(c: Context) -> bool:
    """Carry out an operator's order to run the VM here, whatever the other node does (R4)."""
    if not forced(c):
        return c.ordered is not None and c.ordered.forced
    assert c.record is not None
    if not c.s.witnessed:
        c.tell("seizing", f"an operator wants the VM of {c.s.peer} here", Severity.WARNING)
        own(c, forced=True)
        c.go(Phase.BOOT)
        return True
    assert c.ordered is not None
    c.wait("the witness")
    if c.read_at is None or c.read_at < c.ordered_at:
        c.read_record()
        return True
    c.swap_record(c.record.take_over(c.s.me), OPERATOR)
    if isinstance(c.asking, SwapRecord):
        c.ordered = None  # once: a record that has changed meanwhile needs a new order
        c.tell("seizing", f"an operator wants the VM of {c.s.peer} here", Severity.WARNING)
    return True


def _cold_start(c: Context) -> bool:
    """Boot the VM anew after its copy here and its primary were lost together (R8)."""
    record = c.record
    if record is None or not record.protected or record.secondary != c.s.me or c.paused:
        return False
    if not c.s.witnessed:
        return False
    due = c.abandoned_since + SECONDARY_WAITS * c.s.cold_start_after_s
    if c.now < due:
        c.wake(due)
        return False
    own(c)  # from then on the record names this node
    return True


def _answer_invitation(c: Context) -> None:
    invited, record = c.invited, c.record
    assert invited is not None
    c.invited = None
    if invited.problem is not None:
        refuse(c, invited.session, invited.problem)
    elif record is None or record.protected or record.primary != c.s.peer:
        refuse(c, invited.session, f"the record here is {record}: do both nodes use one witness?")
    elif record.generation != invited.generation:
        refuse(c, invited.session, f"the record here is {record}, not of {invited.generation}")
    elif invited.session == c.durable.gave_up:
        refuse(c, invited.session, "this session is over")
    else:
        c.session = invited.session
        c.durable = replace(c.durable, off=False)  # the VM runs: written along with the generation
        c.enter_generation()
        launch(c, Role.SECONDARY, invited.session)
        c.go(Phase.PREPARE)


def refuse(c: Context, session: int, reason: str) -> None:
    """Turn an invitation down."""
    c.actions.append(DropChannel(session, reason))
    c.tell("invitation-refused", reason, Severity.WARNING)


def launch(c: Context, role: Role, session: int | None) -> None:
    """Start a QEMU of this generation."""
    letter = role.value[0]
    number = session if session is not None else c.new_number()
    c.run = Run(f"{letter}-{number:x}", role, session)
    c.alive = False
    c.guest_shutdown = c.panicked = c.cut_short = c.power_down = False
    c.colo_exited = False
    c.copy_bad = None
    c.disk_failed = None
    c.actions.append(Launch(c.run))


def insist(c: Context, script: Script, timeout_s: float, tries: int | None) -> bool:
    """Run a script until it succeeds, then return True; after `tries` failures, kill QEMU.

    For scripts without which the VM serves nobody: one that is booted anew does. A QEMU that is
    merely slow to answer is never killed, since it is the only copy of the VM.
    """
    outcome = c.finished(script)
    if isinstance(outcome, ScriptDone):
        return True
    if outcome is not None:
        c.tries += outcome.failure is not Failure.SILENT
        c.again_at = c.now + INSIST_AGAIN_S
        c.tell(f"{script}-failed", f"{script}: {outcome.reason}", Severity.ERROR)
        if tries is not None and c.tries >= tries:
            c.go(Phase.KILL)
            return False
    idle = c.script is None or c.script.script is not script
    if idle and c.now >= c.again_at:
        c.start(script, timeout_s)
    c.wait("QEMU to end COLO", c.again_at if idle else None)
    return False


def kill(c: Context) -> None:
    """See this node's QEMU dead, then find out anew where this node stands."""
    if c.run is None:
        c.go(Phase.INIT)
        return
    if c.now >= c.again_at:
        c.actions.append(Kill(c.run))
        c.again_at = c.now + KILL_AGAIN_S
    c.wait("QEMU to die", c.again_at)


def off(c: Context) -> None:
    """The guest is off: see to it that nobody takes that for a failure; wait for an operator.

    After a panic only until the VM may boot again.
    """
    dead_by = c.phase_since + (0.0 if c.cut_short else SHUTDOWN_S)
    if c.run is not None and c.now >= max(c.again_at, dead_by):
        c.actions.append(Kill(c.run))
        c.again_at = c.now + KILL_AGAIN_S
    if c.record is not None and c.record.primary == c.s.peer:
        c.go(Phase.STANDBY)  # with a QEMU it would have been overtaken
    elif not own(c):
        pass
    elif c.run is not None:
        c.wait("QEMU to exit", max(c.again_at, dead_by))
    elif c.durable.off:
        c.session = None
        c.wait("an operator: coloha start")
    else:
        c.go(Phase.BOOT)


def halted(c: Context) -> None:
    """Do nothing that could be wrong."""
    c.wait("an operator")


def switched_off(c: Context) -> bool:
    """If the guest has shut itself down, go to OFF, QEMU gone or about to go, and return True."""
    if not c.guest_shutdown:
        return False
    c.persist(replace(c.durable, off=not c.panicked))
    c.go(Phase.OFF)
    return True


def overtaken(c: Context) -> bool:
    """Whether the other node speaks for the VM in a newer generation than our QEMU's."""
    record, peer, mine = c.record, c.peer, c.durable.generation
    theirs = record is not None and record.primary == c.s.peer
    if record is not None and theirs and record.generation > mine:
        return True
    if not c.s.witnessed:  # of two records of one generation theirs may have been found right
        return theirs and c.phase in _AS_PRIMARY
    return peer is not None and peer.owner and peer.generation > mine


_AS_PRIMARY = SPEAKING | {Phase.BOOT, Phase.DEFEND, Phase.PROMOTE}
