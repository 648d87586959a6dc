"""Many histories, on several processors."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from coloha.sim.faults import USUAL
from coloha.sim.history import live, plan

CHUNK = 50


@dataclass(slots=True)
class Report:
    """What came of a range of seeds."""

    first: int
    histories: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    """The names of the promises broken, by seed."""
    seen: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run(
    first: int, histories: int, kinds: Sequence[str] = USUAL, jobs: int = 1, *, stop: bool = True
) -> Report:
    """Live through the histories of the seeds from `first` on.

    :param stop: end soon after the first one that breaks a promise.
    """
    report = Report(first)
    began = time.monotonic()
    end = first + histories
    chunks = [(start, min(start + CHUNK, end)) for start in range(first, end, CHUNK)]
    for count, broken, seen in _results(partial(_chunk, kinds=tuple(kinds)), chunks, jobs):
        report.histories += count
        report.broken |= broken
        report.seen += seen
        if broken and stop:
            break
    report.seconds = time.monotonic() - began
    return report


Result = tuple[int, dict[int, str], Counter[str]]


def _results(
    work: "partial[Result]", chunks: Sequence[tuple[int, int]], jobs: int
) -> Iterator[Result]:
    if jobs == 1:
        yield from map(work, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(work, chunks)


def _chunk(seeds: tuple[int, int], kinds: tuple[str, ...]) -> Result:
    broken: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for seed in range(*seeds):
        outcome = live(plan(seed, kinds))
        seen.update(outcome.seen)
        if outcome.violation is not None:
            broken[seed] = outcome.violation.name
            break
    return seed - seeds[0] + 1, broken, seen
