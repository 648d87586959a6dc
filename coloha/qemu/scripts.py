"""The sequences of QMP commands that drive COLO, as pure generators.

A script yields what it wants done (`Call`, `Until`, `Give`, `Pause`, `Look`) and is sent the
outcome; whoever runs it (`conductor.py`, or a simulator) does the input and output. All that the
connection said since the script began is on its `Tape`, in the order of execution.

Facts about QEMU that the sequences rest on are in docs/qemu.md; the numbers in brackets are its
sections.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from coloha.core.actions import Script
from coloha.core.commit import Message, why_not
from coloha.core.events import Adopted, ColoMode, Committed, Failure, Kept

DEADMAN_MS = 5_000
"""x-checkpoint-delay: if the daemon dies after `stop`, QEMU's own checkpoint resumes the guest."""

HOLD_US = 4_000_000_000
"""A filter-buffer flushes by itself after this much guest time, and 0 is refused. Each epoch starts
the time afresh (4.1)."""

ANSWER_S = 2.0
"""How long a command may take that QEMU answers from its main loop alone."""

SETTLE_S = 2.0
"""How long a secondary that is cut off may take to say COLO_EXIT, its main loop answering."""

POLL_S = 0.005
MAX_TAPE = 10_000
UNLIMITED_BYTES_PER_S = 1 << 40
INTERMEDIATE = frozenset({"setup", "active", "device", "cancelling", "wait-unplug"})
"""States of a migration that pass by themselves."""

OVER = frozenset({"failed", "completed", "cancelled"})
"""States of a migration that did not end in COLO."""


class ScriptError(Exception):
    """A script ended without success: how, and why in words."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason


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
    """Hand the socket of the session's channel to QEMU under this name (getfd)."""

    fdname: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Look:
    """Read what QEMU has complained of so far; outcome: whether it was heard to leave COLO.

    A secondary that says that it is half loaded (6.2) is `BROKEN`.
    """


Op = Call | Until | Give | Pause | Look
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What scripts need to know of a VM: its netdevs whose output is held, and QEMU's ways."""

    netdevs: tuple[str, ...]
    return_path: bool


def buffer_id(letter: str, netdev: str) -> str:
    """Return the id of filter-buffer `a` or `b` of a netdev."""
    return f"hold-{letter}-{netdev}"


def sink_id(netdev: str) -> str:
    """Return the id of the filter that swallows the secondary's output."""
    return f"sink-{netdev}"


def _do(
    name: str, arguments: Mapping[str, object] | None = None, *, oob: bool = False
) -> Generator[Op, object, object]:
    """Execute one command; return its value."""
    (reply,) = yield from _call(Command(name, arguments or {}, oob))
    return reply.data


def _call(*commands: Command, timeout_s: float = ANSWER_S) -> Generator[Op, object, list[Message]]:
    """Execute commands back to back; return the replies, none of them an error."""
    replies = yield Call(commands, timeout_s)
    assert isinstance(replies, list)
    for reply in replies:
        if reply.error is not None:
            raise ScriptError(Failure.REFUSED, f"{reply.name}: {reply.error}")
    return replies


def _allow(
    error: str, command: Command, timeout_s: float = ANSWER_S
) -> Generator[Op, object, None]:
    """Execute a command that may be refused with `error` in the text: then it was not needed."""
    replies = yield Call((command,), timeout_s)
    assert isinstance(replies, list)
    for reply in replies:
        if reply.error is not None and error not in reply.error:
            raise ScriptError(Failure.REFUSED, f"{command.name}: {reply.error}")


def _until(what: str, timeout_s: float, *names: str) -> Generator[Op, object, Message]:
    event = yield Until(frozenset(names), timeout_s, what)
    assert isinstance(event, Message)
    return event


def _query(name: str, key: str) -> Generator[Op, object, str]:
    """Return one field of what a query says; absent is the empty string."""
    value = yield from _do(name)
    assert isinstance(value, dict)
    return str(value.get(key, ""))


def _objects() -> Generator[Op, object, frozenset[str]]:
    """Return the ids of all user-created objects."""
    listed = yield from _do("qom-list", {"path": "/objects"})
    assert isinstance(listed, list)
    return frozenset(entry["name"] for entry in listed)


def _switch(letter: str, netdev: str, on: bool) -> Command:
    path = f"/objects/{buffer_id(letter, netdev)}"
    value = "on" if on else "off"
    return Command("qom-set", {"path": path, "property": "status", "value": value})


def _cycle(letter: str, plan: Plan) -> list[Command]:
    """Empty a buffer of every netdev and hold on: off lets everything go, on holds what follows."""
    return [_switch(letter, netdev, on) for netdev in plan.netdevs for on in (False, True)]


def _capabilities(plan: Plan) -> Command:
    wanted = {"x-colo": True, "events": True}
    if plan.return_path:
        wanted["return-path"] = True
    listed = [{"capability": name, "state": state} for name, state in wanted.items()]
    return Command("migrate-set-capabilities", {"capabilities": listed})


def _yank() -> Generator[Op, object, None]:
    """Cut the migration's connection, out of band: works while QEMU's main loop is blocked.

    The instance exists only while the connection does, and an unknown one is an error (6.3).
    """
    listed = yield from _do("query-yank", oob=True)
    assert isinstance(listed, list)
    if any(instance.get("type") == "migration" for instance in listed):
        yank = Command("yank", {"instances": [{"type": "migration"}]}, oob=True)
        yield from _allow("yank instance", yank)  # it may have closed a moment ago


def adopt(plan: Plan) -> Steps:
    """Find out whether a running QEMU is in COLO; if as primary, see that its output is held.

    The daemon before may have died while it switched the buffers, or made them.
    """
    mode = yield from _query("query-colo-status", "mode")
    if mode == ColoMode.PRIMARY:
        yield from arm(plan)
    return Adopted(ColoMode(mode))


def check(timeout_s: float) -> Steps:
    """See whether QEMU's main loop answers."""
    yield from _call(Command("query-status"), timeout_s=timeout_s)
    return None


def enter_colo(plan: Plan, timeout_s: float) -> Steps:
    """Copy the VM to the secondary until COLO runs: RESUME after MIGRATION colo (1.1).

    From MIGRATION colo to that RESUME, x-checkpoint-delay must not be set: QEMU aborts (0.8).
    """
    parameters = {
        "x-checkpoint-delay": DEADMAN_MS,
        "max-bandwidth": UNLIMITED_BYTES_PER_S,
        "downtime-limit": 1000,
    }
    yield from _call(_capabilities(plan), Command("migrate-set-parameters", parameters))
    yield Give("colo")
    yield from _do("migrate", {"uri": "fd:colo"})
    yield from _await_colo("the first copy of the VM", timeout_s)
    return None


def _await_colo(
    what: str, timeout_s: float, *, entered: bool = False
) -> Generator[Op, object, None]:
    """Wait for MIGRATION colo (unless it came: `entered`), then RESUME; any way out of the
    migration breaks it.
    """
    while True:
        event = yield from _until(what, timeout_s, "MIGRATION", "RESUME", "COLO_EXIT", "SHUTDOWN")
        status = event.data.get("status") if isinstance(event.data, dict) else None
        if event.name == "RESUME" and entered:
            return
        if event.name in ("COLO_EXIT", "SHUTDOWN") or status in OVER:
            raise ScriptError(Failure.BROKEN, f"{what}: {event.name} {status or ''}".rstrip())
        entered = entered or status == "colo"


def arm(plan: Plan) -> Steps:
    """Hold the guest's output from now on.

    Guest output meets the filter created last first (4.1), so B comes before A: what A lets go
    waits in B. An A without B is what a `leave_colo` left that was cut short.
    """
    present = yield from _objects()
    for netdev in plan.netdevs:
        a, b = buffer_id("a", netdev), buffer_id("b", netdev)
        if a in present and b not in present:
            yield from _do("object-del", {"id": a})
            present -= {a}
        for letter, name in (("b", b), ("a", a)):
            if name in present:
                yield from _call(_switch(letter, netdev, True))
                continue
            properties = {
                "qom-type": "filter-buffer",
                "id": name,
                "netdev": netdev,
                "queue": "rx",
                "interval": HOLD_US,
                "status": "on",
            }
            yield from _do("object-add", properties)
    return None


def epoch(plan: Plan, timeout_s: float, tape: Tape) -> Steps:
    """One checkpoint, stop first (4.4): what the guest has sent waits in B until the commit.

    The commands are written back to back, so nothing of the daemon's slowness gets between them.
    """
    commands = [Command("stop"), *_cycle("a", plan)]
    empties = range(1, len(commands), 2)
    commands.append(Command("migrate-set-parameters", {"x-checkpoint-delay": DEADMAN_MS}))
    # They need nothing of the other side: a main loop that is slow with them hangs.
    replies = yield Call(tuple(commands), timeout_s / 2)
    assert isinstance(replies, list)
    resumed = yield from _resume(timeout_s)
    problem = why_not(tape.messages[: tape.place], len(commands), empties)
    if problem is not None:
        # What ended before the trigger was another checkpoint: the one asked for here comes after
        # it (2.1). It would spoil the next epoch, that one's the next but one, and so on.
        while replies[-1].error is None and tape.replies() < len(commands):
            yield from _resume(timeout_s)
        return Kept(problem)
    stopped = next(m for m in tape.messages if m.name == "STOP" and not m.reply)
    return Committed(pause_s=resumed.at - stopped.at)


def _resume(timeout_s: float) -> Generator[Op, object, Message]:
    """Wait for the end of a checkpoint."""
    ends = ("RESUME", "COLO_EXIT", "SHUTDOWN")
    event = yield from _until("the secondary's acknowledgement", timeout_s, *ends)
    if event.name != "RESUME":
        raise ScriptError(Failure.BROKEN, f"{event.name} during a checkpoint")
    return event


def release(plan: Plan) -> Steps:
    """Let go what B holds. The guest runs, but all that it sends now waits in A."""
    yield from _call(*_cycle("b", plan))
    return None


def leave_colo(plan: Plan, timeout_s: float) -> Steps:
    """End COLO or an unfinished migration as primary; let go B, then A; the guest runs.

    Every part may have been done before: the daemon that began it may have died.
    """
    yield from _yank()
    if (yield from _query("query-colo-status", "mode")) == ColoMode.PRIMARY:
        yield from _allow("already", Command("x-colo-lost-heartbeat"), timeout_s)
    present = yield from _objects()
    for letter in ("b", "a"):
        ids = [buffer_id(letter, netdev) for netdev in plan.netdevs]
        # Deleting a filter-buffer lets its packets go: the older ones first.
        commands = [Command("object-del", {"id": name}) for name in ids if name in present]
        if commands:
            yield from _call(*commands)
    yield from _poll("the migration to end", timeout_s, _migration_over)
    status = yield from _query("query-status", "status")
    if status == "paused":
        yield from _do("cont")  # stopped by an epoch that never got as far as its checkpoint
    yield from _poll("the guest to run", timeout_s, _running)
    return None


def _migration_over() -> Generator[Op, object, bool]:
    status = yield from _query("query-migrate", "status")
    return status != "colo" and status not in INTERMEDIATE


def _running() -> Generator[Op, object, bool]:
    return (yield from _query("query-status", "status")) == "running"


def _poll(
    what: str, timeout_s: float, reached: Callable[[], Generator[Op, object, bool]]
) -> Generator[Op, object, None]:
    for _ in range(max(1, round(timeout_s / POLL_S))):
        if (yield from reached()):
            return
        yield Pause(POLL_S)
    raise ScriptError(Failure.STALLED, f"{what}: not within {timeout_s:g} s")


def accept_colo(plan: Plan) -> Steps:
    """Secondary: take the channel as the incoming migration."""
    yield from _call(_capabilities(plan))
    yield Give("colo")
    yield from _do("migrate-incoming", {"uri": "fd:colo"})
    return None


def await_colo(timeout_s: float) -> Steps:
    """Secondary: until the first copy is loaded and COLO runs."""
    entered = (yield from _query("query-migrate", "status")) == "colo"
    if entered and (yield from _running()):
        return None  # it was quicker than this script
    yield from _await_colo("the first copy of the VM", timeout_s, entered=entered)
    return None


def promote(plan: Plan, timeout_s: float) -> Steps:
    """Secondary: cut the old primary off, see that the copy is whole, end COLO, open the output,
    tell the network.

    At the failover QEMU itself switches every filter of the secondary off (4.6), so the output is
    open as soon as the guest runs; removing the sinks makes it last.
    """
    yield from _yank()
    in_colo = (yield from _query("query-colo-status", "mode")) == ColoMode.SECONDARY
    if in_colo:
        yield from _loads_no_more()
    yield Look()
    if in_colo:
        yield from _allow("already", Command("x-colo-lost-heartbeat"), timeout_s)
    elif not ((yield from _failed_over()) or (yield from _running())):
        raise ScriptError(Failure.REFUSED, "the secondary is not in COLO: it has no VM to become")
    yield from _poll("COLO to end", timeout_s, _colo_over)
    yield from _poll("the guest to run", timeout_s, _running)
    present = yield from _objects()
    sinks = [sink_id(netdev) for netdev in plan.netdevs if sink_id(netdev) in present]
    commands = [Command("object-del", {"id": name}) for name in sinks]
    announce = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
    yield from _call(*commands, Command("announce-self", announce))
    return None


def _loads_no_more() -> Generator[Op, object, None]:
    """Secondary that is cut off: wait until it can load no checkpoint any more.

    One that has arrived completely is still loaded. While its guest runs there is none, and the
    next would begin with an answer to the primary, which can no longer be sent (6.5). If it stands
    still COLO_EXIT is the end of it; that may have come before this daemon listened.
    """
    for _ in range(round(SETTLE_S / POLL_S)):
        if (yield Look()) or (yield from _running()):
            return
        yield Pause(POLL_S)


def _failed_over() -> Generator[Op, object, bool]:
    return (yield from _query("query-migrate", "status")) == "completed"


def _colo_over() -> Generator[Op, object, bool]:
    return (yield from _query("query-colo-status", "mode")) == ColoMode.NONE


def write(script: Script, plan: Plan, timeout_s: float, tape: Tape) -> Steps:
    """Return the steps of a script."""
    match script:
        case Script.ADOPT:
            return adopt(plan)
        case Script.CHECK:
            return check(timeout_s)
        case Script.ENTER_COLO:
            return enter_colo(plan, timeout_s)
        case Script.ARM:
            return arm(plan)
        case Script.EPOCH:
            return epoch(plan, timeout_s, tape)
        case Script.RELEASE:
            return release(plan)
        case Script.LEAVE_COLO:
            return leave_colo(plan, timeout_s)
        case Script.ACCEPT_COLO:
            return accept_colo(plan)
        case Script.AWAIT_COLO:
            return await_colo(timeout_s)
        case Script.PROMOTE:
            return promote(plan, timeout_s)
