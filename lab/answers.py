"""What a client may conclude from the counter's answers; pure: no socket, no clock.

A client sends the line `TOKEN` and the guest answers with the line `TOKEN VALUE`, VALUE being a
counter that grows by one per request (see guest/service.c).
"""

import re
from collections import Counter
from dataclasses import dataclass, field

WRONG = ("lost", "repeated", "reversed", "skipped", "corrupt")
"""How an answer can be wrong: see `AnswerChecker`."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which a request waited and no answer came; nanoseconds of the monotonic clock."""

    start_ns: int
    length_ns: int


@dataclass(slots=True)
class Gaps:
    """Measures how long the client waits: from an answer, or from the request that ended its
    leisure, to the next answer. All longer than `threshold_ns` count, the first `limit` are kept.
    """

    threshold_ns: int
    limit: int = 1000
    kept: list[Gap] = field(default_factory=list)
    count: int = 0
    last: Gap | None = None
    longest_ns: int = 0
    _since_ns: int | None = None

    def request(self, now_ns: int) -> None:
        """A request was sent."""
        if self._since_ns is None:
            self._since_ns = now_ns

    def answer(self, now_ns: int, waiting: bool) -> None:
        """An answer came; `waiting`: further requests have none yet."""
        self._end(now_ns)
        self._since_ns = now_ns if waiting else None

    def stop(self, now_ns: int) -> None:
        """No answer is awaited any more; the silence up to now counts."""
        self._end(now_ns)
        self._since_ns = None

    def silence_ns(self, now_ns: int) -> int:
        """How long a request has been waiting."""
        return 0 if self._since_ns is None else now_ns - self._since_ns

    def _end(self, now_ns: int) -> None:
        length_ns = self.silence_ns(now_ns)
        self.longest_ns = max(self.longest_ns, length_ns)
        if length_ns > self.threshold_ns:
            self.last = Gap(now_ns - length_ns, length_ns)
            self.count += 1
            if len(self.kept) < self.limit:
                self.kept.append(self.last)


@dataclass(slots=True)
class Latencies:
    """Times from request to answer, as a histogram with two significant digits."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        unit = 10 ** max(len(str(duration_ns)) - 2, 0)
        self.counts[duration_ns // unit * unit] += 1

    def quantile_ns(self, share: float) -> int:
        """The duration that `share` (0 to 1) of all do not exceed; 0 without any."""
        left = share * self.counts.total()
        for duration_ns in sorted(self.counts):
            left -= self.counts[duration_ns]
            if left <= 0:
                return duration_ns
        return 0


_ANSWER = re.compile(rb"([a-z0-9]+)\.([0-9]{1,18}) ([0-9]{1,20})")


class AnswerChecker:
    """Makes the tokens of one client's requests and judges each line that comes back.

    Every line gets one verdict:
    right      the answer to a waiting request, and its value follows the one before
    repeated   an answer to a request that has been answered already
    reversed   its value is not above the one before, or it was overtaken by a later request's
    skipped    its value left out more than the lost requests explain
    corrupt    no answer to any request that was made

    A request is lost if a later one was answered and it was not (a late answer turns the loss into
    a reversal), unanswered if `connection_lost` came first. So, always, requests = right + reversed
    + skipped + lost + unanswered + waiting, and lines = right + repeated + reversed + skipped +
    corrupt. `shared`: other clients use the counter too, so values only have to grow.
    """

    def __init__(self, name: str = "c", *, shared: bool = False) -> None:
        if not re.fullmatch("[a-z0-9]+", name):
            raise ValueError(f"client name {name!r}: use a-z and 0-9")
        self._name, self._shared = name, shared
        self._rest = b""
        self._waiting: dict[int, int] = {}
        self._missing: set[int] = set()
        self._value: int | None = None
        self._slack = 0
        """Requests since the last value that the guest may have counted without our knowing."""
        self.requests = self.lines = self.right = self.unanswered = 0
        self.wrong = dict.fromkeys(WRONG, 0)
        self.latencies = Latencies()

    @property
    def waiting(self) -> int:
        """Requests that have no answer yet."""
        return len(self._waiting)

    def request(self, now_ns: int) -> bytes:
        """The next request, as it is to be sent."""
        number = self.requests
        self.requests += 1
        self._waiting[number] = now_ns
        return f"{self._name}.{number}\n".encode()

    def receive(self, data: bytes, now_ns: int) -> int:
        """Judge what came; it may end within a line. Returns how many requests it answered."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        before = self.waiting
        for line in lines:
            self.lines += 1
            verdict = self._judge(line, now_ns)
            if verdict == "right":
                self.right += 1
            else:
                self.wrong[verdict] += 1
        return before - self.waiting

    def connection_lost(self) -> None:
        """No request that waits will be answered; the guest may have seen it or not."""
        self.unanswered += self.waiting
        self._slack += self.waiting
        self._waiting.clear()
        self._rest = b""

    def _judge(self, line: bytes, now_ns: int) -> str:
        answer = _ANSWER.fullmatch(line)
        if not answer or answer[1].decode() != self._name or int(answer[2]) >= self.requests:
            return "corrupt"
        number, value = int(answer[2]), int(answer[3])
        if number in self._missing:
            self._missing.remove(number)
            self.wrong["lost"] -= 1
            return "reversed"
        if number not in self._waiting:
            return "repeated"
        self._overtake(number)
        self.latencies.add(now_ns - self._waiting.pop(number))
        return self._judge_value(value)

    def _overtake(self, number: int) -> None:
        """All requests before `number` that wait are lost."""
        for earlier in list(self._waiting):
            if earlier == number:
                return
            del self._waiting[earlier]
            self._missing.add(earlier)
            self.wrong["lost"] += 1
            self._slack += 1

    def _judge_value(self, value: int) -> str:
        before, slack = self._value, self._slack
        self._value, self._slack = value, 0
        if before is None:
            return "right"
        if value <= before:
            return "reversed"
        return "right" if self._shared or value <= before + 1 + slack else "skipped"
