"""When the next epoch begins, and how long to wait before trying again."""

from dataclasses import dataclass

MIN_RUN_SHARE = 0.25
"""The guest runs at least this share of a period between two checkpoints."""


@dataclass(slots=True)
class Pacing:
    """A fixed period from start to start. Times are monotonic seconds."""

    period_s: float
    started_at: float = float("-inf")
    ended_at: float = float("-inf")

    def begin(self, now: float) -> None:
        """Take note that an epoch's checkpoint begins."""
        self.started_at = now

    def end(self, now: float) -> None:
        """Take note that it is over, committed or not."""
        self.ended_at = now

    def due_at(self) -> float:
        """Return when the next one is due."""
        return max(
            self.started_at + self.period_s,
            self.ended_at + MIN_RUN_SHARE * self.period_s,
        )


@dataclass(slots=True)
class Backoff:
    """Waiting times that double from `min_s` to `max_s` and start over on success. Seconds."""

    min_s: float
    max_s: float
    _next_s: float = 0.0

    def next(self) -> float:
        """Return how long to wait now."""
        wait_s = self._next_s or self.min_s
        self._next_s = min(wait_s * 2, self.max_s)
        return wait_s

    def reset(self) -> None:
        """Start over."""
        self._next_s = 0.0
