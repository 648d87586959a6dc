"""What daemons do: a step of a real machine, and each action that it asks for.

A daemon dies in the middle of a batch if the move says so (`Daemons.cut_at`).
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from coloha.core.actions import (
    Admit,
    Beat,
    DropChannel,
    Fence,
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
    ChannelFailed,
    ChannelReady,
    Durable,
    Event,
    Heard,
    Invited,
    QemuExited,
    Started,
)
from coloha.core.phases import Phase
from coloha.sim.abstract import LATE, LATER, NOBODY, NODES, NOW, Item, Things, World, put
from coloha.sim.checkers import Violation
from coloha.sim.frozen import PULSE, TIMER, Step
from coloha.sim.history import decided_by

OLDEST = 30
"""Pulses that many ago are all the same."""


def settings(arbiter: str, node: int, life: int) -> Settings:
    """Return what a daemon is told: few instants between all that matters."""
    told = Settings(
        pair="vm",
        me=NODES[node],
        peer=NODES[1 - node],
        first=node == 0,
        incarnation=2 * life + node,
        period_s=1.0,
        stall_timeout_s=3.5,
        interval_s=1.0,
        misses=3,
        sync_timeout_s=10.0,
        cold_start_after_s=3.0,
        retry_min_s=0.5,
        retry_max_s=0.5,
    )
    return replace(decided_by(arbiter, told), fence_delay_s=1.0)


class Daemons(Things):
    """Two daemons around the things."""

    def __init__(self, arbiter: str = "witness") -> None:
        super().__init__(settings(arbiter, 0, 0))
        self.arbiter = arbiter
        self.timer_event = self.minds.events.number(TIMER)
        self._heard_as: dict[tuple[int, bool, int], int] = {}
        self.cut_at: int | None = None
        """The daemon dies before the so-manieth action of the batch that counts."""

    def step(self, w: World, node: int, event: int) -> None:
        """Let a daemon take in an event, by its number, and do what follows."""
        mind = w.minds[node]
        step, disk = self.minds.step(mind, event), self.minds.durable(mind)
        self._carry_out(w, node, step, disk, beat=event == self.timer_event)

    def feed(self, w: World, node: int, event: Event) -> None:
        """Let a daemon take in an event."""
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
                if counted == self.cut_at:
                    break
                counted += 1
            if kind is Persist:
                disk = self.persist(w, node, disk, action)  # type: ignore[arg-type]
            elif kind is Beat:
                beat = True
            else:
                _DO[kind](self, w, node, action)
        if counted == self.cut_at:
            self.note(node, "FAULT the daemon dies in the middle of what it does")
            self.end_daemon(w, node, disk)
        elif beat:
            self._beat(w, node)

    def persist(self, w: World, node: int, before: Durable, action: Persist) -> Durable:
        """Write to the disk, which held `before`; return what it holds now."""
        durable = action.durable
        if self.log is not None:
            self.note(node, f"persists {worded(durable)}")
        if durable.record is not None and durable.record != before.record:
            self.copied(w, node, durable.record)
        return durable

    def disk(self, w: World, node: int) -> Durable:
        """Return what a node's disk holds, between two moves."""
        if w.minds[node] != NOBODY:
            return self.minds.durable(w.minds[node])
        return self.disks[w.disks[node]] or Durable()

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
        self.step(w, node, self.timer_event)

    def news(self, w: World, number: int) -> None:
        """A daemon hears of something."""
        item = self.take(w, number)
        if self.log is not None:
            self.note(item.node, f"hears: {worded(self.minds.events[item.what])}")
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
        durable = self.disk(w, node)
        w.disks = put(w.disks, node, 0)
        begun = Started(durable, qemu.run if qemu is not None else None)
        self._carry_out(
            w, node, self.minds.begin(settings(self.arbiter, node, life), begun), durable
        )

    def end_daemon(self, w: World, node: int, disk: Durable) -> None:
        """A daemon is no more, with what it waited for."""
        w.minds = put(w.minds, node, NOBODY)
        w.disks = put(w.disks, node, self.disks.number(disk))
        asked = [item for n in w.flight if (item := self.items[n]).kind in ("ask", "fence")]
        self.drop(w, node, "beat", "news", "script", "answer", "ask", "fence")
        for item in asked:
            if item.node == node and not isinstance(item.what, ReadRecord):
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

    def _fence(self, w: World, node: int, action: Fence) -> None:
        self.send(w, "fence", node, action)

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
        self.tell(w, 1 - node, ChannelFailed(action.session, "dropped"))
        if w.offer == (action.session, 1 - node):
            self.clear_offer(w)

    def _tell(self, w: World, node: int, action: Tell) -> None:
        del w
        self.note(node, f"{action.kind}: {action.text}")


def worded(thing: Any) -> str:
    """Return an event, a question or what is persisted, with what it says and nothing else."""
    parts = ((field.name, getattr(thing, field.name)) for field in fields(thing))
    said = [f"{name} {getattr(part, 'id', part)}" for name, part in parts if part]
    return f"{type(thing).__name__} {', '.join(said)}".rstrip()


_DO: dict[type, Callable[[Daemons, World, int, Any], None]] = {
    ReadRecord: Daemons._ask,
    SwapRecord: Daemons._ask,
    Fence: Daemons._fence,
    Launch: Daemons._launch,
    Kill: Daemons._kill,
    RunScript: Daemons._run,
    Invite: Daemons._invite,
    Admit: Daemons._admit,
    DropChannel: Daemons._drop,
    Tell: Daemons._tell,
}
