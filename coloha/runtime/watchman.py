"""Feeds the host's watchdog as long as this daemon does its work, and only while it matters.

It matters while a guest's output is held here for a secondary that may take over: then a host that
stops, and later goes on, could let out what is over. Whoever speaks alone is nobody's second voice.

It is fed only while the pump of every such pair goes on. A pump that hangs, fails, or waits for a
broken disk starves it, however lively the event loop is: a daemon that decides nothing must not
keep its host alive.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from coloha.adapters.watchdog import Watchdog
from coloha.config.watchdog import FEED_S, LATE_S
from coloha.core.actions import Severity
from coloha.errors import WatchdogError

log = logging.getLogger(__name__)

AGAIN_S = 10.0
"""Time between two attempts to arm a watchdog that could not be armed."""
SLOW_S = LATE_S - FEED_S
"""How old a decision to feed may be when the device takes it."""
STARVING_S = 0.5
"""For how long it is not fed before that is told: a slow disk alone is no news."""
HUNG_S = FEED_S
"""How long a pump may be at one step and still count as going on."""


class Ward(Protocol):
    """A pair as the watchman sees it."""

    @property
    def name(self) -> str:
        """The pair's name."""
        ...

    @property
    def holds(self) -> bool:
        """Whether a guest's output is held here for a secondary that may take over."""
        ...

    def stuck_s(self, now: float) -> float:
        """For how long its pump has been at one step, seconds; infinite if it has failed."""
        ...


Tell = Callable[[str, Severity, str], None]


class Watchman:
    """Arms, feeds and disarms the watchdog. Without one (`None`) it only says that all is well."""

    def __init__(
        self,
        watchdog: Watchdog | None,
        required: bool,
        wards: Callable[[], Iterable[Ward]],
        tell: Tell,
    ) -> None:
        """:param tell: takes the kind, severity and text of an occurrence."""
        self._watchdog = watchdog
        self._required = required
        self._wards = wards
        self._tell = tell
        # Some drivers talk to a slow chip: not in the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watchdog")
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._trouble: str | None = None
        """What was told last."""
        self._again_at = float("-inf")
        self._fed_at = float("-inf")

    @property
    def armed(self) -> bool:
        """Whether the watchdog counts."""
        return self._watchdog is not None and self._watchdog.armed

    async def start(self) -> None:
        """Stop what a killed daemon left counting; see whether the watchdog works; begin."""
        if self._watchdog is None:
            return
        # Nothing is let out before a pair is protected, and by then it is armed again.
        await self._arm()
        await self._disarm()
        self._task = asyncio.create_task(self._watch())

    async def hold(self) -> None:
        """Arm the watchdog before output is held.

        :raises WatchdogError: if it is required and cannot be armed.
        """
        if self._watchdog is None:
            return
        await self._arm()
        if self._required and not self._watchdog.armed:
            raise WatchdogError(f"the watchdog is not armed: {self._trouble}")

    async def close(self) -> None:
        """Feed no more; stop the watchdog, if it stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._watchdog is not None and not await self._run(self._watchdog.abandon):
            self._say(
                "watchdog-counts-on", f"{self._watchdog.device} cannot be stopped: the host is"
                " reset soon, unless coloha is back by then", Severity.WARNING,
            )  # fmt: skip
        self._thread.shutdown(wait=False)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(FEED_S)
            try:
                await self._look()
            except Exception as error:
                # Not fed: that is the safe side, and the next turn tries again.
                log.exception("the watchdog")
                self._say("watchdog-failed", f"{type(error).__name__}: {error}", Severity.ERROR)

    async def _look(self) -> None:
        assert self._watchdog is not None
        wards = [ward for ward in self._wards() if ward.holds]
        if not wards:
            if not await self._disarm():
                await self._feed()
            return
        if not self._watchdog.armed:
            await self._arm()
            return
        now = time.monotonic()
        stuck = [ward.name for ward in wards if ward.stuck_s(now) > HUNG_S]
        if not stuck:
            self._fed_at = now
            await self._feed()
        elif now > self._fed_at + STARVING_S:
            self._say(
                "watchdog-starves", f"{', '.join(stuck)}: nothing is decided any more; if that goes"
                " on, the host is reset", Severity.ERROR,
            )  # fmt: skip

    async def _feed(self) -> None:
        assert self._watchdog is not None
        watchdog, decided_at = self._watchdog, time.monotonic()

        def feed() -> None:
            if time.monotonic() < decided_at + SLOW_S:
                watchdog.feed()

        try:
            await self._run(feed)
        except WatchdogError as error:
            self._say("watchdog-failed", str(error), Severity.ERROR)
        else:
            self._trouble = None

    async def _arm(self) -> None:
        assert self._watchdog is not None
        async with self._lock:
            if self._watchdog.armed or time.monotonic() < self._again_at:
                return
            try:
                await self._run(self._watchdog.arm)
            except WatchdogError as error:
                self._again_at = time.monotonic() + AGAIN_S
                severity = Severity.ERROR if self._required else Severity.WARNING
                self._say("watchdog-not-armed", str(error), severity)
            else:
                self._trouble = None

    async def _disarm(self) -> bool:
        assert self._watchdog is not None
        async with self._lock:
            if any(ward.holds for ward in self._wards()):
                return True  # it has been armed for one meanwhile
            return await self._run(self._watchdog.disarm)

    async def _run(self, call: Callable[[], bool | None]) -> bool:
        return bool(await asyncio.get_running_loop().run_in_executor(self._thread, call))

    def _say(self, kind: str, text: str, severity: Severity) -> None:
        if text != self._trouble:
            self._trouble = text
            self._tell(kind, severity, text)
