"""The state machine of one pair on one node.

    actions = machine.step(event, now)      what to do about it
    machine.deadline()                      when to send a `Timer`, if nothing happens before
    machine.snapshot()                      what to tell the world

`now` is monotonic seconds and never decreases. The same events at the same times give the same
actions: a record of them explains, and repeats, every decision.

A step takes in the event (`absorb.py`), then lets the phase act on the facts, again and again until
the phase stays the same. After each step the promises are checked (`invariants.py`); a machine that
would break one raises `InvariantError` and must not be used again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coloha.core import common, primary, secondary
from coloha.core.absorb import absorb
from coloha.core.actions import Action
from coloha.core.context import Context, InvariantError, Settings
from coloha.core.detector import Detector, Pulse
from coloha.core.events import Event, PeerState
from coloha.core.invariants import check
from coloha.core.pacing import Pacing
from coloha.core.phases import TRANSITIONS, Phase
from coloha.core.snapshot import Snapshot, take, wire

ORDER_S = 5.0
"""How long an operator's order stands that could not be carried out at once."""

MAX_MOVES = 16
"""More changes of phase in one step than any chain of events can cause."""

_ACT: dict[Phase, Callable[[Context], None]] = {
    Phase.INIT: common.init,
    Phase.ADOPT: common.adopt,
    Phase.STANDBY: common.standby,
    Phase.BOOT: primary.boot,
    Phase.SOLO: primary.solo,
    Phase.INVITE: primary.invite,
    Phase.SYNC: primary.sync,
    Phase.ARM: primary.arm,
    Phase.PROTECTED: primary.protected,
    Phase.DEFEND: primary.defend,
    Phase.LEAVE: primary.leave,
    Phase.YIELDED: primary.yielded,
    Phase.PREPARE: secondary.prepare,
    Phase.LOAD: secondary.load,
    Phase.FOLLOW: secondary.follow,
    Phase.CLAIM: secondary.claim,
    Phase.PROMOTE: secondary.promote,
    Phase.KILL: common.kill,
    Phase.OFF: common.off,
    Phase.HALTED: common.halted,
}

_UNHURRIED = frozenset({Phase.KILL, Phase.HALTED})
"""Phases that being overtaken does not change."""

_MAY_SWITCH_OFF = frozenset(
    phase for phase, successors in TRANSITIONS.items() if Phase.OFF in successors
) - {Phase.INIT}

_MAY_BE_INVITED = frozenset(
    {
        Phase.INIT,
        Phase.KILL,
        Phase.STANDBY,
        Phase.PREPARE,
        Phase.LOAD,
        Phase.FOLLOW,
        Phase.CLAIM,
    }
)


@dataclass(frozen=True, slots=True)
class State:
    """All that a machine's next decisions depend on. The context is its own, and changes."""

    context: Context
    deadline: float


class PairMachine:
    """Decides for one pair on one node. See the module's docstring."""

    def __init__(self, settings: Settings, now: float) -> None:
        """Begin at `now`; the first event must be `Started`."""
        detector = Detector(settings.interval_s, settings.misses, heard_at=now)
        pulse = Pulse(settings.interval_s, settings.misses, settings.incarnation << 20)
        self._context = Context(settings, detector, pulse, Pacing(settings.period_s), now=now)
        self._deadline = now + settings.interval_s

    @classmethod
    def resume(cls, state: State) -> "PairMachine":
        """Return a machine that goes on from `state`, which from now on is its own."""
        machine = cls.__new__(cls)
        machine._context, machine._deadline = state.context, state.deadline
        return machine

    def state(self) -> State:
        """Return the whole state, to be copied before the next step."""
        return State(self._context, self._deadline)

    def step(self, event: Event, now: float) -> list[Action]:
        """Take in `event` at `now`; return what is to be done, in order.

        :raises InvariantError: for a bug; the machine must not be used again.
        """
        c = self._context
        c.now = max(now, c.now)
        c.actions = []
        c.wakes = []
        c.pulse.step(c.now)
        self._notice_stall()
        if not c.s.witnessed:
            c.read_at = c.now  # a copy on the own disk is never out of date
        absorb(c, event)
        self._act()
        check(c)
        self._rearm()
        return c.actions

    def deadline(self) -> float:
        """Return when the next `Timer` is due."""
        return self._deadline

    def snapshot(self) -> Snapshot:
        """Return what there is to see."""
        return take(self._context)

    def wire(self) -> PeerState:
        """Return what heartbeats tell: the snapshot's part of that name."""
        return wire(self._context)

    def _notice_stall(self) -> None:
        """A step that comes late means that this node could not listen either."""
        c = self._context
        late_s = c.now - self._deadline
        if late_s > c.s.interval_s / 2:
            c.detector.stalled(c.now, late_s)

    def _act(self) -> None:
        c = self._context
        if c.ordered is not None and c.fence is None and c.now >= c.ordered_at + ORDER_S:
            c.lapse()
        for _ in range(MAX_MOVES):
            before = c.phase
            if c.run is not None and c.phase not in _UNHURRIED and common.overtaken(c):
                c.trouble = f"{c.s.peer} speaks for the VM now"
                c.tell("overtaken", f"{c.trouble}: this node's QEMU is killed")
                c.go(Phase.KILL)
            if c.phase in _MAY_SWITCH_OFF and common.switched_off(c):
                continue
            if c.invited is not None and c.phase not in _MAY_BE_INVITED:
                common.refuse(c, c.invited.session, f"{c.s.me} is in phase {c.phase}")
                c.invited = None
            _ACT[c.phase](c)
            if c.phase is before:
                return
        raise InvariantError(f"{MAX_MOVES} moves in one step, the last to {c.phase}")

    def _rearm(self) -> None:
        """The next step is due at the earliest wish, and at least once an interval (pulse)."""
        c = self._context
        silent_at = c.detector.silent_at()
        if silent_at > c.now:
            c.wakes.append(silent_at)
        c.wakes.append(c.now + c.s.interval_s)
        self._deadline = min(c.wakes)
