"""Lets blows happen to a pair, one after the other, and measures what each of them did."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lab.client import Report, RunningClient, start_client
from lab.cluster import Cluster, Timing
from lab.faults import Blow, Target
from lab.harm import Harm, Mend
from lab.listener import Listener
from lab.namespace import LabError
from lab.topology import GUEST_IP, Topology
from lab.voices import Verdict

TIMING = Timing(
    period="50ms", interval="100ms", misses=6, stall_timeout="3s", cold_start_after="60s"
)
"""Slow enough that a busy machine does not look like a fault; a cold start is no way out."""
PROTECTED_S = 90.0
"""Bound for being protected again once all is mended: a first copy that was caught in the fault
may last out `sync_timeout` (30 s), and so may the next one; then pauses of `retry_max` (2 s).
"""
ANSWERED_S = 60.0
"""Bound for the client's TCP, which after a long silence waits as long again."""
BOOT_S = 120.0
"""Bound for the guest's boot: 3 s on an idle machine, ten times that with checkpoints all along
and others on the machine.
"""
COPY_GONE_NS = 200_000_000
"""How long a killed QEMU may still be heard, at the most; a new one takes longer to boot."""
GUEST_WORDS = "beacon=10000"
"""A beacon each 10 ms: enough to hear in each epoch, little for the machine to do."""
THINK_MS = "10"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What one blow did."""

    blow: Blow
    failovers: int
    boots: int
    wrong: int
    heard: int
    """Frames of the guest that were as they should be."""
    second: int
    stale: int
    forgotten: int
    gap_ms: float
    """The longest time that the client waited for an answer."""
    protected_s: float
    """From the first fault until the VM was protected again and epochs went on."""

    @property
    def good(self) -> bool:
        """Whether no promise was broken, as far as the guest was heard at all."""
        broken = self.wrong + self.second + self.forgotten
        return self.heard > 0 and broken == 0 and self.boots == int(self.blow.cold_boot)

    def __str__(self) -> str:
        return (
            f"protected again after {self.protected_s:.1f} s, failovers {self.failovers}, "
            f"cold boots {self.boots}, client gap {self.gap_ms:.0f} ms, "
            f"wrong answers {self.wrong}, frames {self.heard}, second voice {self.second}, "
            f"stale {self.stale}, forgotten {self.forgotten}"
        )


@dataclass(frozen=True, slots=True)
class Sum:
    """What had happened by some moment."""

    turns: int
    wrong: int
    heard: int
    second: int
    stale: int
    forgotten: int


class Conversation:
    """The client that the guest has at the moment."""

    def __init__(self, topology: Topology, number: int) -> None:
        path = topology.directory / f"client-{number}.jsonl"
        self.running: RunningClient = start_client(
            topology.client,
            f"{GUEST_IP}:7",
            path,
            *("--think-ms", THINK_MS, "--connect-s", str(BOOT_S)),
        )
        self._last = self.running.wait_for_answers(10, BOOT_S)
        self.gap_ms = 0.0
        """The longest gap since this was set to 0."""

    def report(self) -> Report:
        """What it said last."""
        for report in self.running.news():
            if report.t > self._last.t:
                ended = report.last_gap_ms if report.gaps > self._last.gaps else 0.0
                self.gap_ms = max(self.gap_ms, ended, report.current_silence_ms)
                self._last = report
        return self._last

    def wrong(self) -> int:
        """How many answers were wrong, or never came; a broken connection counts as one."""
        report = self.report()
        never = max(report.unanswered, int(report.broken is not None))
        return sum(report.wrong.values()) + never


class Striker:
    """One pair, its client and its listener."""

    def __init__(self, topology: Topology, cluster: Cluster, say: Say) -> None:
        self.listener = Listener(topology)
        self._topology, self._cluster, self._say = topology, cluster, say
        self._began_s = time.monotonic()
        self._harm = Harm(cluster, self.listener.listen)
        self._lives = 0
        self._starts: set[tuple[str, int]] = set()
        self._talk: Conversation

    def bring_up(self) -> None:
        """Start all from nothing, until the client is answered by a protected VM.

        The second host comes when the guest has booted: checkpoints slow that down under TCG.
        """
        self.listener.start()
        first, *others = self._topology.hosts
        self._cluster.start(first)
        self._connect()
        for name in others:
            self._cluster.start(name)
        self._settle()
        self.listener.judge()
        if self._boots() != 1:
            raise LabError("the VM was not booted once")

    def strike(self, blow: Blow) -> Result:
        """Let one blow happen, mend it, and see the VM protected and the client answered again.

        :raises LabError: if that does not come about.
        """
        roles = self._calm(blow.first.delay_s)
        before = self._sum()
        self._talk.report()
        self._talk.gap_ms = 0.0
        start_s = time.monotonic()
        self._perform(blow, roles, start_s)
        self._harm.mend_all()
        self._settle()
        protected_s = time.monotonic() - start_s
        if blow.cold_boot:
            wrong = sum(self._talk.running.stop().wrong.values())
            self._connect()
            before = replace(before, wrong=-wrong)
        self._answered()
        self._listen()
        after = self._sum()
        return Result(
            blow=blow,
            failovers=after.turns - before.turns,
            boots=self._boots(),
            wrong=after.wrong - before.wrong,
            heard=after.heard - before.heard,
            second=after.second - before.second,
            stale=after.stale - before.stale,
            forgotten=after.forgotten - before.forgotten,
            gap_ms=self._talk.gap_ms,
            protected_s=protected_s,
        )

    def finish(self) -> str | None:
        """End the client and the listener; say what is wrong that no blow has said, or None."""
        report = self._talk.running.stop()
        self.listener.stop()
        if not report.flawless:
            return f"the client says at its end: wrong {report.wrong}, broken: {report.broken}"
        if self.listener.dropped:
            return f"{self.listener.dropped} frames were not heard: the machine was too slow"
        voices = self.listener.voices
        if voices.counts[Verdict.SECOND] or voices.forgotten:
            return "the guest had two voices, or forgot what it had said"
        return None

    def tell(self, text: str) -> None:
        """Say something, with the time."""
        self._say(f"{time.monotonic() - self._began_s:7.1f} s  {text}")

    def _connect(self) -> None:
        self._lives += 1
        self._talk = Conversation(self._topology, self._lives)

    def _calm(self, delay_s: float) -> dict[Target, str]:
        """Wait until the VM was protected for so long; return who is who."""
        while True:
            primary = self._cluster.wait_protected(PROTECTED_S)
            time.sleep(delay_s)
            if self._cluster.protected() and self._cluster.in_phase("protected") == primary:
                secondary = self._cluster.other(primary)
                return {Target.PRIMARY: primary, Target.SECONDARY: secondary}

    def _perform(self, blow: Blow, roles: dict[Target, str], start_s: float) -> None:
        """Begin and end each fault at its time."""
        agenda: list[tuple[float, int, bool]] = []
        for place, fault in enumerate(blow.faults):
            begin_s = 0.0 if fault is blow.first else fault.delay_s
            agenda += [(begin_s, place, False), (begin_s + fault.duration_s, place, True)]
        mends: dict[int, Mend] = {}
        for due_s, place, over in sorted(agenda):
            time.sleep(max(0.0, start_s + due_s - time.monotonic()))
            fault = blow.faults[place]
            who = " and ".join(roles.values()) if fault.target not in roles else roles[fault.target]
            if not over:
                self.tell(f"     {fault.kind} of {fault.target} ({who})")
                mends[place] = self._harm.begin(fault, roles)
            elif fault.duration_s:
                self.tell(f"     {fault.kind} of {fault.target} ({who}) ends")
                mends[place]()
        if blow.cold_boot:
            self.listener.new_life(time.time_ns() + COPY_GONE_NS)

    def _settle(self) -> None:
        """Wait until the VM is protected, and not only not yet known to be unprotected."""
        deadline_s = time.monotonic() + PROTECTED_S
        seen: tuple[str, int] | None = None
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s < 0:
                raise LabError(f"epochs: none were committed within {PROTECTED_S:g} s")
            primary = self._cluster.wait_protected(left_s)
            epochs = int(self._cluster.status(primary).get("epochs", 0))
            if seen is not None and seen[0] == primary and epochs >= seen[1] + 2:
                return
            if seen is None or seen[0] != primary or epochs < seen[1]:
                seen = (primary, epochs)
            time.sleep(0.1)

    def _answered(self) -> None:
        """Wait until the client is answered again, or has no connection any more."""
        wanted = self._talk.report().answers + 5

        def flows() -> bool:
            report = self._talk.report()
            return report.broken is not None or report.answers >= wanted

        self._cluster.wait("answers to the client", flows, ANSWERED_S)

    def _listen(self) -> None:
        for still in self._harm.stood_still:
            self.listener.stood_still(*still)
        self._harm.stood_still.clear()
        self.listener.judge()

    def _sum(self) -> Sum:
        voices = self.listener.voices
        return Sum(
            len(voices.turns),
            self._talk.wrong(),
            voices.counts[Verdict.RIGHT],
            voices.counts[Verdict.SECOND],
            voices.counts[Verdict.STALE],
            voices.forgotten,
        )

    def _boots(self) -> int:
        """How often the VM was booted since the last call."""
        found = {
            (name, event["number"])
            for name in self._topology.hosts
            for event in self._cluster.events(name)
            if event["kind"] == "started"
        }
        new = found - self._starts
        self._starts |= new
        return len(new)
