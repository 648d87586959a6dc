"""Words for what happens to a pair: of an event, of a move between phases, of a length of time."""

from datetime import UTC, datetime

from coloha.core.actions import Script
from coloha.core.context import Settings
from coloha.core.phases import Phase
from coloha.core.record import Record

_P = Phase

_MOVES: dict[tuple[Phase | None, Phase], str] = {
    (_P.INIT, _P.YIELDED): "{me} has no QEMU although the record says protected: {peer} may take "
    "over",
    (_P.CLAIM, _P.FOLLOW): "{me} does not take over: it follows on",
    (_P.DEFEND, _P.PROTECTED): "nothing was decided, and {peer} is heard again: protected as "
    "before",
    (_P.ADOPT, _P.PROTECTED): "{me} goes on with the epochs of the QEMU that it found",
    (_P.ADOPT, _P.FOLLOW): "{me} follows {peer} with the QEMU that it found",
    (_P.BOOT, _P.SOLO): "the VM has booted on {me}; its output is open; it is not protected yet",
    (_P.PROMOTE, _P.SOLO): "the copy on {me} is the VM now: clients hear it",
    (_P.LEAVE, _P.SOLO): "the VM runs on {me} alone; its output is open",
    (_P.INVITE, _P.SOLO): "the attempt to protect failed",
    (_P.YIELDED, _P.STANDBY): "{peer} has the VM; {me} is ready to follow it",
    (None, _P.INIT): "{me} asks the witness where it stands",
    (None, _P.ADOPT): "{me} asks the QEMU that it found what it is doing",
    (None, _P.STANDBY): "{me} has no QEMU and waits for an invitation of {peer}",
    (None, _P.BOOT): "the VM belongs to {me} alone: {me} starts it",
    (None, _P.INVITE): "{me} asks {peer} to prepare a secondary",
    (None, _P.SYNC): "{peer} is ready: the VM's memory is being copied to it",
    (None, _P.ARM): "the first copy is there: from now on {me} holds the output until {peer} has "
    "the state behind it",
    (None, _P.PROTECTED): "protected: {peer} may take over",
    (None, _P.DEFEND): "{me} holds the output until it is decided who goes on",
    (None, _P.LEAVE): "{me} alone may speak: it ends COLO and opens the output",
    (None, _P.YIELDED): "{me} has no QEMU any more: {peer} may take over at once",
    (None, _P.PREPARE): "{peer} asked for a secondary: {me} starts one",
    (None, _P.LOAD): "the secondary on {me} receives the first copy of the VM",
    (None, _P.FOLLOW): "{me} holds a copy of the VM and follows {peer}",
    (None, _P.CLAIM): "{me} prepares to take over",
    (None, _P.PROMOTE): "the generation is {me}'s: its copy becomes the VM",
    (None, _P.KILL): "{me} kills its QEMU",
    (None, _P.OFF): "the guest is off",
    (None, _P.HALTED): "{me} cannot decide: an operator must",
}

_WORKS = {
    Script.ADOPT: "to say what it is doing",
    Script.CHECK: "for a sign of life",
    Script.ENTER_COLO: "to copy the VM",
    Script.ARM: "to hold the output",
    Script.EPOCH: "to make a checkpoint",
    Script.RELEASE: "to let the output go",
    Script.LEAVE_COLO: "to end COLO",
    Script.ACCEPT_COLO: "to take the channel",
    Script.AWAIT_COLO: "to receive the copy",
    Script.PROMOTE: "to become the VM",
    Script.POWER_DOWN: "to press the guest's power button",
}


def move(before: Phase, after: Phase, settings: Settings) -> str:
    """Return a sentence for a move between phases; any phase has one."""
    text = _MOVES.get((before, after)) or _MOVES.get((None, after))
    if text is None:
        text = f"{{me}} went from phase {before} to {after}"
    return text.format(me=settings.me, peer=settings.peer)


def work(script: Script) -> str:
    """Return what QEMU was asked to do."""
    return _WORKS.get(script, f"to do {script}")


def meaning(record: Record | None) -> str:
    """Return what a record says."""
    if record is None:
        return "there is no record yet"
    if record.secondary is None:
        return f"generation {record.generation} is {record.primary}'s alone"
    return (
        f"generation {record.generation} is {record.primary}'s, and {record.secondary} may take "
        "over"
    )


def request(record: Record) -> str:
    """Return what the witness is asked for."""
    if record.secondary is None:
        return f"generation {record.generation}, for {record.primary} alone"
    return f"a record that lets {record.secondary} take over"


def died(owner: str, complaint: str) -> str:
    """Return how a QEMU died."""
    return f"{owner}'s QEMU died ({complaint or 'it left no message'})"


def length(seconds: float) -> str:
    """Return a length of time."""
    if seconds < 0.0095:
        return f"{max(seconds, 0.0) * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def clock(at: float) -> str:
    """Return the time of day, UTC, to the millisecond; `at` is seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="milliseconds")[11:23]


def day(at: float) -> str:
    """Return the date, UTC."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()
