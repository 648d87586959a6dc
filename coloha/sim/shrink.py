"""From a history that broke a promise to the fewest faults that still break it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from coloha.sim.faults import Fault
from coloha.sim.history import Outcome, Plan, live


def shrink(outcome: Outcome, relive: Callable[[Plan], Outcome] = live) -> Outcome:
    """Return the shortest history found that breaks the same promise as `outcome`.

    Leaves out faults, halves by halves and one by one, as long as that goes (delta debugging), then
    shortens those that last.
    """
    assert outcome.violation is not None
    best = outcome
    name = outcome.violation.name

    def tried(faults: Sequence[Fault]) -> bool:
        nonlocal best
        made = relive(replace(outcome.plan, faults=tuple(faults)))
        if made.violation is None or made.violation.name != name:
            return False
        best = made
        return True

    size = max(1, len(best.plan.faults) // 2)
    while size:
        size = size if _leave_out(best.plan.faults, size, tried) else size // 2
    for place, fault in enumerate(best.plan.faults):
        for lasts in (0.0, round(fault.lasts / 4, 3), round(fault.lasts / 2, 3)):
            changed = replace(fault, lasts=lasts)
            faults = best.plan.faults
            if fault.lasts and tried((*faults[:place], changed, *faults[place + 1 :])):
                break
    return best


def _leave_out(
    faults: tuple[Fault, ...], size: int, tried: Callable[[Sequence[Fault]], bool]
) -> bool:
    """Leave out the first `size` neighbours that are not needed; return whether there were any."""
    for start in range(0, len(faults), size):
        if tried((*faults[:start], *faults[start + size :])):
            return True
    return False
