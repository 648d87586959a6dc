"""The commit predicate: which streams acknowledge a checkpoint, and which do not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.core.commit import ENDS_COLO, Message, why_not
from tests.qemu.relaxed import relaxed

COMMANDS = 4
"""Stop, buffer A off, buffer A on, trigger."""
EMPTIES = (1,)


def event(name: str) -> Message:
    return Message(name, 0.0)


def reply(name: str, error: str | None = None) -> Message:
    return Message(name, 0.0, reply=True, error=error)


def stream(text: str) -> list[Message]:
    """A stream from words: `x:` is a good reply, `x!` an error, anything else an event."""
    made = []
    for word in text.split():
        if word.endswith(":"):
            made.append(reply(word[:-1]))
        elif word.endswith("!"):
            made.append(reply(word[:-1], "no"))
        else:
            made.append(event(word))
    return made


COMMITS = {
    "usual": "STOP stop: off: on: trigger: RESUME",
    "stop-after-its-reply": "stop: STOP off: on: trigger: RESUME",
    "with-noise": "NOISE STOP stop: NOISE off: MIGRATION_PASS on: trigger: NOISE RESUME",
    "the-checkpoint-was-begun-by-the-timer": "MIGRATION_PASS STOP stop: off: on: trigger: RESUME",
    "more-replies-than-commands": "STOP stop: off: on: trigger: late! RESUME",
}

KEPT = {
    "nothing": ("", "there was no RESUME"),
    "no-resume": ("STOP stop: off: on: trigger:", "there was no RESUME"),
    "resume-is-a-reply": ("STOP stop: off: on: trigger: RESUME:", "there was no RESUME"),
    "more-after-resume": ("STOP stop: off: on: trigger: RESUME NOISE", "there was no RESUME"),
    "stop-refused": ("STOP stop! off: on: trigger: RESUME", "stop: no"),
    "off-refused": ("STOP stop: off! on: trigger: RESUME", "off: no"),
    "on-refused": ("STOP stop: off: on! trigger: RESUME", "on: no"),
    "trigger-refused": ("STOP stop: off: on: trigger! RESUME", "trigger: no"),
    "before-the-trigger": ("STOP stop: off: on: RESUME", "before every command"),
    "before-everything": ("RESUME", "before every command"),
    "stale-resume": ("RESUME STOP stop: off: on: trigger: RESUME", "twice"),
    "resumed-twice": ("STOP stop: off: on: trigger: RESUME RESUME", "twice"),
    "cont-in-between": ("STOP stop: RESUME off: on: trigger: RESUME", "twice"),
    "no-stop": ("stop: off: on: trigger: RESUME", "0 STOPs"),
    "stopped-twice": ("STOP stop: off: on: trigger: STOP RESUME", "2 STOPs"),
    "stop-behind-off": ("stop: off: STOP on: trigger: RESUME", "still ran"),
    "stop-behind-trigger": ("stop: off: on: trigger: STOP RESUME", "still ran"),
    "spurious-pair": ("stop: off: on: trigger: STOP RESUME", "still ran"),
    "colo-exit-first": ("COLO_EXIT STOP stop: off: on: trigger: RESUME", "COLO_EXIT"),
    "colo-exit-last": ("STOP stop: off: on: trigger: COLO_EXIT RESUME", "COLO_EXIT"),
    "failover": ("STOP stop: off: on: trigger: MIGRATION COLO_EXIT RESUME", "MIGRATION"),
    "migration-failed": ("STOP stop: off: on: trigger: MIGRATION RESUME", "MIGRATION"),
    "shutdown": ("STOP stop: off: on: trigger: SHUTDOWN RESUME", "SHUTDOWN"),
    "replica-bad": ("STOP stop: off: QUORUM_REPORT_BAD on: trigger: RESUME", "QUORUM"),
}


@pytest.mark.parametrize("name", COMMITS)
def test_what_commits(name: str) -> None:
    assert why_not(stream(COMMITS[name]), COMMANDS, EMPTIES) is None


@pytest.mark.parametrize("name", KEPT)
def test_what_does_not(name: str) -> None:
    text, reason = KEPT[name]
    problem = why_not(stream(text), COMMANDS, EMPTIES)
    assert problem is not None
    assert reason in problem


def test_the_guest_must_stand_still_for_every_buffer() -> None:
    text = "stop: off0: on0: STOP off1: on1: trigger: RESUME"
    assert why_not(stream(text), 6, (1, 3)) is not None
    assert why_not(stream(text), 6, (3,)) is None


# Against an oracle

WORDS = ["a:", "b:", "c:", "d:", "a!", "STOP", "RESUME", "NOISE", *sorted(ENDS_COLO)]

GOOD = [word.split() for word in COMMITS.values()]


def oracle(words: Sequence[str], empty: int) -> bool:
    """The same question asked of the words, as a pattern.

    Letters: s STOP, r RESUME, x what ends COLO, . noise, 0 a good reply, 1 an error.
    """
    letters = ""
    for word in words:
        kinds = {"STOP": "s", "RESUME": "r", "NOISE": ".", "MIGRATION_PASS": "."}
        kinds |= dict.fromkeys(ENDS_COLO, "x")
        letters += kinds.get(word, "0" if word.endswith(":") else "1")
    # Before the emptying reply: so many good replies, and STOP among them.
    before = rf"(?=[^s]*s)(?:[s.]*0){{{empty}}}[s.]*"
    after = rf"(?:0[s.]*){{{COMMANDS - empty}}}"
    shape = re.fullmatch(rf"{before}{after}[.s01]*r", letters)
    late = letters.find("0", nth(letters, empty))
    return shape is not None and letters.count("s") == 1 and letters.find("s") < late


def nth(letters: str, count: int) -> int:
    """The place behind the first `count` replies."""
    place = 0
    for _ in range(count):
        place = letters.find("0", place) + 1
    return place


@relaxed(300)
@given(st.lists(st.sampled_from(WORDS), max_size=9), st.integers(0, COMMANDS - 1))
def test_any_stream(words: list[str], empty: int) -> None:
    assert (why_not(stream(" ".join(words)), COMMANDS, (empty,)) is None) == oracle(words, empty)


@st.composite
def damaged(draw: st.DrawFn) -> list[str]:
    """A good stream with a few things dropped, doubled, swapped or put in."""
    words = list(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, max(0, len(words) - 1)))
        match draw(st.sampled_from(["drop", "double", "swap", "insert"])):
            case "drop" if words:
                del words[place]
            case "double" if words:
                words.insert(place, words[place])
            case "swap" if words:
                other = draw(st.integers(0, len(words) - 1))
                words[place], words[other] = words[other], words[place]
            case _:
                words.insert(place, draw(st.sampled_from(WORDS)))
    return words


@relaxed(600)
@given(damaged(), st.integers(0, COMMANDS - 1))
def test_damaged_streams(words: list[str], empty: int) -> None:
    assert (why_not(stream(" ".join(words)), COMMANDS, (empty,)) is None) == oracle(words, empty)


def test_the_oracle_knows_the_tables() -> None:
    assert all(oracle(text.split(), EMPTIES[0]) for text in COMMITS.values())
    assert not any(oracle(text.split(), EMPTIES[0]) for text, _ in KEPT.values())


# Against what it is for: whatever else goes on in QEMU, what is in B was in the checkpoint


@dataclass
class Primary:
    """A primary in COLO as migration/colo.c has it, with one NIC, and the stream it writes."""

    stream: list[Message] = field(default_factory=list)
    status: str = "running"
    sent: int = 0
    captured: int = 0
    committed: int = 0
    a: list[int] = field(default_factory=list)
    b: list[int] = field(default_factory=list)
    notified: bool = False
    phase: str = "idle"
    failed: bool = False
    emptying: bool = False

    def say(self, name: str) -> None:
        self.stream.append(event(name))

    def guest(self) -> None:
        """The guest sends a packet: into A, or past it while A is off."""
        if self.status == "running":
            self.sent += 1
            (self.b if self.emptying else self.a).append(self.sent)

    def stop_guest(self, status: str) -> None:
        if self.status == "running":
            self.say("STOP")
        self.status = status

    def start_guest(self) -> None:
        self.status = "running"
        self.say("RESUME")

    def command(self, number: int) -> None:
        """One of the epoch's commands is executed."""
        if number == 0:
            if self.status == "running":
                self.stop_guest("paused")
        elif number == 1:
            self.b, self.a, self.emptying = [*self.b, *self.a], [], True
        elif number == 2:
            self.emptying = False
        else:
            self.notified = True
        self.stream.append(reply(["stop", "off", "on", "trigger"][number]))

    def checkpoint(self) -> None:
        """The COLO thread takes one step."""
        if self.failed:
            return
        if self.phase == "idle" and self.notified:
            self.phase = "asked"
        elif self.phase == "asked":
            self.stop_guest("colo")
            self.captured, self.phase = self.sent, "stopped"
        elif self.phase == "stopped":
            self.notified, self.phase = False, "received"
        elif self.phase == "received":
            self.committed, self.phase = self.captured, "idle"
            self.start_guest()

    def timer(self) -> None:
        """QEMU's own timer asks for a checkpoint."""
        self.notified = True

    def pending_stop(self) -> None:
        """The pair that vm_prepare_start makes of a vmstop request."""
        if self.status == "running":
            self.say("STOP")
            self.say("RESUME")

    def break_off(self) -> None:
        """The connection to the secondary breaks."""
        if not self.failed and self.phase != "idle":
            self.failed = True
            self.say("COLO_EXIT")

    def fail_over(self) -> None:
        """Someone ends COLO: the guest runs, though nobody acknowledged."""
        if self.failed and self.phase != "over":
            self.phase = "over"
            self.say("MIGRATION")
            self.start_guest()


HAPPENINGS = ["guest", "checkpoint", "timer", "pending_stop", "break_off", "fail_over"]
WEIGHTS = ["guest"] * 4 + ["checkpoint"] * 8 + ["command"] * 6 + HAPPENINGS[2:]


def epoch(qemu: Primary, happenings: Sequence[str]) -> list[Message]:
    """Run the epoch's commands amid `happenings`; return the stream up to the first RESUME that
    the script would look at: the first on the tape, but not before every reply is there.
    """
    qemu.stream = []
    number, answered = 0, 0
    for happening in [*happenings, *["command"] * COMMANDS, *["checkpoint"] * 8]:
        if happening != "command":
            getattr(qemu, happening)()
        elif number < COMMANDS:
            qemu.command(number)
            number += 1
            answered = len(qemu.stream)
        names = [message.name for message in qemu.stream]
        if number == COMMANDS and "RESUME" in names and len(names) >= answered:
            return qemu.stream[: names.index("RESUME") + 1]
    return qemu.stream


@relaxed(1000)
@given(
    st.lists(st.sampled_from(HAPPENINGS[:3]), max_size=8),
    st.lists(st.lists(st.sampled_from(WEIGHTS), max_size=30), min_size=1, max_size=3),
)
def test_what_commits_was_in_the_checkpoint(before: list[str], epochs: list[list[str]]) -> None:
    qemu = Primary()
    for happening in before:
        getattr(qemu, happening)()
    for happenings in epochs:
        tape = epoch(qemu, happenings)
        if why_not(tape, COMMANDS, EMPTIES) is None:
            assert all(packet <= qemu.committed for packet in qemu.b)
            qemu.b.clear()  # released


def test_an_epoch_that_nothing_disturbs_commits() -> None:
    qemu = Primary()
    for _ in range(3):
        qemu.guest()
        tape = epoch(qemu, ["guest", "command", "command", "command", "command"])
        assert why_not(tape, COMMANDS, EMPTIES) is None
        assert qemu.b
        assert qemu.committed == max(qemu.b)
