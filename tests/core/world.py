"""Two nodes, a witness, a network and QEMU as the core sees them, in virtual time.

The machines are the real ones. QEMU is modelled at the level of scripts: a guest that counts,
output that is held or not, a copy that is as old as the last commit, sessions that break when
either end dies. Every outcome can be late. What clients hear is judged by `Clients`, which knows
nothing of the core.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from coloha.core.actions import (
    Action,
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
    ColoExited,
    ColoMode,
    Committed,
    Event,
    Failure,
    Heard,
    Invited,
    Kept,
    Launched,
    QemuExited,
    RecordRead,
    Role,
    Run,
    ScriptDone,
    ScriptFailed,
    Started,
    SwapDone,
    Timer,
    WitnessFailed,
)
from coloha.core.machine import PairMachine
from coloha.core.phases import Phase
from coloha.core.record import Record, swap_problem
from tests.core.model import BrokenPromiseError, Clients, Node, Qemu, Stream

GUEST_STEP_S = 0.01


class World:
    """Everything, and its clock."""

    def __init__(self, seed: int, **settings: Any) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.settings = settings
        self.order = itertools.count()
        self.heap: list[tuple[float, int, Callable[[], object]]] = []
        self.nodes = {name: Node(name) for name in ("alpha", "beta")}
        self.witness: Record | None = None
        self.witness_down: set[str] = set()
        self.witness_doubt = 0.0
        """Share of swaps that are answered by a timeout, made or not, early or late."""
        self.cut: set[tuple[str, str]] = set()
        self.loss = 0.0
        self.ack_loss = 0.0
        """Share of checkpoints whose acknowledgement is lost along with the stream."""
        self.channels: dict[int, Node] = {}
        self.clients = Clients()
        self.history: list[str] = []
        for name in self.nodes:
            self.start_daemon(name)
        self.at(0.0, self.guest_step)

    # Time

    def at(self, delay_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self.heap, (self.now + delay_s, next(self.order), what))

    def soon(self, what: Callable[[], object], up_to_s: float = 0.004) -> None:
        self.at(self.random.uniform(0.0002, up_to_s), what)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.heap and self.heap[0][0] <= end:
            self.now, _, what = heapq.heappop(self.heap)
            what()
        self.now = end

    def run_until(self, reached: Callable[[], bool], within_s: float) -> None:
        end = self.now + within_s
        while not reached():
            if self.now >= end:
                raise BrokenPromiseError(f"not reached within {within_s} s\n{self.story()}")
            self.run(0.05)

    def note(self, text: str) -> None:
        self.history.append(f"{self.now:9.4f} {text}")

    def story(self, last: int = 60) -> str:
        return "\n".join(self.history[-last:])

    # Daemons

    def other(self, node: Node) -> Node:
        return self.nodes["beta" if node.name == "alpha" else "alpha"]

    def start_daemon(self, name: str) -> None:
        node = self.nodes[name]
        if node.machine is not None:
            return
        node.life += 1
        settings = Settings(
            pair="vm",
            me=name,
            peer=self.other(node).name,
            first=name == "alpha",
            incarnation=self.random.getrandbits(40),
            **self.settings,
        )
        node.machine = PairMachine(settings, self.now)
        found = node.qemu.run if node.qemu else None
        self.note(f"{name}: daemon starts, finds {found.id if found else 'no QEMU'}")
        self.feed(node, Started(node.disk, found))
        self.beat_forever(node, node.life)
        self.tick(node, node.life)

    def kill_daemon(self, name: str) -> None:
        node = self.nodes[name]
        if node.machine is not None:
            self.note(f"{name}: daemon killed")
            node.machine = None
            node.life += 1

    def alive(self, node: Node, life: int) -> bool:
        return node.machine is not None and node.life == life

    def deliver(self, node: Node, event: Event, delay_s: float | None = None) -> None:
        """Hand an event to this life of the daemon, later."""
        life = node.life

        def hand() -> None:
            if not self.alive(node, life):
                return
            if node.frozen:
                self.at(0.01, hand)
            else:
                self.feed(node, event)

        if delay_s is None:
            self.soon(hand)
        else:
            self.at(delay_s, hand)

    def feed(self, node: Node, event: Event) -> None:
        assert node.machine is not None
        before = node.machine.snapshot().phase
        actions = node.machine.step(event, self.now)
        after = node.machine.snapshot()
        if node.machine.deadline() <= self.now:
            raise BrokenPromiseError(f"{node.name} spins in {after.phase}")
        if after.phase is not before:
            self.note(f"{node.name}: {before} -> {after.phase} ({type(event).__name__})")
        for action in actions:
            self.act(node, action)

    def tick(self, node: Node, life: int) -> None:
        if not self.alive(node, life):
            return
        assert node.machine is not None
        if node.frozen:
            self.at(0.01, lambda: self.tick(node, life))
            return
        if self.now >= node.machine.deadline():
            self.feed(node, Timer())
        delay = max(0.0005, node.machine.deadline() - self.now) if node.machine else 0.01
        self.at(min(delay, 0.005), lambda: self.tick(node, life))

    # Network

    def beat_forever(self, node: Node, life: int) -> None:
        if not self.alive(node, life):
            return
        self.beat(node)
        interval = self.settings.get("interval_s", 0.1)
        self.at(interval, lambda: self.beat_forever(node, life))

    def beat(self, node: Node) -> None:
        if node.machine is None or node.frozen:
            return
        peer = self.other(node)
        if (node.name, peer.name) in self.cut or self.random.random() < self.loss:
            return
        state = node.machine.snapshot().wire
        self.deliver(peer, Heard(state))

    def reachable(self, node: Node) -> bool:
        peer = self.other(node)
        return not self.cut & {(node.name, peer.name), (peer.name, node.name)}

    # Actions

    def act(self, node: Node, action: Action) -> None:
        match action:
            case Persist(durable):
                node.disk = durable
            case ReadRecord():
                self.soon(partial(self.read_record, node, node.life))
            case SwapRecord():
                self.soon(partial(self.swap_record, node, node.life, action))
            case Launch(run):
                assert node.qemu is None, "two QEMUs of one pair on one node"
                self.launch(node, run)
            case Kill(run):
                self.soon(lambda: self.kill_qemu(node.name, run))
            case RunScript():
                self.run_script(node, action)
            case Invite(session, generation):
                self.invite(node, session, generation)
            case Admit(session):
                inviter = self.channels.get(session)
                if inviter is not None:
                    self.deliver(inviter, ChannelReady(session))
            case DropChannel(session, reason):
                inviter = self.channels.pop(session, None)
                if inviter is not None:
                    self.deliver(inviter, ChannelFailed(session, reason))
            case Beat():
                self.soon(lambda: self.beat(node), 0.001)
            case Tell():
                node.told.append(action)
                self.note(f"{node.name}: {action.kind}: {action.text}")

    def answer(self, node: Node, life: int, event: Event, delay_s: float | None = None) -> None:
        if self.alive(node, life):
            self.deliver(node, event, delay_s)

    def read_record(self, node: Node, life: int) -> None:
        if node.name in self.witness_down:
            self.answer(node, life, WitnessFailed("down"), 0.2)
        else:
            self.answer(node, life, RecordRead(self.witness))

    def swap_record(self, node: Node, life: int, swap: SwapRecord) -> None:
        # A swap under way survives the daemon that asked for it.
        if node.name in self.witness_down:
            self.answer(node, life, WitnessFailed("down"), 0.2)
        elif self.random.random() < self.witness_doubt:
            fate = self.random.random()
            if fate < 0.7:
                late_s = 0.0 if fate < 0.4 else self.random.uniform(0.2, 3.0)
                self.at(late_s, partial(self.make_swap, node, swap))
            self.answer(node, life, WitnessFailed("no answer", unknown=True), 0.3)
        else:
            made = self.make_swap(node, swap)
            self.answer(node, life, SwapDone(swap.new) if made else RecordRead(self.witness))

    def make_swap(self, node: Node, swap: SwapRecord) -> bool:
        if self.witness != swap.expected:
            return False
        problem = swap_problem(self.witness, swap.new, node.name)
        if problem:
            raise BrokenPromiseError(problem)
        self.note(f"witness: {self.witness} -> {swap.new} by {node.name}")
        self.witness = swap.new
        return True

    def invite(self, node: Node, session: int, generation: int) -> None:
        peer = self.other(node)
        self.channels[session] = node
        if not self.reachable(node) or peer.machine is None:
            self.deliver(node, ChannelFailed(session, "no connection"), 0.3)
            return
        self.deliver(peer, Invited(session, generation))
        life = node.life

        def expire() -> None:
            if self.alive(node, life):
                self.deliver(node, ChannelFailed(session, "no answer"))

        self.at(10.0, expire)

    # QEMU

    def launch(self, node: Node, run: Run) -> None:
        qemu = Qemu(run, running=run.role is Role.PRIMARY, sunk=run.role is Role.SECONDARY)
        node.qemu = qemu
        if run.role is Role.PRIMARY:
            assert self.witness is not None
            qemu.generation = self.witness.generation
            self.clients.rebooted()
            qemu.life = self.clients.lives
            self.note(f"{node.name}: the VM boots ({run.id})")
        self.deliver(node, Launched(run), self.random.uniform(0.05, 0.3))

    def kill_qemu(self, name: str, run: Run | None = None) -> None:
        node = self.nodes[name]
        qemu = node.qemu
        if qemu is None or (run is not None and qemu.run != run):
            return
        self.note(f"{name}: QEMU {qemu.run.id} dies")
        node.qemu = None
        self.break_stream(qemu.stream)
        if node.machine is not None:
            self.deliver(node, QemuExited(qemu.run, "killed"))

    def break_stream(self, stream: Stream | None) -> None:
        """End a session: both ends that live notice, unless the network hides it."""
        if stream is None or stream.broken:
            return
        stream.broken = True
        for qemu in (stream.primary, stream.secondary):
            node = self.node_of(qemu)
            if node is not None and node.machine is not None and qemu.colo is not ColoMode.NONE:
                # Across a cut only TCP's own timeout tells.
                self.deliver(node, ColoExited(), None if self.reachable(node) else 1.5)

    def node_of(self, qemu: Qemu) -> Node | None:
        return next((n for n in self.nodes.values() if n.qemu is qemu), None)

    def guest_step(self) -> None:
        for node in self.nodes.values():
            qemu = node.qemu
            if qemu is None or not qemu.running or qemu.frozen or node.frozen:
                continue
            qemu.count += 1
            if qemu.sunk:
                continue
            if qemu.buffers:
                qemu.a.append(qemu.count)
            else:
                self.clients.hear(node.name, qemu.generation, qemu.count)
        self.at(GUEST_STEP_S, self.guest_step)

    def freeze_qemu(self, name: str) -> None:
        qemu = self.nodes[name].qemu
        if qemu is not None:
            self.note(f"{name}: QEMU freezes")
            qemu.frozen = True

    def run_script(self, node: Node, script: RunScript) -> None:
        node.scripts = script.number
        if node.qemu is None:
            return
        qemu, life, written_at = node.qemu, node.life, self.now

        def step(work: Callable[[], object], tries: float) -> None:
            """Run the script when the process can; tell the daemon unless it has moved on."""
            if node.qemu is not qemu:
                return
            current = self.alive(node, life) and node.scripts == script.number
            if qemu.frozen or node.frozen:
                if tries <= 0 and current:
                    fail = ScriptFailed(script.number, Failure.SILENT, "no answer")
                    self.deliver(node, fail)
                    return
                self.at(0.05, lambda: step(work, tries - 0.05))
                return
            result = work()
            if current:
                if isinstance(result, ScriptFailed):
                    self.deliver(node, result)
                else:
                    self.deliver(node, ScriptDone(script.number, result))

        scripts = {
            Script.ADOPT: lambda: Adopted(qemu.colo),
            Script.CHECK: lambda: None,
            Script.ENTER_COLO: lambda: self.enter_colo(node, qemu, script),
            Script.ARM: lambda: setattr(qemu, "buffers", True),
            Script.RELEASE: lambda: self.release(node, qemu, written_at),
            Script.LEAVE_COLO: lambda: self.leave_colo(node, qemu),
            Script.ACCEPT_COLO: lambda: None,
            Script.PROMOTE: lambda: self.promote(node, qemu),
        }
        if script.script is Script.EPOCH:
            self.soon(lambda: self.begin_epoch(node, qemu, script, life))
        elif script.script is Script.AWAIT_COLO:
            self.await_colo(node, qemu, script, life, script.timeout_s)
        else:
            self.soon(lambda: step(scripts[script.script], script.timeout_s), 0.02)

    def enter_colo(self, node: Node, qemu: Qemu, script: RunScript) -> object:
        peer = self.other(node)
        target = peer.qemu
        if target is None or target.run.session != script.session or not self.reachable(node):
            return ScriptFailed(script.number, Failure.BROKEN, "migration failed")
        qemu.stream = target.stream = Stream(qemu, target)
        qemu.colo, target.colo = ColoMode.PRIMARY, ColoMode.SECONDARY
        target.count, target.running, target.life = qemu.count, True, qemu.life
        return None

    def await_colo(
        self, node: Node, qemu: Qemu, script: RunScript, life: int, left_s: float
    ) -> None:
        if node.qemu is not qemu or not self.alive(node, life) or node.scripts != script.number:
            return
        if qemu.colo is ColoMode.SECONDARY:
            self.deliver(node, ScriptDone(script.number))
        elif left_s <= 0:
            self.deliver(node, ScriptFailed(script.number, Failure.STALLED, "no copy came"))
        else:
            self.at(0.02, lambda: self.await_colo(node, qemu, script, life, left_s - 0.02))

    def begin_epoch(self, node: Node, qemu: Qemu, script: RunScript, life: int) -> None:
        """Stop the guest, empty A into B; the checkpoint loads some time later."""
        if node.qemu is not qemu:
            return
        if qemu.frozen or node.frozen:
            self.fail_later(node, life, script, Failure.SILENT)
            return
        qemu.running = False
        qemu.b += qemu.a
        qemu.a = []
        state = qemu.count
        self.soon(lambda: self.end_epoch(node, qemu, script, life, state), 0.02)

    def end_epoch(
        self, node: Node, qemu: Qemu, script: RunScript, life: int, state: int, waited_s: float = 0
    ) -> None:
        stream = qemu.stream
        if node.qemu is not qemu or stream is None or qemu.colo is ColoMode.NONE:
            return
        if stream.broken:
            self.tell_script(node, life, script, Failure.BROKEN)
            return
        secondary_node = self.node_of(stream.secondary)
        stuck = qemu.frozen or node.frozen or stream.secondary.frozen
        stuck = stuck or secondary_node is None or secondary_node.frozen
        if stuck or not self.reachable(node):
            if waited_s >= script.timeout_s:
                self.tell_script(node, life, script, Failure.STALLED)
                return
            again = waited_s + 0.05
            self.at(0.05, lambda: self.end_epoch(node, qemu, script, life, state, again))
            return
        stream.secondary.count = state
        if self.random.random() < self.ack_loss:
            # The acknowledgement is lost with the stream.
            self.break_stream(stream)
            self.tell_script(node, life, script, Failure.BROKEN)
            return
        qemu.running = True
        if self.alive(node, life) and node.scripts == script.number:
            doubtful = self.random.random() < 0.05
            result = Kept("another checkpoint was under way") if doubtful else Committed(0.005)
            self.deliver(node, ScriptDone(script.number, result))

    def fail_later(self, node: Node, life: int, script: RunScript, failure: Failure) -> None:
        self.at(script.timeout_s, lambda: self.tell_script(node, life, script, failure))

    def tell_script(self, node: Node, life: int, script: RunScript, failure: Failure) -> None:
        if self.alive(node, life) and node.scripts == script.number:
            self.deliver(node, ScriptFailed(script.number, failure, failure.value))

    def release(self, node: Node, qemu: Qemu, written_at: float) -> None:
        voice = self.clients.voice
        late = self.now > written_at + 0.05 and voice is not None and voice[1] != node.name
        for number in qemu.b:
            if late:
                self.clients.hear_stale(node.name, number, qemu.life)
            else:
                self.clients.hear(node.name, qemu.generation, number)
        qemu.b = []

    def leave_colo(self, node: Node, qemu: Qemu) -> None:
        self.break_stream(qemu.stream)
        qemu.colo, qemu.stream = ColoMode.NONE, None
        self.own(node, qemu)
        qemu.buffers = False
        for number in qemu.b + qemu.a:
            self.clients.hear(node.name, qemu.generation, number)
        qemu.a, qemu.b, qemu.running = [], [], True

    def promote(self, node: Node, qemu: Qemu) -> None:
        self.break_stream(qemu.stream)
        qemu.colo, qemu.stream = ColoMode.NONE, None
        self.own(node, qemu)
        qemu.sunk, qemu.running = False, True

    def own(self, node: Node, qemu: Qemu) -> None:
        """A QEMU that speaks freely: the record must say so."""
        record = self.witness
        if record is None or record.primary != node.name or record.protected:
            raise BrokenPromiseError(f"{node.name} speaks freely under {record}\n{self.story()}")
        qemu.generation = record.generation

    # Judgement

    def phases(self) -> dict[str, Phase | None]:
        return {
            name: node.machine.snapshot().phase if node.machine else None
            for name, node in self.nodes.items()
        }

    def protected(self) -> bool:
        return set(self.phases().values()) == {Phase.PROTECTED, Phase.FOLLOW}

    def in_phase(self, phase: Phase) -> Node:
        return next(self.nodes[name] for name, now in self.phases().items() if now is phase)
