"""What happened, for people: logged, kept for `coloha events`, and handed to who listens.

Writing to the disk is left to one thread; if it cannot keep up, occurrences are missing from the
file (and counted), never from the log.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from coloha.core.actions import Severity

log = logging.getLogger("coloha.events")

KEPT = 1000
WAITING = 200
MAX_FILE_BYTES = 1 << 20

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One thing that happened. `at` is UTC; `monotonic_s` this host's monotonic clock."""

    number: int
    at: str
    monotonic_s: float
    node: str
    pair: str
    kind: str
    severity: Severity
    generation: int
    text: str


class Occurrences:
    """The last `KEPT` occurrences in memory, somewhat more on the disk."""

    def __init__(self, node: str, path: Path) -> None:
        """`path` is a file of one JSON object a line; what earlier daemons wrote is kept."""
        self._node = node
        self._path = path
        self._torn = False
        """The file may end in the middle of a line, which a crash or a full disk cut short."""
        self._kept: deque[Occurrence] = deque(self._earlier(), KEPT)
        self._number = self._kept[-1].number if self._kept else 0
        self._listeners: set[asyncio.Queue[Occurrence]] = set()
        self._followers: list[Callable[[Occurrence], None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._thread.submit(int).result()
        self._writing = 0
        self.dropped = 0
        """Occurrences that a listener or the disk was too slow for."""

    def add(self, pair: str, kind: str, severity: Severity, text: str, generation: int) -> None:
        """Note an occurrence, now."""
        self._number += 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        occurrence = Occurrence(
            self._number, at, time.monotonic(), self._node, pair, kind, severity, generation, text
        )
        fields = {
            "COLOHA_NUMBER": str(self._number),
            "COLOHA_NODE": self._node,
            "COLOHA_PAIR": pair,
            "COLOHA_KIND": kind,
            "COLOHA_GENERATION": str(generation),
        }
        extra = {"fields": fields}
        log.log(_LEVELS[severity], "%s: %s: %s", pair, kind, text, extra=extra)
        self._kept.append(occurrence)
        for queue in self._listeners:
            if queue.full():
                self.dropped += 1
            else:
                queue.put_nowait(occurrence)
        for take in self._followers:
            take(occurrence)
        if self._writing < WAITING:
            self._writing += 1
            self._thread.submit(self._write, occurrence)
        else:
            self.dropped += 1

    def since(self, number: int) -> list[Occurrence]:
        """Return the kept occurrences after `number`."""
        return [occurrence for occurrence in self._kept if occurrence.number > number]

    def kept(self) -> list[Occurrence]:
        """Return all that are kept. Other threads may ask."""
        return list(self._kept)

    def listen(self) -> asyncio.Queue[Occurrence]:
        """Return a bounded queue that gets every occurrence from now on, until `leave`."""
        queue: asyncio.Queue[Occurrence] = asyncio.Queue(WAITING)
        self._listeners.add(queue)
        return queue

    def follow(self, take: Callable[[Occurrence], None]) -> None:
        """Have `take`, which must not wait, called with every occurrence from now on."""
        self._followers.append(take)

    def leave(self, queue: asyncio.Queue[Occurrence]) -> None:
        """Fill `queue` no more."""
        self._listeners.discard(queue)

    def close(self) -> None:
        """Write what is left."""
        self._thread.shutdown(wait=True)

    def _earlier(self) -> list[Occurrence]:
        found = []
        for path in (self._path.with_suffix(".old"), self._path):
            try:
                text = path.read_text(errors="replace")
            except OSError:
                continue
            for line in text.splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    found.append(_occurrence(line))
            self._torn = text[-1:] not in ("", "\n")
        return found[-KEPT:]

    def _write(self, occurrence: Occurrence) -> None:
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_FILE_BYTES:
                self._path.replace(self._path.with_suffix(".old"))
            with self._path.open("a") as file:
                file.write("\n" * self._torn + json.dumps(asdict(occurrence)) + "\n")
            self._torn = False
        except OSError:
            self._torn = True
            self.dropped += 1  # the log has it; a full disk must not stop the daemon
        finally:
            self._writing -= 1


def _occurrence(line: str) -> Occurrence:
    """Return what a line of the file holds.

    :raises ValueError, TypeError, KeyError: if it holds no occurrence.
    """
    fields = json.loads(line)
    if type(fields["number"]) is not int:
        raise TypeError("not a number")
    return Occurrence(**{**fields, "severity": Severity(fields["severity"])})
