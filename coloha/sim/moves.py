"""What can happen next in a world, and what comes of it.

In each instant everything in flight comes about, in every order; then time passes. What does not
come about costs a fault: it is lost, or late. A batch of actions is one move, since all that its
actions do is to put something into flight, which may stay there, or to do something to this node's
own QEMU, which nobody else can see before; and since it can be cut off by a crash before each of
its actions, a Persist among them, for one fault.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from coloha.core.actions import (
    Admit,
    Beat,
    DropChannel,
    Invite,
    Kill,
    Launch,
    Persist,
    ReadRecord,
    RunScript,
    Script,
    SwapRecord,
    Tell,
)
from coloha.core.context import Settings
from coloha.core.events import (
    Adopted,
    ChannelFailed,
    ChannelReady,
    Committed,
    Durable,
    Event,
    Failure,
    Heard,
    Invited,
    Kept,
    Launched,
    LaunchFailed,
    QemuExited,
    RecordRead,
    ScriptDone,
    ScriptFailed,
    Started,
    SwapDone,
    WitnessFailed,
)
from coloha.core.phases import Phase
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
    Things,
    World,
    put,
)
from coloha.sim.checkers import Violation
from coloha.sim.frozen import PULSE, TIMER, Step

Move = tuple[Any, ...]
"""The name of a method of `Model`, and its arguments after the world."""

OLDEST = 30
"""Pulses that many ago are all the same."""

_FAILURES = (Failure.STALLED, Failure.SILENT, Failure.LOST)
_FAR = frozenset(
    {Script.ENTER_COLO, Script.EPOCH, Script.RELEASE, Script.LEAVE_COLO, Script.PROMOTE}
)
"""Scripts whose effect others can see before their daemon knows of it."""


def settings(node: int, life: int) -> Settings:
    """Return what a daemon is told: few instants between all that matters."""
    return Settings(
        pair="vm",
        me=NODES[node],
        peer=NODES[1 - node],
        first=node == 0,
        incarnation=2 * life + node,
        period_s=1.0,
        stall_timeout_s=2.0,
        interval_s=1.0,
        misses=3,
        sync_timeout_s=10.0,
        cold_start_after_s=3.0,
        retry_min_s=0.5,
        retry_max_s=0.5,
    )


class Model(Things):
    """Two daemons, the network and the witness around the things."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = self.minds.events.number(TIMER)
        self._heard_as: dict[tuple[int, bool, int], int] = {}
        self._cut_at: int | None = None
        """The daemon dies before the so-manieth action of the batch that counts."""

    def begin(self) -> World:
        """Return the world before anything has happened."""
        return World()

    def make(self, before: World, move: Move) -> World:
        """Return the world after a move.

        :raises Violation: if that breaks a promise.
        """
        w = before.copy()
        if move[0] == "crash_at":
            _, self._cut_at, move = move
            w.faults += 1
        getattr(self, move[0])(w, *move[1:])
        self._cut_at = None
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
                yield from self._stepping(w, ("timer", node), node, self._timer, left)
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
        if not w.away:
            yield ("goes_away",)

    def _stepping(self, w: World, move: Move, node: int, event: int, left: int) -> Iterator[Move]:
        """Yield a move that is one step of a daemon, whole, and cut off before each action."""
        yield move
        if not left:
            return
        step = self.minds.step(w.minds[node], event)
        counted = sum(type(action) not in (Tell, Beat) for action in step.actions)
        first = 0 if move[0] == "does" else 1  # dying with nothing done is a crash before
        for place in range(first, counted):
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

    # Daemons

    def step(self, w: World, node: int, event: int) -> None:
        """Let a daemon take in an event, by its number, and do what follows."""
        mind = w.minds[node]
        step, disk = self.minds.step(mind, event), self.minds.durable(mind)
        self._carry_out(w, node, step, disk, beat=event == self._timer)

    def _feed(self, w: World, node: int, event: Event) -> None:
        self.step(w, node, self.minds.events.number(event))

    def _carry_out(
        self, w: World, node: int, step: Step, disk: Durable, *, beat: bool = True
    ) -> None:
        if step.error is not None:
            raise Violation("core-stopped", f"{NODES[node]}: {step.error}")
        before = w.minds[node]
        w.minds = put(w.minds, node, step.mind)
        if step.made:
            self._grow(w, node, step.made)
        if self.log is not None and (
            before == NOBODY or self.minds.phase(before) is not self.minds.phase(step.mind)
        ):
            self.note(node, f"is now in phase {self.minds.phase(step.mind)}")
        counted = 0
        for action in step.actions:
            kind = type(action)
            if kind not in (Tell, Beat):
                if counted == self._cut_at:
                    self.note(node, "FAULT the daemon dies in the middle of what it does")
                    self._end_daemon(w, node, disk)
                    return
                counted += 1
            if kind is Persist:
                disk = action.durable  # type: ignore[union-attr]
                if self.log is not None:
                    self.note(node, f"persists {_worded(disk)}")
            elif kind is Beat:
                beat = True
            else:
                _DO[kind](self, w, node, action)
        if beat:
            self._beat(w, node)

    def _grow(self, w: World, node: int, made: int) -> None:
        """The pulses that a node made before are so much older."""
        if w.heard[1 - node] >= 0:
            w.heard = put(w.heard, 1 - node, min(w.heard[1 - node] + made, OLDEST))
        flight = []
        for number in w.flight:
            item: Item = self.items[number]
            if item.kind == "beat":
                wire, pulse, echo = item.what
                if item.node != node:
                    pulse = min(pulse + made, OLDEST)
                elif echo >= 0:
                    echo = min(echo + made, OLDEST)
                item = item._replace(what=(wire, pulse, echo))
            flight.append(self.items.number(item))
        w.flight = tuple(sorted(flight))

    def _beat(self, w: World, node: int) -> None:
        """Send a heartbeat; it overtakes one that is not late."""
        to = 1 - node
        for number in w.flight:
            item: Item = self.items[number]
            if item.kind == "beat" and item.node == to and item.when != LATE:
                self.take(w, number)
        if not w.cut[node] and w.minds[to] != NOBODY:
            wire = self.minds.wire(w.minds[node])
            self.send(w, "beat", to, (wire, 0, w.heard[node]))

    def timer(self, w: World, node: int) -> None:
        """A daemon's timer runs out."""
        self.step(w, node, self._timer)

    def news(self, w: World, number: int) -> None:
        """A daemon hears of something."""
        item = self.take(w, number)
        if self.log is not None:
            self.note(item.node, f"hears: {_worded(self.minds.events[item.what])}")
        self.step(w, item.node, item.what)

    def hear(self, w: World, number: int) -> None:
        """A heartbeat arrives; older ones that are still under way will not count."""
        node, (wire, pulse, echo) = self.items[number].node, self.items[number].what
        if self.log is not None:
            self.note(node, f"hears a heartbeat from {self.minds.wires[wire].phase}")
        self.take(w, number)
        self.drop_older(w, node, pulse)
        event = self._heartbeat(wire, pulse != w.heard[node], echo)
        if self.minds.wires[wire].phase is not Phase.INIT:
            w.heard = put(w.heard, node, pulse)
        self.step(w, node, event)

    def _heartbeat(self, wire: int, fresh: bool, echo: int) -> int:
        """Return the event that a heartbeat is. `fresh`: its pulse was not heard before."""
        key = wire, fresh, echo
        found = self._heard_as.get(key)
        if found is None:
            pulse, echoed = 2 if fresh else 1, PULSE - echo if echo >= 0 else 0
            heard = Heard(replace(self.minds.wires[wire], pulse=pulse, echo=echoed))
            found = self._heard_as[key] = self.minds.events.number(heard)
        return found

    def drop_older(self, w: World, node: int, pulse: int) -> None:
        """A heartbeat that was overtaken is refused."""
        items = self.items
        w.flight = tuple(
            n
            for n in w.flight
            if items[n].kind != "beat" or items[n].node != node or items[n].what[1] < pulse
        )

    def start(self, w: World, node: int) -> None:
        """A daemon starts."""
        self.note(node, "the daemon starts")
        self.drop(w, node, "beat")
        self.drop(w, 1 - node, "beat")
        life = w.lives[node] + 1
        w.lives = put(w.lives, node, life)
        w.heard = (-1, -1)
        qemu = self.qemu(w, node)
        durable = self.disks[w.disks[node]] or Durable()
        w.disks = put(w.disks, node, 0)
        begun = Started(durable, qemu.run if qemu is not None else None)
        self._carry_out(w, node, self.minds.begin(settings(node, life), begun), durable)

    def _end_daemon(self, w: World, node: int, disk: Durable) -> None:
        w.minds = put(w.minds, node, NOBODY)
        w.disks = put(w.disks, node, self.disks.number(disk))
        asked = [self.items[n] for n in w.flight if self.items[n].kind == "ask"]
        self.drop(w, node, "beat", "news", "script", "answer", "ask")
        for item in asked:
            if item.node == node and isinstance(item.what, SwapRecord):
                self.send(w, "ghost", node, item.what)
        if w.offer is None:
            return
        session, inviter = w.offer
        qemu = self.qemu(w, node)
        if inviter == node:
            self.clear_offer(w)
        elif qemu is None or qemu.run.session != session:
            self.tell(w, inviter, ChannelFailed(session, "connection reset"))
            w.offer = None

    # Actions

    def _ask(self, w: World, node: int, action: ReadRecord | SwapRecord) -> None:
        self.send(w, "ask", node, action)

    def _launch(self, w: World, node: int, action: Launch) -> None:
        self.note(node, f"starts QEMU {action.run.id} as {action.run.role}")
        self.launch(w, node, action.run)

    def _kill(self, w: World, node: int, action: Kill) -> None:
        qemu = self.qemu(w, node)
        if qemu is not None and qemu.run == action.run:
            self.note(node, "kills its QEMU")
            self.end(w, node)
        else:
            self.tell(w, node, QemuExited(action.run))

    def end(self, w: World, node: int) -> None:
        """End a QEMU for good (R3: SIGKILL, which lets nothing go)."""
        self.die(w, node)

    def _run(self, w: World, node: int, action: RunScript) -> None:
        self.drop(w, node, "script")
        if w.qemus[node]:
            when = LATER if action.script is Script.ENTER_COLO else NOW
            self.send(w, "script", node, (action.script, action.session, False), when)
            if action.script is Script.EPOCH:
                self.fill(w, node)

    def _invite(self, w: World, node: int, action: Invite) -> None:
        self.clear_offer(w)
        if any(w.cut) or w.minds[1 - node] == NOBODY:
            self.tell(w, node, ChannelFailed(action.session, "no connection"))
            return
        w.offer = action.session, node
        self.tell(w, 1 - node, Invited(action.session, action.generation))

    def _admit(self, w: World, node: int, action: Admit) -> None:
        if w.offer == (action.session, 1 - node):
            self.tell(w, 1 - node, ChannelReady(action.session))

    def _drop(self, w: World, node: int, action: DropChannel) -> None:
        self.tell(w, 1 - node, ChannelFailed(action.session, action.reason))
        if w.offer == (action.session, 1 - node):
            self.clear_offer(w)

    def _tell(self, w: World, node: int, action: Tell) -> None:
        del w
        self.note(node, f"{action.kind}: {action.text}")

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
        """A swap that nobody waits for reaches the witness."""
        item = self.take(w, number)
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
        return Committed(0.0) if script is Script.EPOCH else None

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
        self._feed(w, item.node, ScriptFailed(1, failure, str(failure)))

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
        self._feed(w, item.node, ScriptDone(1, self.resumed()))

    def resumed(self) -> object:
        """Return what the commit predicate makes of a RESUME that is none."""
        return Kept("no checkpoint")

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
        if item.kind == "ask":
            return f"the question to the witness: {_worded(item.what)}"
        return _worded(self.minds.events[item.what])

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
        self._feed(w, item.node, LaunchFailed(launched.run, "it does not start"))

    def crash(self, w: World, node: int) -> None:
        """A daemon dies."""
        self.note(node, "FAULT the daemon dies")
        w.faults += 1
        self._end_daemon(w, node, self.minds.durable(w.minds[node]))

    def kill(self, w: World, node: int) -> None:
        """A QEMU dies."""
        self.note(node, "FAULT QEMU dies")
        w.faults += 1
        self.die(w, node)

    def power(self, w: World, node: int) -> None:
        """A host dies, with all that runs there."""
        self.note(node, "FAULT the host dies")
        w.faults += 1
        durable = self.minds.durable(w.minds[node])
        self.die(w, node, quietly=True)
        self._end_daemon(w, node, durable)

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


def _worded(thing: Any) -> str:
    """Return an event, a question or what is persisted, with what it says and nothing else."""
    parts = ((field.name, getattr(thing, field.name)) for field in fields(thing))
    said = [f"{name} {getattr(part, 'id', part)}" for name, part in parts if part]
    return f"{type(thing).__name__} {', '.join(said)}".rstrip()


_DO: dict[type, Callable[[Model, World, int, Any], None]] = {
    ReadRecord: Model._ask,
    SwapRecord: Model._ask,
    Launch: Model._launch,
    Kill: Model._kill,
    RunScript: Model._run,
    Invite: Model._invite,
    Admit: Model._admit,
    DropChannel: Model._drop,
    Tell: Model._tell,
}
