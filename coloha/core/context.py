"""What the machine knows, and the verbs with which its phases act.

Events only change facts (`absorb.py`); each phase then looks at the facts and decides
(`primary.py`, `secondary.py`, `common.py`). So it never matters in which order facts arrived.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from enum import StrEnum

from coloha.core.actions import (
    Action,
    Beat,
    Fence,
    Persist,
    ReadRecord,
    RunScript,
    Script,
    Severity,
    SwapRecord,
    Tell,
)
from coloha.core.detector import Detector, Pulse
from coloha.core.events import (
    DiskFailed,
    Durable,
    FailoverRequested,
    Invited,
    PeerState,
    Run,
    ScriptDone,
    ScriptFailed,
)
from coloha.core.pacing import Backoff, Pacing
from coloha.core.phases import TRANSITIONS, Phase
from coloha.core.record import Record, swap_problem

REREAD_S = 0.2
"""Shortest time between two reads of the record that are only prompted by a hint."""


WATCH_S = 10.0
"""How often the record is read although nothing suggests that it changed."""

WITNESS_AGAIN_S = 1.0
"""Longest time between two questions to a witness that does not answer."""


FENCE_AGAIN_S = 1.0
"""Shortest time between two attempts to fence the other node."""


class InvariantError(AssertionError):
    """The machine was about to break a promise: a bug. The pair is held, nothing is released."""


class OnSilence(StrEnum):
    """Without a witness: what happens to a protected pair whose nodes do not hear each other."""

    HOLD = "hold"
    """Neither goes on by itself: output is held until they hear each other, or one is fenced."""
    PRIMARY = "primary"
    """The primary goes on alone at once; the secondary never takes over from silence."""


class Fencing(StrEnum):
    """Whether the other node's host can be switched off, and how much depends on it."""

    NONE = "none"
    OPTIONAL = "optional"
    """With a witness: tried before a secondary speaks; its failure is told, and borne."""
    REQUIRED = "required"
    """A secondary does not speak after a silence until it is confirmed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the machine is told once. Times are seconds.

    `incarnation` is a random number of 40 bits, new with each start of the daemon: runs, sessions
    and lineages made from it are unlike all earlier ones.
    """

    pair: str
    me: str
    peer: str
    first: bool
    incarnation: int
    period_s: float = 0.05
    stall_timeout_s: float = 3.0
    interval_s: float = 0.1
    misses: int = 5
    sync_timeout_s: float = 600.0
    cold_start_after_s: float = 30.0
    retry_min_s: float = 0.5
    retry_max_s: float = 60.0
    restart_hold_s: float = 0.0
    flap_limit: int = 5
    flap_window_s: float = 0.0
    """More than `flap_limit` generations within this time are too many; 0 for no limit."""
    witnessed: bool = True
    """Whether the record is at a witness; else each node has its own copy of it (R7)."""
    on_silence: OnSilence = OnSilence.HOLD
    fencing: Fencing = Fencing.NONE
    fence_delay_s: float = 0.0
    """Without a witness: how long a secondary waits before it has its silent primary fenced.

    A primary with the same in mind must be done by then, or both hosts are switched off: more than
    1.5 x `stall_timeout_s` + `interval_s` x `misses` + what fencing takes.
    """


@dataclass(slots=True)
class Context:
    """Facts and verbs. The fields are the machine's whole state."""

    s: Settings
    detector: Detector
    pulse: Pulse
    pacing: Pacing
    now: float = 0.0
    actions: list[Action] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)

    phase: Phase = Phase.INIT
    phase_since: float = 0.0
    started: bool = False
    leaving: bool = False
    ordered: FailoverRequested | None = None
    """What an operator ordered and this phase has not yet done."""
    ordered_at: float = 0.0
    offered_at: float | None = None
    """Since when this node offers the VM to the other one."""
    by_order: bool = False
    """This node claims because an operator ordered it, paused or not."""
    durable: Durable = field(default_factory=Durable)

    record: Record | None = None
    read_at: float | None = None
    asking: ReadRecord | SwapRecord | None = None
    doubt: bool = False
    """A swap of ours may have been made, or may yet be."""
    witness_error: str | None = None
    witness_retry_at: float = float("-inf")
    met: bool = False
    """Without a witness: this daemon knows that no other VM of the pair runs (R7)."""
    fence: Fence | None = None
    """The fencing that was asked for and has not ended."""
    fence_asked_at: float = float("-inf")
    fence_session: int | None = None
    fences: int = 0
    fence_retry_at: float = float("-inf")
    fence_failed_at: float = float("-inf")
    fenced: int | None = None
    """The session in which the other node's host was seen to be switched off: its copy is gone."""
    fenced_at: float = float("-inf")
    """When that was asked for."""
    turns: deque[float] = field(default_factory=deque)
    """When the last generations began, as far as this node saw it."""

    run: Run | None = None
    alive: bool = False
    """The QEMU of `run` has answered."""
    guest_shutdown: bool = False
    panicked: bool = False
    """That was a panic: the VM is to boot again."""
    cut_short: bool = False
    """An operator switched the VM off; the guest was not asked."""
    power_down: bool = False
    """The guest is to be asked to switch itself off."""
    colo_exited: bool = False
    copy_bad: str | None = None
    disk_failed: DiskFailed | None = None
    """The first write that a disk missed since the session began."""

    script: RunScript | None = None
    outcome: tuple[Script, ScriptDone | ScriptFailed] | None = None
    scripts: int = 0
    checked: bool = False
    """In this phase QEMU was seen to answer."""
    tries: int = 0
    """How often the phase's script has failed."""

    peer: PeerState | None = None
    spoken_at: float = float("-inf")
    """When the other daemon was last heard, be it that it only starts."""
    session: int | None = None
    sessions: int = 0
    invited: Invited | None = None
    invited_at: float = 0.0
    channel: bool | str | None = None
    """Of `session`: True when ready, or why there is none."""
    protect_at: float = float("-inf")
    """Not before then is the next invitation sent."""
    boot_at: float = float("-inf")
    """Not before then is the VM started again."""
    again_at: float = float("-inf")
    """Not before then does the phase repeat what it did; every phase begins afresh."""

    committed: int = 0
    """Commits of this session."""
    committed_at: float = 0.0
    kept: int = 0
    """Epochs since then that did not commit."""
    pause_s: float | None = None
    releasable: bool = False
    """Buffer B holds nothing newer than the last commit."""
    held_since: float | None = None

    trouble: str | None = None
    """Why the VM is not protected, in words."""
    waiting: str | None = None
    waiting_until: float | None = None
    """What this phase waits for, in words."""

    protect_backoff: Backoff = field(init=False)
    boot_backoff: Backoff = field(init=False)
    witness_backoff: Backoff = field(init=False)
    fence_backoff: Backoff = field(init=False)

    def __post_init__(self) -> None:
        self.protect_backoff = Backoff(self.s.retry_min_s, self.s.retry_max_s)
        self.boot_backoff = Backoff(self.s.retry_min_s, self.s.retry_max_s)
        self.witness_backoff = Backoff(REREAD_S, WITNESS_AGAIN_S)
        self.fence_backoff = Backoff(FENCE_AGAIN_S, max(FENCE_AGAIN_S, self.s.retry_max_s))

    # What follows from the facts

    @property
    def owned(self) -> bool:
        """Whether this node alone may speak, and nothing asked earlier can change that."""
        return (
            self.record is not None
            and self.record.primary == self.s.me
            and not self.record.protected
            and (self.durable.asked is None or self.durable.generation != self.record.generation)
        )

    @property
    def guarded(self) -> bool:
        """Whether the record says that the other node may take over the session we are in."""
        return (
            self.record is not None
            and self.record.primary == self.s.me
            and self.record.protected
            and self.record.session == self.session
        )

    @property
    def silent(self) -> bool:
        """Whether the other node is silent."""
        return self.detector.silent(self.now)

    @property
    def paused(self) -> bool:
        """Whether an operator wants no automatic failover."""
        return self.durable.paused

    def ordered_here(self, *, forced: bool) -> bool:
        """Return whether such an order stands: the record is still the one it was given for."""
        return (
            self.ordered is not None
            and self.ordered.forced == forced
            and self.record is not None
            and self.record.generation == self.ordered.generation
            and (self.silent or not forced or self.fenced_at >= self.ordered_at)
        )

    @property
    def agreed(self) -> bool:
        """Whether the other node is known to know the record."""
        return self.s.witnessed or (self.heard is not None and self.heard.record == self.record)

    @property
    def calm_at(self) -> float:
        """When the pair has calmed down, if it fails over again and again; else long ago."""
        if not self.s.flap_window_s or len(self.turns) <= self.s.flap_limit:
            return float("-inf")
        return self.turns[0] + self.s.flap_window_s

    @property
    def abandoned_since(self) -> float:
        """Since when nothing at all is heard of the other node; later than now if it is."""
        return max(self.phase_since, self.spoken_at, self.detector.silent_at())

    @property
    def heard(self) -> PeerState | None:
        """The other node's state if it is alive and has come to know its own."""
        peer = self.peer
        if peer is None or peer.phase is Phase.INIT or self.silent:
            return None
        return peer

    @property
    def peer_gone(self) -> bool:
        """Whether the other node cannot be speaking: it said so, or was silent long enough."""
        if self.silent or self.peer_gave_up:
            return True
        return self.peer is not None and self.peer.phase is Phase.STANDBY

    @property
    def peer_gave_up(self) -> bool:
        """Whether the other node lost its copy of our session, beyond doubt."""
        return self.session is not None and (
            (self.peer is not None and self.peer.gave_up == self.session)
            or self.fenced == self.session
        )

    @property
    def may_hand_over(self) -> bool:
        """Whether the other node can take over and would do so by itself."""
        return self.peer_can_take_over and not self.paused and self.fence is None

    @property
    def peer_can_take_over(self) -> bool:
        """Whether the other node is alive and its secondary of our session is promotable."""
        peer = self.heard
        return (
            peer is not None
            and peer.following
            and peer.session == self.session
            and not self.peer_gave_up
        )

    # Verbs

    def go(self, phase: Phase) -> None:
        """Enter another phase. A move that the table lacks is a bug."""
        if phase not in TRANSITIONS[self.phase]:
            raise InvariantError(f"no way from {self.phase} to {phase}")
        self.phase = phase
        self.phase_since = self.now
        self.waiting = None
        self.waiting_until = None
        self.ordered = self.offered_at = None
        self.again_at = self.now
        self.tries = 0
        self.checked = False
        self.outcome = None
        self.actions.append(Beat())

    def lapse(self) -> None:
        """Give up an operator's order that could not be carried out, and say so."""
        self.ordered = None
        self.tell("order-lapsed", "the failover that was ordered is not possible", Severity.WARNING)
        self.withdraw()

    def withdraw(self) -> None:
        """End the offer of the VM, if one stands: no commit could be made meanwhile."""
        if self.offered_at is not None:
            self.offered_at = None
            self.committed_at = self.now
            self.actions.append(Beat())

    def wait(self, what: str, until: float | None = None) -> None:
        """Say what the phase waits for, and when to look again at the latest."""
        self.waiting = what
        self.waiting_until = until
        if until is not None:
            self.wake(until)

    def wake(self, at: float) -> None:
        """Ask for a step at `at`; what is due already was acted on in this step."""
        if at > self.now:
            self.wakes.append(at)

    def tell(self, kind: str, text: str, severity: Severity = Severity.INFO) -> None:
        """Tell the operator."""
        generation = self.record.generation if self.record else self.durable.generation
        self.actions.append(Tell(kind, severity, text, generation))

    def persist(self, durable: Durable) -> None:
        """Make `durable` what a restart will find."""
        if durable != self.durable:
            self.durable = durable
            self.actions.append(Persist(durable))

    def enter_generation(self) -> None:
        """Remember the record's generation as the one under which our QEMU runs."""
        assert self.record is not None
        self.persist(
            replace(
                self.durable,
                lineage=self.record.lineage,
                generation=self.record.generation,
                asked=self.durable.asked
                if self.durable.generation == self.record.generation
                else None,
            )
        )

    def give_up(self, session: int) -> None:
        """Remember, then say, that our copy of `session` is lost."""
        self.persist(replace(self.durable, gave_up=session))
        self.actions.append(Beat())

    def read_record(self) -> None:
        """Ask the witness for the record, unless it is being asked or has just failed."""
        if self.asking is not None or not self.s.witnessed:
            return
        if self.now < self.witness_retry_at:
            self.wake(self.witness_retry_at)
            return
        self.asking = ReadRecord()
        self.actions.append(self.asking)

    def hint(self) -> None:
        """Read the record soon: something suggests that it is no longer what we know."""
        due = REREAD_S + (self.read_at if self.read_at is not None else float("-inf"))
        if self.now >= due:
            self.read_record()
        else:
            self.wake(due)

    def watch_record(self) -> None:
        """Read the record now and then: a witness that fails must be known before it is needed."""
        due = WATCH_S + (self.read_at if self.read_at is not None else self.phase_since)
        if self.doubt or self.now >= due:
            self.read_record()
        else:
            self.wake(due)

    def swap_record(self, new: Record, by: str | None = None) -> None:
        """Ask for `new`; after a swap of unknown outcome, ask what the record is first.

        `by` is this node unless an operator asks.
        """
        by = by or self.s.me
        if self.doubt:
            self.read_record()
            return
        if self.asking is not None:
            return
        if self.now < self.witness_retry_at:
            self.wake(self.witness_retry_at)
            return
        problem = swap_problem(self.record, new, by)
        if problem is not None:
            raise InvariantError(f"swap of {self.record} to {new}: {problem}")
        self.asking = SwapRecord(self.record, new, by)
        self.actions.append(self.asking)

    def learn(self, record: Record | None) -> None:
        """Take in what the record is; a new generation is a turn of the pair's fate."""
        if self.record is not None and record and record.generation > self.record.generation:
            self.turns.append(self.now)
            while len(self.turns) > self.s.flap_limit + 1:
                self.turns.popleft()
        self.record = record

    def copy_record(self, record: Record) -> None:
        """Without a witness: remember `record` as what is known of the record."""
        self.learn(record)
        self.persist(replace(self.durable, record=record))
        self.actions.append(Beat())

    def have_fenced(self) -> None:
        """Have the other node's host switched off, unless that is under way or has just failed."""
        if self.fence is not None:
            return
        if self.now < self.fence_retry_at:
            self.wake(self.fence_retry_at)
            return
        self.fences += 1
        self.fence = Fence(self.fences)
        self.fence_asked_at = self.now
        self.fence_session = self.session
        self.tell("fencing", f"{self.s.peer}'s host is being switched off", Severity.WARNING)
        self.actions.append(self.fence)

    def start(self, script: Script, timeout_s: float) -> None:
        """Run a script."""
        self.scripts += 1
        self.script = RunScript(self.scripts, script, timeout_s, self.session)
        self.outcome = None
        self.actions.append(self.script)

    def finished(self, script: Script) -> ScriptDone | ScriptFailed | None:
        """Return how `script` ended, once, or None."""
        if self.outcome is None or self.outcome[0] is not script:
            return None
        outcome = self.outcome[1]
        self.outcome = None
        return outcome

    def new_number(self) -> int:
        """Return a number that was never used for this pair, of at most 63 bits."""
        self.sessions += 1
        return (self.s.incarnation << 20) | self.sessions
