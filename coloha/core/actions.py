"""What the machine can ask for: every output of `PairMachine.step`.

The shell executes a batch in order and finishes each `Persist` before it begins the next action.
Everything else that takes time runs beside the pump and comes back as an event.
"""

from dataclasses import dataclass
from enum import StrEnum

from coloha.core.events import Durable, Run
from coloha.core.record import Record


class Script(StrEnum):
    """A sequence of QMP commands (`coloha.qemu.scripts`), named by what it achieves."""

    ADOPT = "adopt"
    """Find out what a running QEMU is doing. Result: `Adopted`."""
    CHECK = "check"
    """See whether QEMU answers at all."""
    ENTER_COLO = "enter-colo"
    """Primary: copy the VM over the channel of the session, until COLO runs."""
    ARM = "arm"
    """Primary: hold the output of every NIC (buffer B, then A)."""
    EPOCH = "epoch"
    """Primary: one checkpoint. Result: `Committed` or `Kept`."""
    RELEASE = "release"
    """Primary: let go what buffer B holds: the output up to the last commit."""
    LEAVE_COLO = "leave-colo"
    """Primary: end COLO, let go everything, remove the buffers; the guest runs."""
    ACCEPT_COLO = "accept-colo"
    """Secondary: take the channel of the session as the incoming migration."""
    AWAIT_COLO = "await-colo"
    """Secondary: until the first copy is loaded and COLO runs."""
    POWER_DOWN = "power-down"
    """Press the guest's power button."""
    PROMOTE = "promote"
    """Secondary: become the VM; open the output and announce it."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the durable state to the disk, fsync included, before anything else happens."""

    durable: Durable


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """Ask the witness for the record. Answer: `RecordRead` or `WitnessFailed`."""


@dataclass(frozen=True, slots=True)
class SwapRecord:
    """Ask the witness to replace `expected` by `new`, if the record is `expected`.

    Answer: `SwapDone`, `RecordRead` with the record that stood in the way, or `WitnessFailed`.
    """

    expected: Record | None
    new: Record
    by: str
    """The node that asks, or `OPERATOR`."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Start QEMU. Answer: `Launched` or `LaunchFailed`."""

    run: Run


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to QEMU. Answer, when it is seen dead: `QemuExited`."""

    run: Run


@dataclass(frozen=True, slots=True)
class RunScript:
    """Run a script, cutting short the one that runs. Answer: `ScriptDone` or `ScriptFailed`.

    `timeout_s` bounds each wait of the script for something that the other side has a part in.
    """

    number: int
    script: Script
    timeout_s: float
    session: int | None = None


@dataclass(frozen=True, slots=True)
class Invite:
    """Ask the other node for a secondary. Answer: `ChannelReady` or `ChannelFailed`."""

    session: int
    generation: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Tell the primary that the secondary of `session` is ready to receive."""

    session: int


@dataclass(frozen=True, slots=True)
class DropChannel:
    """Close the channel of `session`, telling the other end why, if it still listens."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Have the other node's host switched off, for certain. Answer: `FenceDone`."""

    number: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Send a heartbeat now: something changed that the other node should know."""


class Severity(StrEnum):
    """How loudly an occurrence is told."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the operator what happened: `kind` for machines, `text` for people."""

    kind: str
    severity: Severity
    text: str
    generation: int


Action = (
    Persist
    | ReadRecord
    | SwapRecord
    | Launch
    | Kill
    | RunScript
    | Invite
    | Admit
    | DropChannel
    | Fence
    | Beat
    | Tell
)
