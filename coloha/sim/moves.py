"""What can happen next in a world, and what comes of it.

In each instant everything in flight comes about, in every order; then time passes. What does not
come about costs a fault: it is lost, or late. A batch of actions is one move, since all that its
actions do is to put something into flight, which may stay there, or to do something to this node's
own QEMU, which nobody else can see before; and since it can be cut off by a crash before each of
its actions, a Persist among them, for one fault.
"""

from collections.abc import Iterator
from typing import Any

from coloha.core.actions import Beat, Fence, Script, SwapRecord, Tell
from coloha.core.commit import Message, why_not
from coloha.core.events import (
    Adopted,
    ChannelFailed,
    Committed,
    Event,
    Failure,
    Fenced,
    FenceDone,
    Kept,
    Launched,
    LaunchFailed,
    RecordRead,
    ScriptDone,
    ScriptFailed,
    SwapDone,
    WitnessFailed,
)
from coloha.sim.abstract import (
    LATE,
    LATER,
    MODES,
    NOBODY,
    NODES,
    NOW,
    OVERDUE,
    SOME_TIME,
    Item,
    World,
)
from coloha.sim.acting import Daemons, worded

Move = tuple[Any, ...]
"""The name of a method of `Model`, and its arguments after the world."""

_FAILURES = (Failure.STALLED, Failure.SILENT, Failure.LOST)
_FAR = frozenset(
    {Script.ENTER_COLO, Script.EPOCH, Script.RELEASE, Script.LEAVE_COLO, Script.PROMOTE}
)
"""Scripts whose effect others can see before their daemon knows of it."""
_DONE = ("stop", "off", "on", "delay")
"""The replies to the commands of an epoch; the second empties buffer A."""


class Model(Daemons):
    """Two daemons, the network and the witness around the things."""

    late_disk = False
    """For tests: a daemon that has done a whole batch may die with its disk not yet written."""

    def begin(self) -> World:
        """Return the world before anything has happened."""
        return World()

    def make(self, before: World, move: Move) -> World:
        """Return the world after a move.

        :raises Violation: if that breaks a promise.
        """
        w = before.copy()
        self.cut_at = None
        if move[0] == "crash_at":
            _, self.cut_at, move = move
            w.faults += 1
        getattr(self, move[0])(w, *move[1:])
        self.judge(w)
        return w

    # What can happen

    def moves(self, w: World, left: int) -> Iterator[Move]:
        """Yield what can happen, with faults if some are left."""
        quiet = True
        for node in (0, 1):
            mind = w.minds[node]
            if mind != NOBODY and self.minds.due(mind):
                quiet = False
                yield from self._stepping(w, ("timer", node), node, self.timer_event, left)
        for number in dict.fromkeys(w.flight):
            item: Item = self.items[number]
            if item.when in (LATER, SOME_TIME):
                continue
            prompt = item.when != LATE and item.kind != "ghost"
            if item.kind == "script":
                prompt &= self._ready(w, item)
                yield from self._script_moves(w, number, item, left)
            else:
                yield from self._item_moves(w, number, item, left)
            if prompt:
                quiet = False
                if left and item.when == NOW:
                    yield "late", number
        if quiet:
            yield from self._repairs(w)
            yield ("tick",)
        if left:
            yield from self._faults(w)

    def _repairs(self, w: World) -> Iterator[Move]:
        """What ends a fault, or follows from it some time, comes at the end of an instant."""
        for node in (0, 1):
            if w.minds[node] == NOBODY:
                yield "start", node
        if any(w.cut):
            yield ("heal",)
            if w.stream is not None:
                yield ("break_off",)
        if w.away:
            yield ("answers_again",)
        for number in dict.fromkeys(w.flight):
            if self.items[number].when == SOME_TIME:
                yield "news", number

    def _faults(self, w: World) -> Iterator[Move]:
        for node in (0, 1):
            if w.minds[node] != NOBODY:
                yield "crash", node
            if w.qemus[node]:
                yield "kill", node
                if w.minds[node] != NOBODY:
                    yield "power", node
        if not any(w.cut):
            for cut in ((True, False), (False, True), (True, True)):
                yield "cut", cut
        if not w.away and self.settings.witnessed:
            yield ("goes_away",)

    def _stepping(self, w: World, move: Move, node: int, event: int, left: int) -> Iterator[Move]:
        """Yield a move that is one step of a daemon, whole, and cut off before each action."""
        yield move
        if not left:
            return
        step = self.minds.step(w.minds[node], event)
        counted = sum(type(action) not in (Tell, Beat) for action in step.actions)
        first = 0 if move[0] == "does" else 1  # dying with nothing done is a crash before
        for place in range(first, counted + self.late_disk):
            yield "crash_at", place, move

    def _item_moves(self, w: World, number: int, item: Item, left: int) -> Iterator[Move]:
        kind, node = item.kind, item.node
        if kind == "beat":
            yield "hear", number
        elif kind == "news":
            yield from self._stepping(w, ("news", number), node, item.what, left)
            if left and isinstance(self.minds.events[item.what], Launched):
                yield "launch_fails", number
        elif kind == "answer":
            yield from self._stepping(w, ("news", number), node, item.what, left)
            if left and isinstance(self.minds.events[item.what], SwapDone):
                yield "unanswered", number
        elif kind == "ask":
            yield "asked", number
            if left and not w.away:
                yield "unanswered", number
        elif kind == "fence":
            yield "fenced", number
            if left:
                for outcome in (Fenced.FAILED, Fenced.UNKNOWN):
                    yield "not_fenced", number, outcome
                yield "fenced_unseen", number
        else:
            yield "haunt", number
        if left and kind == "beat":
            yield "lose", number

    def _ready(self, w: World, item: Item) -> bool:
        script, _, executed = item.what
        return executed or self.able(w, item.node, script) is not None

    def _script_moves(self, w: World, number: int, item: Item, left: int) -> Iterator[Move]:
        script, _, executed = item.what
        if executed:
            if script is Script.EPOCH and w.stream is None:
                yield "fails", number, Failure.BROKEN
                return
            if script is Script.EPOCH and any(w.cut):
                return
            done = self._done(w, item)
            yield from self._stepping(w, ("told", number), item.node, done, left)
            if left:
                yield "fails", number, Failure.LOST
                if script is Script.EPOCH:
                    yield "unacknowledged", number
            return
        able = self.able(w, item.node, script)
        if able is False:
            yield "fails", number, Failure.BROKEN
            return
        if able and script in _FAR:
            yield "executes", number
        elif able:
            done = self._done(w, item)
            yield from self._stepping(w, ("does", number), item.node, done, left)
        if not left:
            return
        for failure in _FAILURES:
            yield "fails", number, failure
        if able and script is Script.EPOCH:
            yield "spoils", number
            yield "keeps", number

    # The witness

    def asked(self, w: World, number: int) -> None:
        """A question reaches the witness."""
        item = self.take(w, number)
        node, asked = item.node, item.what
        if w.away:
            unknown = isinstance(asked, SwapRecord)
            self._answer(w, node, WitnessFailed("no answer", unknown=unknown))
        elif isinstance(asked, SwapRecord) and self.swap(w, node, asked):
            self._answer(w, node, SwapDone(asked.new))
        else:
            self._answer(w, node, RecordRead(self.records[w.record]))

    def _answer(self, w: World, node: int, event: Event) -> None:
        self.send(w, "answer", node, self.minds.events.number(event))

    def unanswered(self, w: World, number: int) -> None:
        """A question, or the answer to a swap, is lost; a swap may yet be made."""
        item = self.take(w, number)
        unknown = item.kind == "answer" or isinstance(item.what, SwapRecord)
        what = "the answer" if item.kind == "answer" else "a question to the witness"
        self.note(item.node, f"FAULT {what} is lost")
        w.faults += 1
        self._answer(w, item.node, WitnessFailed("no answer", unknown=unknown))
        if item.kind == "ask" and unknown:
            self.send(w, "ghost", item.node, item.what)

    def haunt(self, w: World, number: int) -> None:
        """A swap or a fencing that nobody waits for is made after all."""
        item = self.take(w, number)
        if isinstance(item.what, Fence):
            self._switch_off(w, 1 - item.node)
            return
        self.note(item.node, "a swap that was given up reaches the witness")
        self.swap(w, item.node, item.what)

    def goes_away(self, w: World) -> None:
        """The witness stops answering."""
        self.note(-1, "FAULT the witness does not answer")
        w.faults += 1
        w.away = True

    def answers_again(self, w: World) -> None:
        """The witness is back."""
        self.note(-1, "the witness answers again")
        w.away = False

    # Fencing

    def _switch_off(self, w: World, node: int) -> None:
        self.note(node, "its host is switched off")
        self._lose_power(w, node)

    def _fence_over(self, w: World, number: int, outcome: Fenced) -> None:
        node = self.take(w, number).node
        self.note(node, f"the fencing is {outcome}")
        self.tell(w, node, FenceDone(1, outcome, str(outcome)))

    def fenced(self, w: World, number: int) -> None:
        """The other host is switched off, and that is seen."""
        self._switch_off(w, 1 - self.items[number].node)
        self._fence_over(w, number, Fenced.CONFIRMED)

    def fenced_unseen(self, w: World, number: int) -> None:
        """The other host is switched off, which nobody can say."""
        self.note(-1, "FAULT the answer to a fencing is lost")
        w.faults += 1
        self._switch_off(w, 1 - self.items[number].node)
        self._fence_over(w, number, Fenced.UNKNOWN)

    def not_fenced(self, w: World, number: int, outcome: Fenced) -> None:
        """The other host is not switched off; if that is unknown, it may yet be."""
        self.note(-1, "FAULT a fencing does not succeed")
        w.faults += 1
        if outcome is Fenced.UNKNOWN:
            self.send(w, "ghost", self.items[number].node, self.items[number].what)
        self._fence_over(w, number, outcome)

    # Scripts

    def _done(self, w: World, item: Item) -> int:
        """Return the event that a script is done."""
        return self.minds.events.number(ScriptDone(1, self._result(w, item)))

    def _result(self, w: World, item: Item) -> object:
        script = item.what[0]
        qemu = self.qemu(w, item.node)
        assert qemu is not None
        if script is Script.ADOPT:
            return Adopted(MODES[qemu.mode])
        return _judged("STOP", *_DONE, "RESUME") if script is Script.EPOCH else None

    def executes(self, w: World, number: int) -> None:
        """QEMU does what a script asks for; its daemon does not know yet."""
        item = self.take(w, number)
        script, session, _ = item.what
        self.note(item.node, f"QEMU executes {script}")
        self.send(w, "script", item.node, (script, session, True))
        self.effect(w, item.node, script)

    def told(self, w: World, number: int) -> None:
        """A daemon hears that a script is done."""
        item = self.take(w, number)
        self.note(item.node, f"hears that {item.what[0]} is done")
        self.step(w, item.node, self._done(w, item))

    def does(self, w: World, number: int) -> None:
        """QEMU does what a script asks for, and its daemon hears so."""
        item = self.take(w, number)
        script = item.what[0]
        done = self._done(w, item)
        self.note(item.node, f"QEMU executes {script}, and its daemon hears so")
        self.effect(w, item.node, script)
        self.step(w, item.node, done)

    def fails(self, w: World, number: int, failure: Failure) -> None:
        """A script fails; that it is broken needs no fault of its own."""
        item = self.take(w, number)
        free = failure is Failure.BROKEN
        w.faults += not free
        self.note(item.node, f"{'' if free else 'FAULT '}{item.what[0]} fails: {failure}")
        self.feed(w, item.node, ScriptFailed(1, failure, str(failure)))

    def unacknowledged(self, w: World, number: int) -> None:
        """The secondary has loaded a checkpoint, and the connection breaks."""
        self.note(self.items[number].node, "FAULT the acknowledgement of a checkpoint is lost")
        w.faults += 1
        self.break_stream(w)

    def spoils(self, w: World, number: int) -> None:
        """A checkpoint leaves the secondary half loaded."""
        node = self.items[number].node
        self.note(1 - node, "FAULT a checkpoint leaves QEMU half loaded")
        w.faults += 1
        self.spoil(w, node)

    def keeps(self, w: World, number: int) -> None:
        """The guest goes on without a checkpoint, and the commit predicate sees it."""
        item = self.take(w, number)
        self.note(item.node, "FAULT a RESUME that is no commit")
        w.faults += 1
        self.feed(w, item.node, ScriptDone(1, _judged("STOP", *_DONE, "STOP", "RESUME")))

    # Time and faults

    def tick(self, w: World) -> None:
        """An instant is over. A release that is late comes in the next one at the latest."""
        w.minds = (self._later(w.minds[0]), self._later(w.minds[1]))
        for number in w.flight:
            item: Item = self.items[number]
            if item.when == LATER:
                self._postpone(w, number, NOW)
            elif item.when == LATE and item.kind == "script" and item.what[0] is Script.RELEASE:
                self._postpone(w, number, OVERDUE)

    def _postpone(self, w: World, number: int, when: str) -> Item:
        item = self.take(w, number)
        self.send(w, item.kind, item.node, item.what, when)
        return item

    def _later(self, mind: int) -> int:
        return mind if mind == NOBODY else self.minds.later(mind)

    def late(self, w: World, number: int) -> None:
        """Something does not come about in this instant."""
        item = self._postpone(w, number, LATE)
        self.note(item.node, f"FAULT late: {self._named(item)}")
        w.faults += 1

    def _named(self, item: Item) -> str:
        if item.kind == "script":
            return f"{item.what[0]}{', or the news that it is done' if item.what[2] else ''}"
        if item.kind == "beat":
            return f"a heartbeat from {self.minds.wires[item.what[0]].phase}"
        if item.kind == "fence":
            return "the fencing"
        if item.kind == "ask":
            return f"the question to the witness: {worded(item.what)}"
        return worded(self.minds.events[item.what])

    def lose(self, w: World, number: int) -> None:
        """A heartbeat is lost."""
        item = self.take(w, number)
        self.note(item.node, "FAULT a heartbeat to it is lost")
        w.faults += 1

    def launch_fails(self, w: World, number: int) -> None:
        """QEMU could not be started after all."""
        item = self.take(w, number)
        launched = self.minds.events[item.what]
        self.note(item.node, "FAULT QEMU does not start")
        w.faults += 1
        self.set_qemu(w, item.node, None)
        self.drop(w, item.node, "script")
        self.feed(w, item.node, LaunchFailed(launched.run, "it does not start"))

    def crash(self, w: World, node: int) -> None:
        """A daemon dies."""
        self.note(node, "FAULT the daemon dies")
        w.faults += 1
        self.end_daemon(w, node, self.minds.durable(w.minds[node]))

    def kill(self, w: World, node: int) -> None:
        """A QEMU dies."""
        self.note(node, "FAULT QEMU dies")
        w.faults += 1
        self.die(w, node)

    def power(self, w: World, node: int) -> None:
        """A host dies, with all that runs there."""
        self.note(node, "FAULT the host dies")
        w.faults += 1
        self._lose_power(w, node)

    def _lose_power(self, w: World, node: int) -> None:
        durable = self.disk(w, node)
        self.die(w, node, quietly=True)
        if w.minds[node] != NOBODY:
            self.end_daemon(w, node, durable)

    def cut(self, w: World, cut: tuple[bool, bool]) -> None:
        """The way from one node, or from both, is cut; what is on it is lost."""
        ways = " and ".join(name for name, is_cut in zip(NODES, cut, strict=True) if is_cut)
        self.note(-1, f"FAULT the way from {ways} is cut")
        w.faults += 1
        w.cut = cut
        for node in (0, 1):
            if cut[node]:
                self.drop(w, 1 - node, "beat")
        if w.offer is not None:
            self.tell(w, w.offer[1], ChannelFailed(w.offer[0], "connection reset"))
            self.clear_offer(w)

    def heal(self, w: World) -> None:
        """The ways are open again."""
        self.note(-1, "the ways between the nodes are open again")
        w.cut = (False, False)

    def break_off(self, w: World) -> None:
        """A connection that makes no progress breaks."""
        self.note(-1, "the connection of the two QEMUs breaks")
        self.break_stream(w)


def _judged(*stream: str) -> Committed | Kept:
    """Return what the commit predicate makes of what QEMU sent during an epoch."""
    messages = [Message(name, 0.0, reply=name in _DONE) for name in stream]
    why = why_not(messages, len(_DONE), [1])
    return Committed(0.0) if why is None else Kept(why)
