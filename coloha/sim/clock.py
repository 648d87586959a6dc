"""Virtual time: what happens next, and what a host's own clock says."""

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any


class Scheduler:
    """Calls things in the order of their times; `now` is the true time, seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Call `call(*arguments)` in `delay_s` seconds."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), call, arguments))

    def run(self, until: float) -> None:
        """Let everything happen up to the time `until`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, call, arguments = pop(heap)
            call(*arguments)
        self.now = until

    def steps(self, until: float) -> Iterator[float]:
        """Like `run`, but yield the time of each thing after it happened."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(self._heap)
            call(*arguments)
            yield self.now
        self.now = until


class Clock:
    """A host's monotonic clock: it runs at `rate` seconds a second, unless it is paused."""

    __slots__ = ("_at", "_read", "paused", "rate")

    def __init__(self, rate: float, start: float) -> None:
        self.rate = rate
        self.paused = False
        self._at = 0.0
        self._read = start

    def read(self, now: float) -> float:
        """Return what the clock says at the true time `now`."""
        if self.paused:
            return self._read
        return self._read + (now - self._at) * self.rate

    def when(self, reading: float) -> float:
        """Return the true time at which the clock will say `reading`, if it runs on."""
        return self._at + (reading - self._read) / self.rate

    def pause(self, now: float, paused: bool) -> None:
        """Stop the clock, or let it run on from where it stood."""
        self._read = self.read(now)
        self._at = now
        self.paused = paused
