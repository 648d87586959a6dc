"""The real machine as a value: two machines with equal values behave alike from now on.

A `PairMachine` between two steps becomes a tuple, and a tuple a machine that makes the next step.
So that equal futures are equal values, times are kept relative to the present instant, numbers
that only have to differ are counted anew, and what no decision looks at is wiped:

    pulses           the machine's own begins at `PULSE` again; `Step.made` says how many were made
    scripts          the one that runs is number 1, and so is the fencing that is under way
    commits          none or some; epochs that did not commit: none, one, several
    waits            one that is over is over, however long
    orders           there are none: what only matters to them is wiped
    turns            dropped: there is no flap limit in what is explored
    since when       wiped where it is no longer, or not now, looked at
    for people only  words, what is waited for, pauses of the guest, since when output is held

A step is made once for each (machine, event) and then looked up.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Generic, TypeVar, get_type_hints

from coloha.core.actions import Action, Fence
from coloha.core.context import Context, InvariantError, Settings
from coloha.core.detector import Detector, Pulse
from coloha.core.events import Durable, Event, PeerState, Started, Timer
from coloha.core.machine import PairMachine, State
from coloha.core.pacing import Backoff, Pacing
from coloha.core.phases import Phase
from coloha.core.primary import HUNG, YIELD_REREAD_S

INSTANT_S = 0.5
"""Time passes by so much at once: half an interval between heartbeats."""
PULSE = 1 << 20
"""What every machine's newest pulse is called."""
TIMER = Timer()

_NOW = 0.001
"""When a step is made: a little after everything that happened in the same instant."""
_ORDER = 0.0004
"""Tells what came before and after a read of the record, within one instant."""
_LONG_AGO = float("-inf")
_OLD = -100.0
"""Long ago, and yet after that."""

_TIMES: dict[type, tuple[str, ...]] = {
    Context: (
        *(
            "phase_since",
            "ordered_at",
            "offered_at",
            "read_at",
            "witness_retry_at",
            "spoken_at",
            "invited_at",
        ),
        *("protect_at", "boot_at", "again_at", "committed_at"),
        *("fence_asked_at", "fence_retry_at", "fence_failed_at", "fenced_at"),
    ),
    Detector: ("heard_at", "hold_until"),
    Pulse: ("echoed_at",),
    Pacing: ("started_at", "ended_at"),
    Backoff: (),
}
"""What is a point in time. Deadlines and `Pulse._made` are handled where they are used."""

_WIPED = {"now": 0.0, "waiting": None, "waiting_until": None, "pause_s": None}
_DURATIONS = {
    "held_since",
    "pause_s",
    "interval_s",
    "_credited_s",
    "period_s",
    "min_s",
    "max_s",
    "_next_s",
}
_OVER_IS_OVER = ("protect_at", "boot_at", "again_at", "witness_retry_at", "fence_retry_at")
"""Only ever compared with the present."""
_ORDERED = ("phase_since", "invited_at", "fence_failed_at")
"""Compared with `read_at`, as is the detector's `heard_at`, or with each other."""

_CONTAINERS: dict[str, type] = {"turns": deque, "_made": deque, "actions": list, "wakes": list}

Frozen = tuple[Any, ...]

T = TypeVar("T", bound=Hashable)


class Table(Generic[T]):
    """Things told apart by number; 0 is None."""

    def __init__(self) -> None:
        self._things: list[Any] = [None]
        self._numbers: dict[T | None, int] = {None: 0}

    def number(self, thing: T | None) -> int:
        """Return the number of a thing."""
        found = self._numbers.get(thing)
        if found is None:
            found = self._numbers[thing] = len(self._things)
            self._things.append(thing)
        return found

    def __getitem__(self, number: int) -> Any:
        return self._things[number]


@cache
def _names(kind: Any) -> tuple[str, ...]:
    """Return the fields of a part of the state, every float among them being understood."""
    hints = get_type_hints(kind)
    known = {*_TIMES[kind], *_WIPED, *_DURATIONS}
    for name, hint in hints.items():
        if "float" in str(hint) and name not in known | _CONTAINERS.keys():
            raise TypeError(f"{kind.__name__}.{name}: a time or a duration? Say it in {__name__}")
    return tuple(field.name for field in fields(kind))


def _pack(value: Any) -> Any:
    kind: Any = type(value)
    if kind in _TIMES:
        return (kind, *(_pack(getattr(value, name)) for name in _names(kind)))
    if type(value) is deque:
        return tuple(value)
    return () if type(value) is list else value


def _unpack(packed: Any) -> Any:
    if type(packed) is not tuple or not packed or packed[0] not in _TIMES:
        return packed
    kind = packed[0]
    made = kind.__new__(kind)
    for name, value in zip(_names(kind), packed[1:], strict=True):
        container = _CONTAINERS.get(name)
        setattr(made, name, container(value) if container else _unpack(value))
    return made


def _moved(c: Context, by_s: float) -> None:
    """Shift every point in time, onto the grid of what is explored."""
    parts = [(c, name) for name in _ORDERED] + [(c.detector, "heard_at")]
    orders = [_order(getattr(part, name), c.read_at) for part, name in parts]
    for part in (c, c.detector, c.pulse, c.pacing):
        for name in _TIMES[type(part)]:
            at = getattr(part, name)
            if at is not None:
                setattr(part, name, round(at - by_s, 2))
    for (part, name), order in zip(parts, orders, strict=True):
        setattr(part, name, getattr(part, name) + order)
    made = [(number, round(at - by_s, 2)) for number, at in c.pulse._made]
    c.pulse._made = deque(made)


def _order(at: float, read_at: float | None) -> float:
    """Return by how much `at` is moved off the grid: before or after a read in its instant."""
    if read_at is None or round(at, 2) != round(read_at, 2) or at == read_at:
        return 0.0
    return _ORDER if at > read_at else -_ORDER


def _canonical(c: Context) -> None:
    """Wipe what no decision looks at, and count anew what only has to differ."""
    c.actions, c.wakes = [], []
    c.turns.clear()
    for name, value in _WIPED.items():
        setattr(c, name, value)
    for name in _OVER_IS_OVER:
        if getattr(c, name) <= 0:
            setattr(c, name, _LONG_AGO)
    if not c.s.witnessed:
        c.read_at = None  # every step begins by setting it
    _canonical_fencing(c)
    if c.held_since is not None:
        c.held_since = 0.0
    if c.invited is None:
        c.invited_at = _LONG_AGO
    _canonical_words(c)
    _canonical_waits(c)
    if c.script is not None:
        c.script = replace(c.script, number=1)
    c.scripts = int(c.script is not None)
    c.committed, c.kept = min(c.committed, 1), min(c.kept, 2)
    if c.peer is not None:
        c.peer = _worded(c.peer)
    pacing = c.pacing
    if pacing.due_at() <= 0:
        pacing.started_at = pacing.ended_at = _LONG_AGO
    for backoff in (c.protect_backoff, c.boot_backoff, c.fence_backoff):
        backoff._next_s = 0.0 if backoff.min_s == backoff.max_s else backoff._next_s


def _canonical_words(c: Context) -> None:
    if c.trouble not in (HUNG, f"{c.s.peer} is silent"):
        c.trouble = None
    if isinstance(c.channel, str):
        c.channel = ""


def _canonical_waits(c: Context) -> None:
    """Wipe since when something lasts, where that is no longer, or not now, looked at."""
    if c.phase not in (Phase.ARM, Phase.PROTECTED):
        c.committed_at, c.kept = 0.0, 0
    silent_at = c.detector.silent_at()
    if c.spoken_at <= silent_at:
        c.spoken_at = _LONG_AGO
    longest_s = max(c.detector.detection_s, c.s.stall_timeout_s, YIELD_REREAD_S)
    read = not c.s.witnessed or (c.read_at is not None and c.phase_since < c.read_at)
    if read and c.phase_since <= min(-longest_s, silent_at):
        c.phase_since = _OLD


def _canonical_fencing(c: Context) -> None:
    c.ordered_at, c.fenced_at, c.fence_asked_at = 0.0, _LONG_AGO, _LONG_AGO
    if c.fence is not None:
        c.fence = Fence(1)
    else:
        c.fence_session = None
    c.fences = int(c.fence is not None)
    if c.fence_failed_at < c.phase_since:
        c.fence_failed_at = _LONG_AGO


def _pulses(c: Context) -> int:
    """Count the own pulses from `PULSE` again; return how many were made since."""
    pulse = c.pulse
    made = pulse.number - PULSE
    pulse.number = PULSE
    since = pulse.echoed_at if pulse.echoed_at is not None else _LONG_AGO
    kept = [(number - made, at) for number, at in pulse._made if at > since]
    last = [(number - made, at) for number, at in pulse._made][-1:]
    pulse._made = deque(kept or last)
    if c.detector.pulse is not None:
        c.detector.pulse = 1
    return made


def _worded(wire: PeerState) -> PeerState:
    """Return what a heartbeat says, without its pulses, which are told apart elsewhere."""
    return replace(wire, pulse=0, echo=0, committed=0)


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a step: the next machine, and what to do."""

    mind: int
    actions: tuple[Action, ...]
    made: int
    """How many pulses."""
    error: str | None = None
    """The promise that the machine saw itself about to break."""


class Minds:
    """All machines met so far, by number, and what came of their steps."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Frozen, float], int] = {}
        self._values: list[tuple[Frozen, float]] = []
        self._steps: dict[tuple[int, int], Step] = {}
        self._later: dict[int, int] = {}
        self._wires: list[int] = []
        self._phases: list[Phase] = []
        self._durable: list[Durable] = []
        self.events: Table[Event] = Table()
        self.wires: Table[PeerState] = Table()
        self.made = 0
        """Steps of real machines that were made, not looked up."""

    def __len__(self) -> int:
        return len(self._values)

    def begin(self, settings: Settings, started: Started) -> Step:
        """Return the first step of a daemon's new life."""
        return self._step(PairMachine(settings, _NOW), started)

    def step(self, mind: int, event: int) -> Step:
        """Return what comes of an event of `events`."""
        key = mind, event
        found = self._steps.get(key)
        if found is None:
            found = self._steps[key] = self._step(self._thaw(mind), self.events[event])
        return found

    def _step(self, machine: PairMachine, event: Event) -> Step:
        self.made += 1
        try:
            actions = tuple(machine.step(event, _NOW))
        except InvariantError as error:
            return Step(-1, (), 0, str(error))
        wire = _worded(machine.snapshot().wire)
        state = machine.state()
        c = state.context
        _moved(c, 0.0)
        _canonical(c)
        made = _pulses(c)
        return Step(
            self._number(c, round(state.deadline, 2), self.wires.number(wire)), actions, made
        )

    def later(self, mind: int) -> int:
        """Return the machine after an instant has passed."""
        found = self._later.get(mind)
        if found is None:
            state = self._thaw(mind).state()
            c = state.context
            _moved(c, INSTANT_S)
            _canonical(c)
            deadline = round(state.deadline - INSTANT_S, 2)
            found = self._later[mind] = self._number(c, deadline, self._wires[mind])
        return found

    def _number(self, c: Context, deadline: float, wire: int) -> int:
        value = _pack(c), deadline
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self._values)
            self._values.append(value)
            self._wires.append(wire)
            self._phases.append(c.phase)
            self._durable.append(c.durable)
        return number

    def _thaw(self, mind: int) -> PairMachine:
        packed, deadline = self._values[mind]
        return PairMachine.resume(State(_unpack(packed), deadline))

    def due(self, mind: int) -> bool:
        """Whether the machine's timer has run out."""
        return self._values[mind][1] <= 0

    def wire(self, mind: int) -> int:
        """Return which of `wires` its heartbeats carry, pulses apart."""
        return self._wires[mind]

    def phase(self, mind: int) -> Phase:
        """Return its phase."""
        return self._phases[mind]

    def durable(self, mind: int) -> Durable:
        """Return what it wants to remember over its end."""
        return self._durable[mind]
