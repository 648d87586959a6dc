"""Watches a cluster and its client from outside, for those who show or judge it."""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from lab.client import Report, RunningClient
from lab.cluster import Cluster

LOOK_S = 0.1
SAMPLES = 60


@dataclass(frozen=True, slots=True)
class Happening:
    """An event that a node told, or something that the demo did (`node` is then empty)."""

    at_s: float
    node: str
    kind: str
    text: str
    severity: str = "info"


@dataclass(slots=True)
class Picture:
    """What there was to see at the last look."""

    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    happenings: list[Happening] = field(default_factory=list)
    report: Report | None = None
    answers: deque[int] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Answers between one look and the next."""
    pauses_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class Observer:
    """Looks ten times a second, in a thread, until stopped."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._client: RunningClient | None = None
        self._picture = Picture()
        self._own: list[Happening] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def watch(self, client: RunningClient) -> None:
        """Look at a client, too."""
        self._client = client

    def note(self, happening: Happening) -> None:
        """Add what the demo did."""
        with self._lock:
            self._own.append(happening)

    def picture(self) -> Picture:
        """What there was to see at the last look."""
        with self._lock:
            return self._picture

    def _run(self) -> None:
        answered = 0
        while not self._stop.wait(LOOK_S):
            statuses = self._cluster.statuses()
            told = [
                Happening(e["monotonic_s"], e["node"], e["kind"], e["text"], e["severity"])
                for name in statuses
                for e in self._cluster.events(name)
            ]
            reports = self._client.reports() if self._client is not None else []
            with self._lock:
                picture = self._picture
                picture.statuses = statuses
                picture.happenings = sorted([*told, *self._own], key=lambda each: each.at_s)
                if reports:
                    picture.report = reports[-1]
                    picture.answers.append(reports[-1].answers - answered)
                    answered = reports[-1].answers
                pauses = [s.get("last_pause_s") or 0.0 for s in statuses.values()]
                picture.pauses_ms.append(max(pauses, default=0.0) * 1000)
