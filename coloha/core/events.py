"""What the machine can be told: every input of `PairMachine.step`."""

from dataclasses import dataclass
from enum import StrEnum

from coloha.core.phases import Phase
from coloha.core.record import Record


class Role(StrEnum):
    """What a QEMU process was started as; a promoted secondary stays a `SECONDARY` run."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


@dataclass(frozen=True, slots=True)
class Run:
    """One QEMU process of this pair on this node.

    `session` is the protection session a secondary was started for; None for a primary.
    """

    id: str
    role: Role
    session: int | None = None


@dataclass(frozen=True, slots=True)
class Durable:
    """What a node must remember over its own restart, per pair.

    `generation` is the newest one under which a QEMU of this node ran. `gave_up` is the session of
    which this node lost its copy (R5, R6): the other node need not wait for it. `asked` is the
    session for which this node, as primary, asked the witness to say protected in that generation:
    such a swap may be made late, so the generation must end before output may flow freely again.
    `pauses` counts the operator's pauses and resumes, on both nodes together; see `Durable.paused`.
    `partings` counts the operator's unprotects and protects likewise; see `Durable.alone`.
    `record` is this node's copy of the record, if there is no witness that holds it (R7).
    """

    lineage: str | None = None
    generation: int = 0
    gave_up: int | None = None
    asked: int | None = None
    off: bool = False
    pauses: int = 0
    partings: int = 0
    record: Record | None = None

    @property
    def alone(self) -> bool:
        """Whether an operator wants the VM to have no secondary: the count is odd."""
        return self.partings % 2 == 1

    @property
    def paused(self) -> bool:
        """Whether an operator wants no automatic failover: the count is odd.

        Nodes that hear each other agree on the highest count, so neither needs to be told twice.
        """
        return self.pauses % 2 == 1


class Failure(StrEnum):
    """How a script ended that did not succeed."""

    REFUSED = "refused"
    """QEMU answered with an error."""
    SILENT = "silent"
    """This node's own QEMU did not answer in time; what was sent may still be executed."""
    STALLED = "stalled"
    """QEMU answered, but what needs the other side did not happen in time."""
    BROKEN = "broken"
    """QEMU reported that the migration or COLO ended."""
    LOST = "lost"
    """The QMP connection broke; what was sent may have been executed."""


@dataclass(frozen=True, slots=True)
class Started:
    """First event of all: what the disk remembers, and the QEMU found running, if any."""

    durable: Durable
    found: Run | None


@dataclass(frozen=True, slots=True)
class Timer:
    """The time `PairMachine.deadline` asked for has come."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a heartbeat says of one pair on the sending node.

    `generation` is of the newest record the sender knows; `owner` says whether that record names
    the sender as primary. `session` is the protection session it takes part in, `gave_up` the one
    whose copy it lost. `following`: its QEMU is in COLO as secondary and may be promoted. `pulse`
    grows with the machine's progress (a sender that stands still is not alive); `echo` is the
    newest pulse it heard from the receiver, 0 for none. `restarting`: the sender's daemon stops and
    means to be back. `pauses` and `partings` are those of `Durable`.

    `offers`: an operator wants the receiver to take over the session, and this is the time.

    Without a witness: `record` is the sender's copy of the record. `living`: it has a QEMU of this
    pair. `claims`: it goes on alone if it can. To a primary whose QEMU lives the receiver is to
    give up its copy of `session`; a secondary is having the receiver's host switched off.
    """

    phase: Phase
    generation: int
    owner: bool
    session: int | None
    gave_up: int | None
    following: bool
    colo_exited: bool
    committed: int
    pulse: int
    echo: int
    restarting: bool = False
    pauses: int = 0
    partings: int = 0
    record: Record | None = None
    living: bool = False
    claims: bool = False
    offers: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat of the other node."""

    peer: PeerState


@dataclass(frozen=True, slots=True)
class Unattended:
    """The other node's host answered that nobody listens there: it lives, its daemon is away."""


@dataclass(frozen=True, slots=True)
class RecordRead:
    """The witness answered a read, or a swap that it refused because the record is another one."""

    record: Record | None


@dataclass(frozen=True, slots=True)
class SwapDone:
    """The witness made `record` the record."""

    record: Record


@dataclass(frozen=True, slots=True)
class WitnessFailed:
    """The witness was asked in vain; `unknown` if a swap may have been, or may yet be, made."""

    reason: str
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Launched:
    """QEMU runs and answers."""

    run: Run


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """QEMU could not be started, and no process of this run is left."""

    run: Run
    reason: str


@dataclass(frozen=True, slots=True)
class QemuExited:
    """The QEMU process will never run again, beyond doubt; `complaint` is what it said last."""

    run: Run
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class ScriptDone:
    """Script `number` ended as it should; `result` is its own."""

    number: int
    result: object = None


@dataclass(frozen=True, slots=True)
class ScriptFailed:
    """Script `number` did not succeed."""

    number: int
    failure: Failure
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """Result of an epoch whose checkpoint the secondary has loaded. `pause_s`: STOP to RESUME."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Kept:
    """Result of an epoch after which nothing may be released, though COLO goes on."""

    reason: str


class ColoMode(StrEnum):
    """What `query-colo-status` calls `mode`."""

    NONE = "none"
    PRIMARY = "primary"
    SECONDARY = "secondary"


@dataclass(frozen=True, slots=True)
class Adopted:
    """Result of adopting a running QEMU."""

    colo: ColoMode


@dataclass(frozen=True, slots=True)
class ColoExited:
    """QEMU sent COLO_EXIT. Its reason is not told: it is racy (see docs/design.md)."""


@dataclass(frozen=True, slots=True)
class GuestShutdown:
    """The guest switched itself off, or `panicked`, as it says itself; QEMU is about to exit."""

    panicked: bool = False


@dataclass(frozen=True, slots=True)
class CopyBad:
    """The secondary failed to load a checkpoint: its memory is neither old nor new (R5)."""

    reason: str


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """A disk of this node's guest missed a write, on this node or the other one."""

    reason: str
    behind: bool
    """This node's image lacks what the other one has, and the guest believes in it."""


@dataclass(frozen=True, slots=True)
class Invited:
    """The primary asks this node to prepare a secondary.

    `problem` says why this node cannot, as far as the shell can see: too little memory, pair files
    that differ.
    """

    session: int
    generation: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelReady:
    """The other node has a secondary waiting at the far end of the channel of `session`."""

    session: int


@dataclass(frozen=True, slots=True)
class ChannelFailed:
    """There will be no channel for `session`."""

    session: int
    reason: str


class Fenced(StrEnum):
    """How an attempt to have the other node's host switched off ended."""

    CONFIRMED = "confirmed"
    """It is off, or was restarted: nothing that ran there runs any more."""
    FAILED = "failed"
    """It was not done."""
    UNKNOWN = "unknown"
    """It may have been done, or may yet be."""


@dataclass(frozen=True, slots=True)
class FenceDone:
    """Fencing `number` ended; `reason` says how, in words."""

    number: int
    outcome: Fenced
    reason: str


@dataclass(frozen=True, slots=True)
class PeriodChanged:
    """The configuration now asks for another checkpoint period, seconds."""

    period_s: float


@dataclass(frozen=True, slots=True)
class StartRequested:
    """An operator wants a VM that is off, or halted, to run."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The daemon is about to stop and means to be back: begin nothing, ask the other to wait."""


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """An operator wants no automatic failover, or wants it again."""

    paused: bool


@dataclass(frozen=True, slots=True)
class FailoverRequested:
    """An operator wants the VM on the other node, or, `forced`, on this one at any price.

    `generation` is the one of the record that the operator was shown: in another one the order
    means nothing. `vouched`: the operator has seen to it that the other host is off, so it need not
    be fenced first. `gently`: after one more commit, with nothing held back that clients wait for.
    """

    forced: bool
    generation: int
    vouched: bool = False
    gently: bool = False


@dataclass(frozen=True, slots=True)
class ProtectRequested:
    """An operator wants the VM protected, the next attempt now."""


@dataclass(frozen=True, slots=True)
class UnprotectRequested:
    """An operator wants the VM to have no secondary, until it is to be protected again."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """An operator wants the VM off: the guest is asked to switch itself off, or, `hard`, it is
    switched off at once.
    """

    hard: bool


Event = (
    Started
    | Timer
    | Heard
    | Unattended
    | RecordRead
    | SwapDone
    | WitnessFailed
    | Launched
    | LaunchFailed
    | QemuExited
    | ScriptDone
    | ScriptFailed
    | ColoExited
    | GuestShutdown
    | CopyBad
    | DiskFailed
    | Invited
    | ChannelReady
    | ChannelFailed
    | FenceDone
    | PeriodChanged
    | StartRequested
    | Leaving
    | PauseRequested
    | FailoverRequested
    | ProtectRequested
    | UnprotectRequested
    | StopRequested
)
