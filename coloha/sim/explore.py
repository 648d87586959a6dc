"""Every interleaving, within bounds: all that can happen from some roots on, world by world.

The bounds are instants (`frozen.INSTANT_S` each) and faults. Within an instant every order of
what is in flight is tried, and every fault at every step. A world that was met before, at an
earlier instant and with no more faults, is not tried again.

    model = Model()
    report = explore(model, everywhere(model), instants=8, faults=0)
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from coloha.sim.abstract import NOBODY, World
from coloha.sim.checkers import Violation
from coloha.sim.frozen import INSTANT_S
from coloha.sim.moves import Model, Move
from coloha.sim.world import Line

Path = tuple[Any, Any]
"""How a world came about: the path before and the last move, or None and the root."""

_Place = tuple[World, int, Path]
"""A world, how many moves it is away from its root, and how it came about."""

QUIET_INSTANTS = 24
FAULTS: tuple[Move, ...] = (
    *(("kill", 0), ("kill", 1), ("crash", 0), ("crash", 1), ("power", 0), ("power", 1)),
    *(("cut", (True, True)), ("cut", (True, False)), ("cut", (False, True)), ("goes_away",)),
)
"""What befalls a pair at rest to make roots of what follows."""


@dataclass(frozen=True, slots=True)
class Root:
    """Where an exploration begins, and how that came about."""

    name: str
    world: World
    moves: tuple[Move, ...]


@dataclass(slots=True)
class Report:
    """What came of an exploration."""

    instants: int
    faults: int
    states: int = 0
    moves: int = 0
    deepest: int = 0
    """Moves on the way to the state that is farthest from its root."""
    machines: int = 0
    """States of one node's machine, all nodes together."""
    complete: bool = True
    """All within the bounds was tried."""
    violation: Violation | None = None
    lines: list[Line] = field(default_factory=list)
    """How the broken promise came about; instants are counted from the root."""
    seconds: float = 0.0
    """Of the processor."""


class _StopError(Exception):
    """The exploration ends early."""


def roots(model: Model) -> list[Root]:
    """Return where to begin: the start, and each change of phase without faults, to rest."""
    nothing = Root("nothing", model.begin(), ())
    return [nothing, *quiet(model, nothing)]


def quiet(model: Model, root: Root, instants: int = QUIET_INSTANTS) -> Iterator[Root]:
    """Live on without faults, in one order; yield a root at each change of phase, and at the end.

    At the end the pair, if it was not disturbed, is at rest.
    """
    world, moves = root.world, root.moves
    before, passed = _phases(model, world), 0
    while passed < instants:
        move = next(model.moves(world, 0))
        passed += move[0] == "tick"
        try:
            world, moves = model.make(world, move), (*moves, move)
        except Violation:
            return  # an exploration from the last root finds it again
        now = _phases(model, world)
        if now != before:
            before = now
            yield Root(now, world, moves)
    yield Root(f"{before}, at rest", world, moves)


def after(model: Model, root: Root, fault: Move) -> list[Root]:
    """Return a root for each change of phase that follows from a fault, which is not counted."""
    try:
        world = model.make(root.world, fault)
    except Violation:
        return []
    world.faults = 0
    begun = Root(f"{root.name}, {fault[0]}", world, (*root.moves, fault))
    return [begun, *quiet(model, begun)]


def everywhere(model: Model) -> list[Root]:
    """Return all roots: of the bring-up, at rest, and of what follows from each fault at rest."""
    undisturbed = roots(model)
    rest = undisturbed[-1]
    return undisturbed + [root for fault in FAULTS for root in after(model, rest, fault)]


def _phases(model: Model, world: World) -> str:
    phases = (model.minds.phase(mind) if mind != NOBODY else "down" for mind in world.minds)
    return "/".join(phases)


def explore(
    model: Model,
    begin: list[Root],
    instants: int,
    faults: int,
    most: int | None = None,
    kinds: frozenset[str] | None = None,
) -> Report:
    """Try everything that can happen from some roots on, until a promise is broken.

    :param most: states after which to give up.
    :param kinds: the only faults, by the names of their moves; those of roots do not count.
    """
    report = Report(instants, faults)
    began = time.process_time()
    search = _Search(model, begin, report, most, kinds)
    try:
        for instant in range(instants + 1):
            search.instant(last=instant == instants)
    except _StopError:
        report.complete = False
    report.states, report.machines = len(search.seen), len(model.minds)
    report.seconds = time.process_time() - began
    return report


class _Search:
    """Breadth first: by instants, then by faults, then by moves."""

    def __init__(
        self,
        model: Model,
        begin: list[Root],
        report: Report,
        most: int | None,
        kinds: frozenset[str] | None,
    ) -> None:
        self.seen: dict[int, int] = {}
        """With how few faults each state was reached."""
        self._model = model
        self._report = report
        self._most = most
        self._kinds = kinds
        self._next: list[_Place] = [(root.world, 0, (None, root)) for root in begin]
        self._by_faults: list[list[_Place]] = []

    def instant(self, *, last: bool) -> None:
        """Try all that can happen in one instant; in the last one, time does not pass on."""
        self._by_faults = [[] for _ in range(self._report.faults + 1)]
        for place in self._next:
            self._by_faults[place[0].faults].append(place)
        self._next = []
        for spent in range(self._report.faults + 1):
            front = self._by_faults[spent]
            while front:
                self._by_faults[spent] = []
                for place in front:
                    self._try(place, spent, last=last)
                front = self._by_faults[spent]

    def _try(self, place: "_Place", spent: int, *, last: bool) -> None:
        world, depth, path = place
        report, model = self._report, self._model
        key = world.key()
        if self.seen.get(key, report.faults + 1) <= spent:
            return
        if len(self.seen) == self._most:
            raise _StopError
        self.seen[key] = spent
        report.deepest = max(report.deepest, depth)
        for move in model.moves(world, report.faults - spent):
            passes = move[0] == "tick"
            if passes and last:
                continue
            try:
                made = model.make(world, move)
            except Violation as violation:
                report.violation = violation
                report.lines = timeline(model, (path, move))
                raise _StopError from violation
            if self._kinds is not None and made.faults > spent and move[0] not in self._kinds:
                continue
            report.moves += 1
            where = self._next if passes else self._by_faults[made.faults]
            where.append((made, depth + 1, (path, move)))


def timeline(model: Model, path: "Path") -> list[Line]:
    """Return what happened on the way from a root to a broken promise."""
    moves = []
    before, last = path
    while before is not None:
        moves.append(last)
        before, last = before
    world, lines = last.world, [Line(0.0, "", f"from {last.name}")]
    instant = 0
    model.log = []
    for move in reversed(moves):
        instant += move[0] == "tick"
        try:
            world = model.make(world, move)
        except Violation as violation:
            model.note(-1, f"BROKEN {violation}")
        lines += [Line(instant * INSTANT_S, who, text) for who, text in model.log]
        model.log.clear()
    model.log = None
    return lines
