"""What one node saw and decided, in sentences; above all, why its VM failed over.

A pure function of the repeated steps. Sentences come from events, actions, and the state before and
after a step; never from the texts that the daemon told.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from coloha.core.actions import Fence, Kill, Persist, RunScript, Script, SwapRecord, Tell
from coloha.core.context import Settings
from coloha.core.events import (
    ChannelFailed,
    ColoExited,
    CopyBad,
    DiskFailed,
    FailoverRequested,
    Failure,
    Fenced,
    FenceDone,
    GuestShutdown,
    Heard,
    Invited,
    LaunchFailed,
    Leaving,
    PauseRequested,
    PeerState,
    ProtectRequested,
    QemuExited,
    RecordRead,
    ScriptFailed,
    Started,
    StartRequested,
    StopRequested,
    SwapDone,
    Unattended,
    UnprotectRequested,
    WitnessFailed,
)
from coloha.core.phases import Phase
from coloha.core.record import Record
from coloha.core.snapshot import Snapshot
from coloha.flight import words
from coloha.flight.incident import Incident, passed
from coloha.flight.record import Begins, Raised
from coloha.flight.replay import Began, Step

_P = Phase
_ALONE = frozenset({_P.SOLO, _P.INVITE, _P.SYNC, _P.ARM, _P.LEAVE})


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened. `at` is seconds since 1970."""

    at: float
    text: str


@dataclass(slots=True)
class Story:
    """What one node saw, in order."""

    moments: list[Moment] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    last: Snapshot | None = None
    """The pair at the end."""


def explain(items: Iterable[Began | Step]) -> Story:
    """Return the story of what `Replay.run` yields."""
    teller = _Teller()
    for item in items:
        if isinstance(item, Began):
            teller.began(item)
        else:
            teller.step(item)
    return teller.story


class _Teller:
    """Goes through the steps once, and remembers what later sentences need."""

    def __init__(self) -> None:
        self.story = Story()
        self._s: Settings
        self._peer: PeerState | None = None
        self._heard_at: float | None = None
        """When the other node's last sign of life came, seconds since 1970."""
        self._silent = False
        self._witness_fails = False
        self._record: Record | None = None
        self._asked: Record | None = None
        self._scripts: dict[int, Script] = {}
        """The script that runs, by its number."""
        self._failure = ""
        """How a script failed last."""
        self._open: Incident | None = None

    def began(self, item: Began) -> None:
        """Take in a header: what was known before may be out of date."""
        self._s, after = item.settings, item.after
        if item.header.begins is not Begins.CONTINUED and self._open is not None:
            self._open.broken_off = True
            self._open = None
        if item.header.begins is Begins.START:
            self._tell(item.at, f"coloha {item.header.coloha} starts on {self._s.me}")
        elif item.header.begins is Begins.GAP:
            missing = f"{item.header.lost} steps are" if item.header.lost else "a part is"
            self._tell(item.at, f"{missing} missing here: the disk was too slow, or full")
        if item.header.begins is not Begins.CONTINUED or self.story.last is None:
            self._peer, self._record, self._heard_at, self._silent = None, None, None, False
            self._witness_fails = after.witness_error is not None
            if after.phase is not _P.INIT:
                state = "protected" if after.protected else "not protected"
                self._tell(
                    item.at,
                    f"as the record begins, {self._s.me} is in phase {after.phase}, {state}; the "
                    f"record is {after.record}",
                )
        self.story.last = after

    def step(self, step: Step) -> None:
        """Take in one step."""
        self._note_event(step)
        self._note_silence(step)
        before = step.before.phase
        for phase in passed(step):
            self._tell(step.at, words.move(before, phase, self._s))
            before = phase
        self._note_actions(step)
        self._note_incident(step)
        self.story.last = step.after

    def _tell(self, at: float, text: str) -> None:
        self.story.moments.append(Moment(at, text))

    def _tell_news(self, at: float, text: str, *, explains: bool = False) -> None:
        """Tell what bears on how an incident goes on, or even explains it."""
        self._tell(at, text)
        if self._open is not None:
            self._open.hear(text, explains=explains)

    # Events

    def _note_event(self, step: Step) -> None:
        event = step.event
        if isinstance(event, Heard):
            self._note_heard(step, event.peer)
        elif isinstance(event, RecordRead | SwapDone):
            self._note_record(step, event)
        elif isinstance(event, WitnessFailed):
            self._note_no_witness(step, event)
        elif isinstance(event, FenceDone):
            self._note_fencing(step, event)
        elif isinstance(event, ScriptFailed):
            script = self._scripts.pop(event.number, None)
            if script is not None and step.before.run is not None:
                self._failure = self._failed(script, event)
                gone = event.failure in (Failure.LOST, Failure.SILENT)
                self._tell_news(step.at, self._failure, explains=gone)
        elif text := self._said(step, event):
            if isinstance(event, QemuExited | CopyBad | DiskFailed):
                self._tell_news(step.at, text, explains=step.before.phase is not _P.KILL)
            else:
                self._tell(step.at, text)

    def _said(self, step: Step, event: Any) -> str | None:
        """Return the sentence of an event that needs no memory."""
        me, peer = self._s.me, self._s.peer
        match event:
            case Started(found=found):
                return f"{me} finds {f'QEMU {found.id} running' if found else 'no QEMU running'}"
            case QemuExited(run) if run.id != step.before.run:
                return None
            case QemuExited(complaint=complaint):
                killed = step.before.phase is _P.KILL
                return f"{me}'s QEMU is dead" if killed else words.died(me, complaint)
            case LaunchFailed(reason=reason):
                return f"{me} could not start QEMU: {reason}"
            case ColoExited():
                return f"{me}'s QEMU left COLO (the one on {peer} died, or the way to it broke)"
            case GuestShutdown(panicked=panicked):
                return "the guest panicked" if panicked else "the guest shut itself down"
            case CopyBad(reason):
                return f"the copy on {me} is unusable: {reason}"
            case DiskFailed(reason):
                return f"on {me}, {reason}"
            case Invited(problem=problem) if problem:
                return f"{me} cannot follow {peer}: {problem}"
            case ChannelFailed(reason=reason):
                return f"{peer} did not prepare a secondary: {reason}"
            case Unattended() if _is_news(step):
                hold = words.length(self._s.restart_hold_s)
                return f"{peer}'s host answers, its daemon does not: it is given {hold}"
        return self._ordered(event)

    def _ordered(self, event: Any) -> str | None:
        """Return the sentence of what an operator wants."""
        me = self._s.me
        match event:
            case Leaving():
                return f"{me}'s daemon stops, and means to be back"
            case StartRequested():
                return "an operator asked to start the VM"
            case PauseRequested(paused=paused):
                return f"an operator {'paused' if paused else 'resumed'} failover"
            case FailoverRequested(forced=True):
                return f"an operator wants the VM on {me} at any price"
            case FailoverRequested(gently=gently):
                how = " after one more commit" if gently else ""
                return f"an operator wants the VM on the other node{how}"
            case UnprotectRequested():
                return "an operator wants the VM to have no secondary"
            case StopRequested(hard=hard):
                how = "switched off" if hard else "to switch itself off"
                return f"an operator wants the VM {how}"
            case ProtectRequested():
                return "an operator wants the VM protected now"
        return None

    def _failed(self, script: Script, event: ScriptFailed) -> str:
        me, work = self._s.me, words.work(script)
        if event.failure is Failure.SILENT:
            return f"{me}'s QEMU did not answer when asked {work}"
        if event.failure is Failure.LOST:
            return f"{me}'s QEMU closed its monitor, as it does when it dies"
        return f"{me}'s QEMU was asked {work}, and failed: {event.reason}"

    def _note_heard(self, step: Step, peer: PeerState) -> None:
        before, name = self._peer, self._s.peer
        self._peer = peer
        if peer.phase is not _P.INIT:
            if self._silent and step.after.heard_at is not None and not self._is_silent(step):
                since = "" if self._heard_at is None else words.length(step.at - self._heard_at)
                self._tell(step.at, f"{name} is heard again{since and f' after {since}'}")
                self._silent = False
            if before is None or before.pulse != peer.pulse:
                self._heard_at = step.at
        if before is None:
            return
        if peer.gave_up is not None and peer.gave_up != before.gave_up:
            self._tell_news(step.at, f"{name} says that its copy of the VM is lost")
        if peer.restarting and not before.restarting:
            self._tell(step.at, f"{name} says that its daemon restarts")
        if peer.pauses > before.pauses:
            what = "paused" if peer.pauses % 2 else "resumed"
            self._tell(step.at, f"{name} says that an operator {what} failover")
        if peer.partings > before.partings:
            what = "no secondary" if peer.partings % 2 else "a secondary"
            self._tell(step.at, f"{name} says that an operator wants {what}")
        if peer.colo_exited and not before.colo_exited:
            self._tell(step.at, f"{name} says that its QEMU left COLO")
        if peer.owner and (not before.owner or peer.generation > before.generation):
            self._tell(step.at, f"{name} says that generation {peer.generation} is its own")

    def _note_record(self, step: Step, event: RecordRead | SwapDone) -> None:
        if step.after.witness_error is not None:
            self._note_no_witness(step, WitnessFailed(step.after.witness_error))
            return
        if self._witness_fails:
            self._witness_fails = False
            self._tell(step.at, "the witness answers again")
        if isinstance(event, SwapDone):
            self._tell(step.at, f"the witness agrees: {words.meaning(event.record)}")
        elif event.record != self._record:
            self._tell(step.at, f"the witness says: {words.meaning(event.record)}")
        self._record = event.record
        self._asked = None

    def _note_no_witness(self, step: Step, event: WitnessFailed) -> None:
        if not self._witness_fails:
            why = event.reason
            self._tell_news(step.at, f"the witness did not answer {self._s.me}: {why}")
        if event.unknown:
            self._tell(step.at, "what was asked of it may have been done, or may yet be")
        self._witness_fails = True

    def _note_copy(self, step: Step, record: Record) -> None:
        """Without a witness each node has its own copy of the record."""
        if record != self._record:
            self._record = record
            self._tell(step.at, f"from now on {self._s.me} has it that {words.meaning(record)}")

    def _note_fencing(self, step: Step, event: FenceDone) -> None:
        if event.outcome is Fenced.CONFIRMED:
            self._tell_news(step.at, f"{self._s.peer}'s host was switched off for {self._s.me}")
        else:
            doubt = "may not have been" if event.outcome is Fenced.UNKNOWN else "was not"
            self._tell_news(step.at, f"{self._s.peer}'s host {doubt} switched off: {event.reason}")

    # Silence

    def _detection_s(self) -> float:
        return self._s.interval_s * self._s.misses

    def _is_silent(self, step: Step) -> bool:
        heard_at = step.after.heard_at
        return heard_at is not None and step.now >= heard_at + self._detection_s()

    def _note_silence(self, step: Step) -> None:
        if not self._silent and self._is_silent(step):
            self._silent = True
            self._tell_news(step.at, self._silence(step))

    def _silence(self, step: Step) -> str:
        assert step.after.heard_at is not None
        since = step.at - (step.now - step.after.heard_at)
        since = since if self._heard_at is None else self._heard_at
        return (
            f"nothing was heard of {self._s.peer} for {words.length(step.at - since)}, since "
            f"{words.clock(since)} (a heartbeat is due every {words.length(self._s.interval_s)}; "
            f"{words.length(self._detection_s())} count as silence)"
        )

    # What was done

    def _note_actions(self, step: Step) -> None:
        if isinstance(step.outcome, Raised):
            broke = step.outcome.raised
            self._tell(step.at, f"coloha broke, and starts over with all held: {broke}")
            return
        for action in step.outcome:
            if isinstance(action, RunScript):
                self._scripts = {action.number: action.script}  # it cut the one before short
            elif isinstance(action, Persist) and action.durable.record is not None:
                self._note_copy(step, action.durable.record)
            elif isinstance(action, Fence):
                self._tell(step.at, f"{self._s.me} has {self._s.peer}'s host switched off")
            elif isinstance(action, SwapRecord):
                if action.new != self._asked:  # else it is asked again, since there was no answer
                    self._asked = action.new
                    asked = words.request(action.new)
                    self._tell(step.at, f"{self._s.me} asks the witness for {asked}")
            elif isinstance(action, Kill) and step.before.phase is step.after.phase:
                self._tell(step.at, f"{self._s.me} kills its QEMU")

    # Incidents

    def _note_incident(self, step: Step) -> None:
        before, after = step.before, step.after
        broke = before.phase in (_P.PROTECTED, _P.FOLLOW) and after.phase is not before.phase
        broke = broke or (before.phase is _P.ARM and after.phase in (_P.DEFEND, _P.YIELDED))
        lost = before.phase in _ALONE and after.phase is _P.BOOT
        if lost or (broke and (self._open is None or self._open.winner is not None)):
            held = before.held_since
            self._open = Incident(
                node=self._s.me,
                peer=self._s.peer,
                at=step.at,
                primary=before.phase is not _P.FOLLOW,
                was_protected=broke,
                generation=before.generation,
                cause=self._cause(step),
                silent_since=self._heard_at if self._is_silent(step) else None,
                held_from=None if held is None else step.at - (step.now - held),
            )
            self.story.incidents.append(self._open)
        if self._open is not None:
            self._open.see(step)
            if self._open.over:
                self._open = None

    def _cause(self, step: Step) -> str:
        """Return why protection ended in this step."""
        me, name, peer, event = self._s.me, self._s.peer, self._peer, step.event
        if isinstance(event, QemuExited | ColoExited | CopyBad | DiskFailed | GuestShutdown):
            return self._said(step, event) or f"{me}'s QEMU died"
        if isinstance(event, ScriptFailed):
            return self._failure
        sessions = {step.before.wire.session, step.after.wire.session} - {None}
        if peer is not None and peer.gave_up in sessions:
            return (
                f"{name} said that its copy of the VM is lost (its QEMU died, hung, or did not "
                f"load a checkpoint: the record of {name} says which)"
            )
        if self._is_silent(step):
            return self._silence(step)
        if peer is not None and peer.owner and peer.generation > step.before.generation:
            return f"{name} said that generation {peer.generation} is its own"
        if peer is not None and peer.phase is _P.STANDBY:
            return f"{name} said that it has no QEMU of the VM any more"
        if peer is not None and peer.colo_exited:
            return f"{name} said that its QEMU left COLO"
        if isinstance(event, RecordRead | SwapDone):
            return f"the witness said that {words.meaning(event.record)}"
        return step.after.why_not or f"{me} went to phase {step.after.phase}"


def _is_news(step: Step) -> bool:
    """Whether the machine told of it: it comes again and again."""
    return isinstance(step.outcome, list) and any(isinstance(a, Tell) for a in step.outcome)
