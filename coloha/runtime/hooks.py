"""Runs the operator's programs when something happens.

The runs of one hook follow one another, in the order of the events; different hooks run side by
side, a few at a time. Events wait in a bounded queue for each hook. All but `take` runs aside
(`coloha.runtime.aside`).
"""

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict

from coloha.ask import ask
from coloha.config import Hook
from coloha.core.actions import Severity
from coloha.core.kinds import OF_HOOKS, triggers
from coloha.runtime.occurrences import Occurrence

WAITING = 100
"""Events that wait for one hook at most."""
SIDE_BY_SIDE = 4
"""Hooks that run at once."""
GRACE_S = 0.5
"""How long hooks may go on at the daemon's end."""
LONGEST_TEXT = 4096
"""Characters of a text in the environment; on the standard input it is whole."""
LONGEST_WORDS = 200

TOLD = ("node", "pair", "kind", "severity", "generation", "number", "at")
"""What of an event is in the environment, besides its text."""

OUTCOMES = ("ok", "failed", "timeout", "dropped")

Tell = Callable[[str, Severity, str], None]


class Hooks:
    """See the module's docstring."""

    def __init__(self, sections: Mapping[str, Hook], tell: Tell) -> None:
        """:param tell: takes the kind, severity and text of an occurrence; called aside."""
        slots = asyncio.Semaphore(SIDE_BY_SIDE)
        self._hooks = [_Hook(name, section, tell, slots) for name, section in sections.items()]

    @property
    def runs(self) -> dict[tuple[str, str], int]:
        """How many runs ended how, by the hook's name and `OUTCOMES`."""
        return {(hook.name, how): n for hook in self._hooks for how, n in hook.ended.items()}

    def take(self, occurrence: Occurrence) -> None:
        """Queue an event for the hooks that want it; none wants what hooks cause."""
        if occurrence.kind not in OF_HOOKS:
            for hook in self._hooks:
                hook.take(occurrence)

    def wake(self) -> None:
        """Have what was queued run."""
        for hook in self._hooks:
            hook.news.set()

    async def run(self) -> None:
        """Run hooks until cancelled; then what runs, and what waits, has `GRACE_S`."""
        tasks = [asyncio.create_task(hook.serve()) for hook in self._hooks]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    while not all(hook.idle for hook in self._hooks):  # noqa: ASYNC110
                        await asyncio.sleep(GRACE_S / 50)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Hook:
    """One hook, and the events that wait for it."""

    def __init__(self, name: str, section: Hook, tell: Tell, slots: asyncio.Semaphore) -> None:
        self.name = name
        self.news = asyncio.Event()
        self.ended = dict.fromkeys(OUTCOMES, 0)
        self._section = section
        self._tell = tell
        self._slots = slots
        self._queue: deque[Occurrence] = deque()
        """The daemon's thread appends, the one aside takes: neither needs a lock."""
        self._running = False
        self._dropped_told = 0

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._running and not self._queue

    def take(self, occurrence: Occurrence) -> None:
        """Queue an event, if it is one that this hook runs for."""
        kind, severity = occurrence.kind, occurrence.severity
        if not any(triggers(word, kind, severity) for word in self._section.on):
            return
        if len(self._queue) >= WAITING:
            self.ended["dropped"] += 1
        else:
            self._queue.append(occurrence)

    async def serve(self) -> None:
        """Run the program for each event."""
        while True:
            await self.news.wait()
            self.news.clear()
            while self._queue:
                async with self._slots:
                    self._running = True
                    try:
                        await self._run(self._queue.popleft())
                    finally:
                        self._running = False
                self._tell_drops()

    async def _run(self, occurrence: Occurrence) -> None:
        section = self._section
        text = json.dumps(asdict(occurrence))
        argv = (section.program, *section.arguments)
        try:
            answer = await ask(argv, text, section.timeout, environment(occurrence))
        except TimeoutError:
            self._failed(occurrence, "timeout", f"killed after {section.timeout:g} s")
        except OSError as error:
            why = f"{section.program} cannot be run ({error.strerror})"
            self._failed(occurrence, "failed", why)
        else:
            if answer.code == 0:
                self.ended["ok"] += 1
                return
            words = _last_words(answer.complaint) or _last_words(answer.output)
            how = f"exit code {answer.code}" if answer.code > 0 else f"signal {-answer.code}"
            self._failed(occurrence, "failed", how + (f" ({words})" if words else ""))

    def _failed(self, occurrence: Occurrence, outcome: str, why: str) -> None:
        self.ended[outcome] += 1
        text = f"{self.name}, run for {occurrence.kind} of {occurrence.pair}: {why}"
        self._tell("hook-failed", Severity.WARNING, text)

    def _tell_drops(self) -> None:
        count = self.ended["dropped"] - self._dropped_told
        if count:
            self._dropped_told += count
            text = f"{self.name} is too slow: {count} events were dropped"
            self._tell("hook-dropped", Severity.WARNING, text)


def environment(occurrence: Occurrence) -> dict[str, str]:
    """Return the environment of a hook: the daemon's, and what happened."""
    told = {f"COLOHA_{name.upper()}": str(getattr(occurrence, name)) for name in TOLD}
    told["COLOHA_TEXT"] = occurrence.text.replace("\0", "")[:LONGEST_TEXT]
    return {**os.environ, **told}


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:LONGEST_WORDS] if lines else ""
