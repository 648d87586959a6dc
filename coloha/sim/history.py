"""One history: from a seed to a verdict."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coloha.core.context import Fencing, OnSilence, Settings
from coloha.core.events import StartRequested
from coloha.core.phases import Phase
from coloha.sim.checkers import Violation
from coloha.sim.faults import FENCING, USUAL, Fault, draw, read
from coloha.sim.world import Line, World

SPAN_S = 3.0
"""Faults begin within this time."""
LEAST_S = 1.5
AGAIN_S = 20.0
"""Once all faults are over, the pair must be protected within this time."""
FENCE_FAULTS = 0.5
"""Share of the histories with fencing in which fencing has faults, too."""
DRIFT = 0.001
"""Clocks run too fast or too slow by up to this share."""


def _settings(**changes: float) -> Settings:
    quick = {"stall_timeout_s": 1.0, "cold_start_after_s": 3.0, "sync_timeout_s": 5.0}
    quick |= {"retry_max_s": 2.0} | changes
    return Settings(pair="vm", me="", peer="", first=False, incarnation=0, **quick)  # type: ignore[arg-type]


PROFILES = (
    _settings(interval_s=0.2, misses=3, period_s=0.3),
    _settings(interval_s=0.2, misses=3, period_s=0.1),
    _settings(interval_s=0.1, misses=5, period_s=0.05),
    _settings(interval_s=0.3, misses=4, period_s=0.5, restart_hold_s=1.0),
)
_WEIGHTS = (10, 2, 1, 4)


ARBITERS: dict[str, dict[str, object]] = {
    "witness": {},
    "witness-fence": {"fencing": Fencing.OPTIONAL},
    "witness-fence-required": {"fencing": Fencing.REQUIRED},
    "hold": {"witnessed": False},
    "hold-fence": {"witnessed": False, "fencing": Fencing.REQUIRED, "fence_delay_s": 3.0},
    "primary": {"witnessed": False, "on_silence": OnSilence.PRIMARY},
}
"""Who decides when the nodes do not hear each other, and what a pair has for it."""
_SHARES = (6, 2, 2, 3, 3, 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a history is made of. It decides all that happens."""

    seed: int
    settings: Settings
    rates: tuple[float, float]
    faults: tuple[Fault, ...]
    heal_at: float
    arbiter: str = "witness"


@dataclass(slots=True)
class Outcome:
    """What came of a history."""

    plan: Plan
    violation: Violation | None
    seen: Counter[str]
    """What happened in it, to show that it was no bed of roses."""
    lines: list[Line]


def decided_by(arbiter: str, profile: Settings) -> Settings:
    """Return a profile with what an arbiter needs."""
    return replace(profile, **ARBITERS[arbiter])  # type: ignore[arg-type]


def drawn_arbiter(seed: int) -> str:
    """Return what decides in the history of a seed, unless somebody chooses."""
    return _also(seed).choices(tuple(ARBITERS), _SHARES)[0]


def _also(seed: int) -> random.Random:
    """Return a source of choices beside the one for faults, which so stay what they were."""
    return random.Random(f"{seed} arbiter")  # noqa: S311 - it must be repeatable


def plan(
    seed: int,
    kinds: Sequence[str] = USUAL,
    text: str | None = None,
    arbiter: str = "witness",
) -> Plan:
    """Return the history of a seed, its faults of these kinds only, or those that `text` lists.

    Where hosts can be fenced, faults of fencing come on top.

    :raises PlanError: if the text cannot be read.
    """
    choose = random.Random(seed)  # noqa: S311 - it must be repeatable
    settings = decided_by(arbiter, choose.choices(PROFILES, _WEIGHTS)[0])
    rates = (1 + choose.uniform(-DRIFT, DRIFT), 1 + choose.uniform(-DRIFT, DRIFT))
    if text is not None:
        return Plan(seed, settings, rates, *read(text), arbiter)
    faults = draw(choose, kinds, SPAN_S)
    last = 0.0
    for fault in faults:
        begins = choose.uniform(LEAST_S, SPAN_S) if fault.moment else 0.0
        last = max(last, begins + fault.at + fault.lasts)
    heal_at = max(LEAST_S, min(last + 0.1, choose.uniform(LEAST_S, 2 * SPAN_S)))
    if settings.fencing is not Fencing.NONE:
        also = _also(seed)
        if also.random() < FENCE_FAULTS:
            faults += draw(also, FENCING, SPAN_S)[:2]
    return Plan(seed, settings, rates, faults, round(heal_at, 3), arbiter)


def live(planned: Plan, *, log: bool = False) -> Outcome:
    """Live through a history."""
    world = World(planned.seed, planned.settings, planned.rates, log)
    violation = None
    try:
        world.plan(planned.faults)
        world.run(planned.heal_at)
        world.heal()
        healed_at = world.now
        if not world.whenever(lambda: _well(world, healed_at), healed_at + AGAIN_S):
            text = f"not within {AGAIN_S:g} s, the record is {world.witness.record}"
            raise Violation("not-protected", text)
        world.settle()
    except Violation as broken:
        violation = broken
    except Exception as error:  # whatever it is, somebody must see it
        violation = Violation("crashed", f"{type(error).__name__}: {error}")
        violation.__cause__ = error
    if violation is not None:
        world.note("", f"BROKEN {violation}")
    return Outcome(planned, violation, _seen(world), world.lines or [])


def _well(world: World, healed_at: float) -> bool:
    """Whether the pair is protected and clients hear the VM."""
    for node in world.nodes.values():
        if node.daemon is not None and node.daemon.phase is Phase.OFF and node.qemu is None:
            node.daemon.post(StartRequested())  # an operator would
    return world.judge.whole() and world.judge.said_at > healed_at


def _seen(world: World) -> Counter[str]:
    judge = world.judge
    return world.tells + Counter(
        {
            "failovers": judge.failovers,
            "boots": judge.life,
            "late output": judge.stale,
            "virtual seconds": round(world.now),
        }
    )
