"""Whether the event loop goes on, and how late it is."""

import asyncio
import time
from collections.abc import Callable

BEAT_S = 0.25
STUCK_S = 5.0
"""A loop that was silent for so long counts as stuck."""


class Pulse:
    """Beats in the loop, is felt by other threads."""

    def __init__(self, late: Callable[[float], None]) -> None:
        """`late` is told how late each beat was, seconds."""
        self._late = late
        self._at: float | None = None

    async def beat(self) -> None:
        """Beat until cancelled."""
        self._at = time.monotonic()
        while True:
            due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self._at = time.monotonic()
            self._late(max(0.0, self._at - due))

    @property
    def stuck_s(self) -> float:
        """For how long the loop has been silent, seconds; 0 before it has begun."""
        at = self._at
        return 0.0 if at is None else max(0.0, time.monotonic() - at - BEAT_S)
