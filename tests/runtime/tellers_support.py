"""A teller in a thread of its own, and the events that it is given."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from coloha.core.actions import Severity
from coloha.runtime.aside import Aside, Work
from coloha.runtime.occurrences import Occurrence
from tests.adapters.support import PATIENCE_S


def occurrence(number: int, kind: str = "protected", **changes: Any) -> Occurrence:
    """An event of `vm` on alpha."""
    fields: dict[str, Any] = {
        "number": number,
        "at": f"2026-01-01T00:00:{number % 60:02}.000+00:00",
        "monotonic_s": 1.5,
        "node": "alpha",
        "pair": "vm",
        "kind": kind,
        "severity": Severity.INFO,
        "generation": 7,
        "text": f"number {number}",
    }
    return Occurrence(**{**fields, **changes})


class Told:
    """What a teller tells in turn, as the daemon hears it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Severity, str]] = []

    def __call__(self, kind: str, severity: Severity, text: str) -> None:
        self.events.append((kind, severity, text))

    def of(self, kind: str) -> list[str]:
        """The texts of one kind."""
        return [text for known, _, text in self.events if known == kind]


@contextlib.contextmanager
def aside(work: Work) -> Iterator[Aside]:
    """Run it until the body ends; it must end in time, and nothing may stay behind."""
    before = threading.active_count()
    thread = Aside([work])
    thread.start()
    try:
        yield thread
    finally:
        assert thread.stop(PATIENCE_S)
    until(lambda: threading.active_count() <= before, "the end of all threads")


def until(condition: Callable[[], object], what: str) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
