"""The flight recorder: what each machine was told and decided, in files of bounded size.

The pump only puts a step into a bounded buffer. One thread writes, for all pairs, every
`WRITE_EVERY_S`. If it cannot keep up, or the disk fails, the record has a gap, which is counted and
told; the record is never wrong, and the pump never waits. A daemon that is killed loses what was
not yet written; a host that loses power, also what the kernel had not.
"""

import errno
import logging
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from coloha.core.actions import Action, Severity
from coloha.core.events import Event
from coloha.core.machine import PairMachine
from coloha.flight.record import (
    Begins,
    Raised,
    files,
    header,
    header_line,
    next_file,
    step_line,
)
from coloha.flight.replay import raised

log = logging.getLogger(__name__)

FILE_BYTES = 1 << 20
"""A file that has grown to this is followed by another."""
KEPT_FILES = 8
"""Full files kept per pair."""
MAX_FILES = 64
"""Files kept per pair, full or not: a daemon that starts again and again makes many small ones."""
WAITING = 2000
"""Steps per pair that may wait for the thread: some twenty seconds of them."""
WRITE_EVERY_S = 0.25
RETRY_S = 10.0
"""How long after a failure the next attempt is made."""
SPARE_BYTES = 64 << 20
"""What the record leaves free on the disk: the durable state needs it more."""
CLOSE_S = 5.0
"""How long the end of the daemon waits for what is left to be written."""

_BEHIND = f"{WAITING} steps wait for the disk"

Tell = Callable[[str, str, Severity, str, int], None]


@dataclass(frozen=True, slots=True)
class _Begin:
    """In the buffer: a header comes here, in a new file or not."""

    plain: Mapping[str, Any]
    fresh: bool


_Waiting = _Begin | tuple[float, Event, list[Action] | Raised]


class _Track:
    """What the pump and the thread share of one pair. Each field has one writer but `failed`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: deque[_Waiting] = deque()
        self.dropped = 0
        """Steps that the pump did not hand over."""
        self.unwritten = 0
        """Steps that the thread could not write."""
        self.written = 0
        """Steps that were written."""
        self.full = 0
        """How many files have grown to their bound."""
        self.followed = 0
        """How many of these are, or are about to be, followed by another."""
        self.failed: str | None = None
        """Why the thread stopped writing; the pump takes that back with the next header."""

    @property
    def lost(self) -> int:
        return self.dropped + self.unwritten


class Recorder:
    """Records the pairs of a daemon below `directory`, a folder each."""

    def __init__(self, node: str, directory: Path, tell: Tell) -> None:
        """`tell` is how an operator learns of a gap: `Occurrences.add`."""
        self._node = node
        self._directory = directory
        self._tell = tell
        self._tracks: dict[str, _Track] = {}
        self._closing = threading.Event()
        # The thread exists before it is needed: later, memory may be short.
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Return how many steps are not in the record."""
        return sum(track.lost for track in list(self._tracks.values()))

    def begin(self, pair: str, machine: PairMachine) -> "Flight":
        """Return what records this machine from now on, which has made no step yet."""
        fresh = pair not in self._tracks
        if fresh:
            self._tracks[pair] = _Track(self._directory / pair)
        return Flight(self._node, pair, machine, self._tracks[pair], self._tell, fresh=fresh)

    def close(self) -> None:
        """Write what is left, unless that takes too long."""
        self._closing.set()
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        writers: dict[str, _Writer] = {}
        closing = False
        while not closing:
            closing = self._closing.wait(WRITE_EVERY_S)
            for pair, track in list(self._tracks.items()):
                writers.setdefault(pair, _Writer(track)).drain()
        for writer in writers.values():
            writer.close()


class Flight:
    """Records one machine; the machine makes its steps through it."""

    def __init__(
        self, node: str, pair: str, machine: PairMachine, track: _Track, tell: Tell, *, fresh: bool
    ) -> None:
        self._node = node
        self._pair = pair
        self._machine = machine
        self._track = track
        self._tell = tell
        self._retry_at: float | None = None
        """There is a gap, and it lasts until then at least."""
        self._told = False
        """The operator knows of the gap, and not yet of its end."""
        self._written = 0
        self._lost = track.lost
        """Steps lost before the last header."""
        now = time.monotonic()
        if len(track.waiting) >= WAITING:
            self._open_gap(now, _BEHIND)
            return
        track.failed = None
        self._begin(Begins.START, now, fresh=fresh or track.full != track.followed)

    def step(self, event: Event, now: float) -> list[Action]:
        """Have the machine take in `event`; record what it decides, or how it breaks."""
        try:
            actions = self._machine.step(event, now)
        except Exception as error:
            self._add(now, event, raised(error))
            raise
        self._add(now, event, actions)
        return actions

    def _add(self, now: float, event: Event, outcome: list[Action] | Raised) -> None:
        track = self._track
        if self._retry_at is not None:
            track.dropped += 1
            if now >= self._retry_at and len(track.waiting) < WAITING / 2:
                track.failed = None
                self._begin(Begins.GAP, now, fresh=True)
            return
        if track.failed is not None or len(track.waiting) >= WAITING:
            track.dropped += 1
            self._open_gap(now, track.failed or _BEHIND)
            return
        track.waiting.append((now, event, outcome))
        if track.full != track.followed:
            self._begin(Begins.CONTINUED, now, fresh=True)
        if self._told and track.written > self._written:
            self._told = False
            text = f"the flight record goes on; {track.lost} steps were lost since the daemon began"
            self._tell(self._pair, "record-goes-on", Severity.INFO, text, self._generation())

    def _open_gap(self, now: float, why: str) -> None:
        self._retry_at = now + RETRY_S
        if not self._told:
            self._told = True
            text = f"the flight record has a gap: {why}"
            self._tell(self._pair, "record-gap", Severity.WARNING, text, self._generation())

    def _begin(self, begins: Begins, now: float, *, fresh: bool) -> None:
        """Hand over a header with the machine's state as it is now."""
        track = self._track
        lost, self._lost = track.lost - self._lost, track.lost
        try:
            state = self._machine.state()
            plain = header(self._node, self._pair, now, begins, lost, state)
        except Exception as error:
            # A bug of the recorder must not be one of the pair.
            log.exception("%s: the flight recorder failed", self._pair)
            self._open_gap(now, f"{type(error).__name__}: {error}")
            return
        self._retry_at = None
        self._written = track.written
        if fresh:
            track.followed = track.full
        track.waiting.append(_Begin(plain, fresh))

    def _generation(self) -> int:
        return self._machine.snapshot().generation


class _Writer:
    """The thread's side of a pair's record."""

    def __init__(self, track: _Track) -> None:
        self._track = track
        self._file: BinaryIO | None = None
        self._deflate = zlib.compressobj()
        self._number = 0
        """Of the last step since the header."""
        self._bytes = 0
        self._full = False

    def drain(self) -> None:
        """Write what waits."""
        track = self._track
        steps = 0
        lines: list[bytes] = []
        try:
            while track.waiting:
                item = track.waiting.popleft()
                if isinstance(item, _Begin):
                    steps = self._flush(lines, steps)
                    if item.fresh or self._file is None:
                        self._open()
                    lines.append(header_line(item.plain))
                    self._number = 0
                elif self._file is None:
                    track.unwritten += 1
                else:
                    steps += 1
                    self._number += 1
                    lines.append(step_line(self._number, *item))
            self._flush(lines, steps)
        except Exception as error:
            track.unwritten += steps
            if not isinstance(error, OSError):
                log.exception("%s: the flight recorder failed", track.folder)
            self._abandon()
            track.failed = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the file properly."""
        if self._file is None:
            return
        try:
            with self._file as file:
                file.write(self._deflate.flush())
        except OSError as error:
            log.warning("%s: %s", self._track.folder, error)
        self._file = None

    def _flush(self, lines: list[bytes], steps: int) -> int:
        """Write `lines`, with `steps` steps in them; return how many are then left."""
        if not lines:
            return 0
        assert self._file is not None
        disk = os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize < SPARE_BYTES:
            raise OSError(errno.ENOSPC, f"less than {SPARE_BYTES >> 20} MiB are free on the disk")
        data = self._deflate.compress(b"".join(lines))
        data += self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._file.write(data)
        self._file.flush()
        lines.clear()
        self._track.written += steps
        self._bytes += len(data)
        if self._bytes >= FILE_BYTES and not self._full:
            self._full = True
            self._track.full += 1
        return 0

    def _open(self) -> None:
        """Begin the next file, after removing the oldest ones."""
        self.close()
        folder = self._track.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths = files(folder)
        sizes = {path: path.stat().st_size for path in paths}
        while len(sizes) >= MAX_FILES or sum(sizes.values()) > FILE_BYTES * KEPT_FILES:
            oldest = next(iter(sizes))
            oldest.unlink(missing_ok=True)
            del sizes[oldest]
        self._file = next_file(folder, paths).open("xb")
        self._deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        self._bytes = 0
        self._full = False

    def _abandon(self) -> None:
        """Let the file be as it is: a reader tolerates its end."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                log.warning("%s: %s", self._track.folder, error)
