"""Tells the service manager that every pair goes on; it restarts a daemon that falls silent."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from coloha.adapters.systemd import ServiceManager

log = logging.getLogger(__name__)

OFTEN = 4
"""How often to tell within the time that the manager waits."""


class Pump(Protocol):
    """A pair as seen from here."""

    @property
    def name(self) -> str:
        """The pair's name."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it is starting over, if it is."""
        ...

    def stuck_s(self, now: float) -> float:
        """For how long it has been at one step, seconds."""
        ...


async def attest(manager: ServiceManager, pumps: Callable[[], Iterable[Pump]]) -> None:
    """Tell until cancelled. While a pump hangs nothing is told: a new life of the daemon helps, and
    QEMUs live on. One that starts over by itself is not helped by it.
    """
    if manager.watchdog_s is None:
        return
    longest_s = manager.watchdog_s / 2
    told = False
    while True:
        now = time.monotonic()
        hung = [p.name for p in pumps() if p.trouble is None and p.stuck_s(now) > longest_s]
        if not hung:
            manager.alive()
        elif not told:
            log.error("%s: nothing is decided any more; systemd restarts me", ", ".join(hung))
        told = bool(hung)
        await asyncio.sleep(manager.watchdog_s / OFTEN)
