"""What a script is made of: the operations that it yields, and the verbs that yield them.

A script is a generator that yields what it wants done and is sent the outcome; whoever runs it
(`conductor.py`, or a simulator) does the input and output. All that the connection said since the
script began is on its `Tape`, in the order of execution.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from coloha.core.commit import Message
from coloha.core.events import Failure

ANSWER_S = 2.0
"""How long a command may take that QEMU answers from its main loop alone."""

POLL_S = 0.005
MAX_TAPE = 10_000


class ScriptError(Exception):
    """A script ended without success: how, and why in words."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the copy of all disks has come, bytes."""

    copied: int
    total: int


@dataclass(frozen=True, slots=True)
class Command:
    """One QMP command. `oob`: on the second connection, out of band."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    oob: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Write the commands back to back; outcome: their replies. Late replies are `SILENT`."""

    commands: tuple[Command, ...]
    timeout_s: float = ANSWER_S


@dataclass(frozen=True, slots=True)
class Until:
    """Wait for the next event of one of these names; outcome: that event. Late ones are `STALLED`.

    Events on the tape before the last one waited for do not count.
    """

    names: frozenset[str]
    timeout_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Give:
    """Hand the session's connection of this name to QEMU under the same name (getfd)."""

    fdname: str


@dataclass(frozen=True, slots=True)
class Report:
    """Let it be known how far the copy of the disks has come."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Look:
    """Read what QEMU has complained of so far; outcome: whether it was heard to leave COLO.

    A secondary that says that it is half loaded (6.2) is `BROKEN`.
    """


Op = Call | Until | Give | Pause | Look | Report
Steps = Generator[Op, object, object]


@dataclass(slots=True)
class Tape:
    """Everything the main connection said since the script began."""

    messages: list[Message] = field(default_factory=list)
    place: int = 0
    """What lies before was looked at by `Until`."""

    def next_event(self, names: frozenset[str]) -> Message | None:
        """Return the next event of one of these names, and move behind it."""
        for index in range(self.place, len(self.messages)):
            message = self.messages[index]
            if not message.reply and message.name in names:
                self.place = index + 1
                return message
        return None

    def replies(self) -> int:
        """Return how many replies came before `place`."""
        return sum(message.reply for message in self.messages[: self.place])


def do(
    name: str, arguments: Mapping[str, object] | None = None, *, oob: bool = False
) -> Generator[Op, object, object]:
    """Execute one command; return its value."""
    (reply,) = yield from call(Command(name, arguments or {}, oob))
    return reply.data


def call(*commands: Command, timeout_s: float = ANSWER_S) -> Generator[Op, object, list[Message]]:
    """Execute commands back to back; return the replies, none of them an error."""
    replies = yield Call(commands, timeout_s)
    assert isinstance(replies, list)
    for reply in replies:
        if reply.error is not None:
            raise ScriptError(Failure.REFUSED, f"{reply.name}: {reply.error}")
    return replies


def allow(error: str, command: Command, timeout_s: float = ANSWER_S) -> Generator[Op, object, None]:
    """Execute a command that may be refused with `error` in the text: then it was not needed."""
    replies = yield Call((command,), timeout_s)
    assert isinstance(replies, list)
    for reply in replies:
        if reply.error is not None and error not in reply.error:
            raise ScriptError(Failure.REFUSED, f"{command.name}: {reply.error}")


def until(what: str, timeout_s: float, *names: str) -> Generator[Op, object, Message]:
    """Wait for the next event of one of these names; return it."""
    event = yield Until(frozenset(names), timeout_s, what)
    assert isinstance(event, Message)
    return event


def query(name: str, key: str) -> Generator[Op, object, str]:
    """Return one field of what a query says; absent is the empty string."""
    value = yield from do(name)
    assert isinstance(value, dict)
    return str(value.get(key, ""))


def objects() -> Generator[Op, object, frozenset[str]]:
    """Return the ids of all user-created objects."""
    listed = yield from do("qom-list", {"path": "/objects"})
    assert isinstance(listed, list)
    return frozenset(entry["name"] for entry in listed)


def poll(
    what: str, timeout_s: float, reached: Callable[[], Generator[Op, object, bool]]
) -> Generator[Op, object, None]:
    """Ask again and again until it is so."""
    for _ in range(max(1, round(timeout_s / POLL_S))):
        if (yield from reached()):
            return
        yield Pause(POLL_S)
    raise ScriptError(Failure.STALLED, f"{what}: not within {timeout_s:g} s")
