"""The promises, checked after each step, in production too. A breach stops the pair, held."""

from coloha.core.actions import Fence, Launch, RunScript, Script, SwapRecord
from coloha.core.context import Context, Fencing, InvariantError
from coloha.core.events import Role
from coloha.core.phases import SPEAKING, Phase
from coloha.core.record import swap_problem


def check(c: Context) -> None:
    """Raise `InvariantError` if the step that just ended would break a promise."""
    for action in c.actions:
        problem = None
        if isinstance(action, RunScript):
            problem = _script_problem(c, action)
        elif isinstance(action, SwapRecord):
            problem = swap_problem(action.expected, action.new, action.by)
            if not c.s.witnessed:
                problem = "R7: there is no witness to be asked"
        elif isinstance(action, Fence) and c.s.fencing is Fencing.NONE:
            problem = "no way to fence is known"
        elif isinstance(action, Launch) and action.run.role is Role.PRIMARY and not c.owned:
            problem = "a VM is started only by the node that the record names alone"
        if problem is not None:
            raise InvariantError(f"{action}: {problem}")
    if c.phase in SPEAKING and not (c.owned or c.guarded or _asking_for_protection(c)):
        raise InvariantError(f"{c.phase} under {c.record}")
    if c.phase in SPEAKING and c.record and c.record.generation != c.durable.generation:
        raise InvariantError(f"{c.phase} in {c.durable.generation} under {c.record}")


def _asking_for_protection(c: Context) -> bool:
    """In ARM the answer may be out: the output goes commit by commit, which is safe either way."""
    record = c.record
    return c.phase is Phase.ARM and record is not None and record.primary == c.s.me


def _script_problem(c: Context, action: RunScript) -> str | None:
    if action.script is Script.PROMOTE and not c.owned:
        return "R2: only the winner of a generation promotes"
    if action.script is Script.LEAVE_COLO and not c.owned:
        return "R2: output opens only for the one node that may speak"
    if action.script is Script.RELEASE:
        if c.phase not in (Phase.ARM, Phase.PROTECTED):
            return "output is released only between a commit and the next epoch"
        if c.committed == 0:
            return "nothing was committed"
        if c.now >= c.pulse.lease_until():
            return "the other node may have taken over"
    return None
