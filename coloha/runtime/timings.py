"""How long things of a pair take, for its metrics."""

from coloha.core.actions import RunScript, Script
from coloha.core.events import Committed, Event, Heard, ScriptDone
from coloha.runtime.metrics import Metrics


class Timings:
    """Sees a pair's events and actions go by. All times are monotonic seconds."""

    def __init__(self, pair: str, metrics: Metrics) -> None:
        self._pair = pair
        self._metrics = metrics
        self._running: RunScript | None = None
        self._began_at = 0.0
        self._epoch_at: float | None = None
        self._claimed_at: float | None = None
        self._heard_at: float | None = None

    def started(self, action: RunScript, now: float) -> None:
        """A script begins."""
        self._running, self._began_at = action, now
        if action.script is Script.EPOCH:
            self._epoch_at = now

    def seen(self, event: Event, now: float) -> None:
        """An event was taken from the inbox."""
        if isinstance(event, Heard):
            if self._heard_at is not None:
                self._metrics.heartbeat(self._pair, now - self._heard_at)
            self._heard_at = now
        elif isinstance(event, ScriptDone):
            self._done(event, now)

    def _done(self, event: ScriptDone, now: float) -> None:
        if isinstance(event.result, Committed):
            self._metrics.pause(self._pair, event.result.pause_s)
        running, self._running = self._running, None
        if running is None or running.number != event.number:
            return
        self._metrics.script(self._pair, running.script, now - self._began_at)
        if running.script is Script.RELEASE and self._epoch_at is not None:
            self._metrics.commit(self._pair, now - self._epoch_at)
            self._epoch_at = None

    def told(self, kind: str, now: float) -> None:
        """An occurrence was told."""
        if kind == "claimed":
            self._claimed_at = now
        elif kind == "promoted" and self._claimed_at is not None:
            self._metrics.failover(self._pair, now - self._claimed_at)
            self._claimed_at = None
