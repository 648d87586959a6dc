"""Faults at every step of a history instead of at random ones.

A history without faults is lived through once, step by step. Then it is repeated with a fault right
before each of its steps: up to there it is the same. With two faults, the second comes right before
each step of what followed from the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from coloha.sim.faults import KINDS, NODES, PAIR, USUAL, Fault
from coloha.sim.history import PROFILES, Plan, decided_by
from coloha.sim.world import World

CRASHES = ("qemu-crash", "daemon-crash", "host-crash", "cut")
"""The kinds that are tried two at a time if no others are asked for."""
WINDOW_S = 0.8
"""How much of what follows from a first fault is tried with a second one: all of a failover."""
QUIET_S = 20.0
_ENDS_WELL_S = 0.05


def one_fault(seed: int, kinds: Sequence[str] = USUAL, arbiter: str = "witness") -> Iterator[Plan]:
    """Yield histories with one fault: each kind before each step, the bring-up included."""
    quiet = _quiet(seed, arbiter)
    for at in _steps(quiet, 0.0, quiet.heal_at):
        for fault in _faults(at, kinds):
            yield _with(quiet, fault)


def two_faults(
    seed: int, kinds: Sequence[str] = CRASHES, arbiter: str = "witness"
) -> Iterator[Plan]:
    """Yield histories with two faults, the first at each step of an epoch of a protected pair."""
    quiet = _quiet(seed, arbiter)
    for at in _steps(quiet, quiet.heal_at - quiet.settings.period_s, quiet.heal_at):
        for first in _faults(at, kinds):
            begun = _with(quiet, first)
            for then in _steps(begun, at, at + WINDOW_S):
                for second in _faults(then, kinds):
                    yield _with(begun, second)


def _quiet(seed: int, arbiter: str) -> Plan:
    """Return the history without faults, up to the end of the first epoch of a protected pair."""
    settings, rates = decided_by(arbiter, PROFILES[0]), (1.0, 1.0)
    world = World(seed, settings, rates)
    assert world.whenever(world.judge.whole, QUIET_S), "nothing is in its way"
    return Plan(seed, settings, rates, (), world.now + settings.period_s, arbiter)


def _with(planned: Plan, fault: Fault) -> Plan:
    heal_at = max(planned.heal_at, fault.at + fault.lasts + _ENDS_WELL_S)
    return replace(planned, faults=(*planned.faults, fault), heal_at=heal_at)


def _steps(planned: Plan, begin: float, end: float) -> list[float]:
    """Return the times of the steps of a history from `begin` to `end`."""
    world = World(planned.seed, planned.settings, planned.rates)
    world.plan(planned.faults)
    return [at for at in dict.fromkeys(world.steps(end)) if at >= begin]


def _faults(at: float, kinds: Sequence[str]) -> Iterator[Fault]:
    for name in kinds:
        kind = KINDS[name]
        for target in (PAIR,) if kind.pair else NODES:
            lasts = (kind.lasts[0] + kind.lasts[1]) / 2
            yield Fault(at, name, target, lasts, (kind.share[0] + kind.share[1]) / 2)
