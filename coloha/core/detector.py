"""When the other node is silent, and how long this one may speak without being heard.

Both answers are functions of this node's own monotonic clock: clocks need not agree, only run at
about the same rate.

Silence is the lack of heartbeats that prove progress for `interval_s` x `misses`. A node that was
itself held up (stopped, starved, swapped out) could not have heard anything, so such time is given
back: after a stall the other node gets at least as long again, up to the whole detection time. All
credit together is bounded, or a node that is always late would never notice a death. (Lifeguard,
Dadgar et al. 2018, widens the timeouts of a node by its own health for the same reason.)

A hold puts off the verdict for a daemon that restarts: it said so, or its host answered that nobody
listens on its port, so that the host at least lives. There is one hold between two heartbeats, and
it is bounded. A hold only ever makes this node wait; the lease below knows nothing of it.

The lease turns the same figure round. Heartbeats carry a pulse, a number that grows only while the
machine makes steps, and carry back the newest pulse heard. A secondary calls the primary silent no
earlier than one detection time after it heard a pulse, hence no earlier than one detection time
after that pulse was made. So the primary knows until when nobody can have taken over, and releases
output only until then. A pump that stands still while its heartbeats go on gets no lease for it.
"""

from collections import deque
from dataclasses import dataclass, field

MAX_CREDIT = 4.0
"""Bound of the time given back between two heartbeats, in detection times."""


@dataclass(slots=True)
class Detector:
    """Judges one pair's other node. All times are monotonic seconds of this node."""

    interval_s: float
    misses: int
    heard_at: float
    """Start of the silence, if there is one."""
    pulse: int | None = None
    """The newest pulse heard."""
    hold_until: float = float("-inf")
    """Not before then is the other node silent."""
    _credited_s: float = 0.0

    @property
    def detection_s(self) -> float:
        """How long a silence lasts before it means anything, seconds."""
        return self.interval_s * self.misses

    def heard(self, now: float, pulse: int) -> None:
        """Take note of a heartbeat. One with the pulse of the last counts for nothing."""
        if pulse == self.pulse:
            return
        self.pulse = pulse
        self.heard_at = max(self.heard_at, now)
        self.hold_until = float("-inf")
        self._credited_s = 0.0

    def stalled(self, now: float, stall_s: float) -> None:
        """Give back `stall_s` during which this node itself stood still, within the bounds."""
        credit = min(stall_s, self.detection_s, MAX_CREDIT * self.detection_s - self._credited_s)
        if credit > 0:
            self._credited_s += credit
            self.heard_at = max(self.heard_at, now - self.detection_s + credit)

    def hold(self, now: float, hold_s: float) -> bool:
        """Wait `hold_s` for a daemon that restarts; return whether that is new.

        A verdict that has been spoken stands, and a hold is not renewed by the same silence.
        """
        if hold_s <= 0 or self.hold_until > float("-inf") or self.silent(now):
            return False
        self.hold_until = now + hold_s
        return True

    def silent_at(self) -> float:
        """Return when the other node is silent, if nothing is heard until then."""
        return max(self.heard_at + self.interval_s * self.misses, self.hold_until)

    def silent(self, now: float) -> bool:
        """Return whether the other node is silent."""
        return now >= self.silent_at()


@dataclass(slots=True)
class Pulse:
    """The machine's own proof of progress, and the lease that its echo grants."""

    interval_s: float
    misses: int
    number: int
    """Starts at a value that no earlier life of this machine has used."""
    echoed_at: float | None = None
    """When the newest pulse that the other node has heard was made."""
    _made: deque[tuple[int, float]] = field(default_factory=deque)

    def step(self, now: float) -> None:
        """Take note of progress; at most two pulses are made an interval."""
        if self._made and now < self._made[-1][1] + self.interval_s / 2:
            return
        self.number += 1
        self._made.append((self.number, now))
        if len(self._made) > 4 * self.misses:
            self._made.popleft()

    def echoed(self, number: int) -> None:
        """Take note that the other node has heard pulse `number`; numbers not ours are ignored."""
        for made, at in self._made:
            if made == number:
                self.echoed_at = max(at, self.echoed_at if self.echoed_at is not None else at)

    def lease_until(self) -> float:
        """Return until when the other node cannot have called this one silent.

        One interval is kept back for clocks that drift and for the way of a release to QEMU.
        """
        if self.echoed_at is None:
            return float("-inf")
        return self.echoed_at + self.interval_s * (self.misses - 1)
