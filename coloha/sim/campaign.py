"""Many histories, on several processors: of a range of seeds, or with faults at every step."""

import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from coloha.sim.faults import USUAL
from coloha.sim.history import Plan, drawn_arbiter, live, plan
from coloha.sim.sweep import one_fault, two_faults

CHUNK = 50
PARTS = 20


@dataclass(slots=True)
class Report:
    """What came of many histories."""

    first: int
    """The first seed, or the only one."""
    histories: int = 0
    broken: list[Plan] = field(default_factory=list)
    """Those that broke a promise."""
    seen: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


Part = tuple[int, list[Plan], Counter[str]]
"""How many histories, those that broke a promise, and what was seen in all of them."""


def run(
    first: int,
    histories: int,
    kinds: Sequence[str] = USUAL,
    jobs: int = 1,
    arbiter: str | None = None,
) -> Report:
    """Live through the histories of the seeds from `first` on, until one breaks a promise.

    Without an arbiter each seed draws its own.
    """
    end = first + histories
    chunks = [(start, min(start + CHUNK, end)) for start in range(first, end, CHUNK)]
    return _report(first, partial(_chunk, kinds=tuple(kinds), arbiter=arbiter), chunks, jobs)


def sweep(
    faults: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    jobs: int = 1,
    arbiter: str = "witness",
) -> Report:
    """Live through a history with one or two faults, at every step, until one breaks a promise."""
    plans: Callable[..., Iterator[Plan]] = (one_fault, two_faults)[faults - 1]
    parts = [(part, PARTS) for part in range(PARTS)]
    if kinds is not None:
        plans = partial(plans, kinds=kinds)
    work = partial(_part, plans=partial(plans, seed, arbiter=arbiter))
    return _report(seed, work, parts, jobs)


def _report(
    first: int, work: "partial[Part]", pieces: Sequence[tuple[int, int]], jobs: int
) -> Report:
    report = Report(first)
    began = time.monotonic()
    for count, broken, seen in _results(work, pieces, jobs):
        report.histories += count
        report.broken += broken
        report.seen += seen
        if broken:
            break
    report.seconds = time.monotonic() - began
    return report


def _results(work: "partial[Part]", pieces: Sequence[tuple[int, int]], jobs: int) -> Iterator[Part]:
    if jobs == 1:
        yield from map(work, pieces)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(work, pieces)


def _chunk(seeds: tuple[int, int], kinds: tuple[str, ...], arbiter: str | None) -> Part:
    return _live(
        plan(seed, kinds, arbiter=arbiter or drawn_arbiter(seed)) for seed in range(*seeds)
    )


def _part(piece: tuple[int, int], plans: Callable[[], Iterator[Plan]]) -> Part:
    return _live(itertools.islice(plans(), piece[0], None, piece[1]))


def _live(plans: Iterable[Plan]) -> Part:
    count = 0
    seen: Counter[str] = Counter()
    for planned in plans:
        outcome = live(planned)
        count += 1
        seen.update(outcome.seen)
        if outcome.violation is not None:
            return count, [planned], seen
    return count, [], seen
