"""The daemon around the core, as `coloha.runtime.pair` and `keeper` are: one event at a time, its
actions in order, each `Persist` finished before the next begins.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coloha.core.actions import (
    Action,
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
from coloha.core.context import InvariantError, Settings
from coloha.core.events import (
    ChannelFailed,
    ChannelReady,
    Durable,
    Event,
    Heard,
    Invited,
    Launched,
    LaunchFailed,
    PeerState,
    QemuExited,
    Role,
    Run,
    Started,
    Timer,
)
from coloha.core.machine import PairMachine
from coloha.core.phases import Phase
from coloha.sim.checkers import Violation
from coloha.sim.colo import Stream
from coloha.sim.monitor import Monitor
from coloha.sim.network import Datagram
from coloha.sim.qemu import Qemu

if TYPE_CHECKING:
    from coloha.sim.node import Node
    from coloha.sim.world import World

INVITE_TIMEOUT_S = 3.0
_TIMER = Timer()


class Daemon:
    """One life of a node's daemon, from its start to its death."""

    def __init__(self, world: "World", node: "Node", settings: Settings) -> None:
        self.world = world
        self.node = node
        self.alive = True
        self.life = node.lives
        self.settings = settings
        self.machine = PairMachine(settings, node.now())
        self.state: PeerState | None = None
        """What heartbeats tell; older than the machine's own while that is being persisted."""
        self.phase = Phase.INIT
        self.monitor: Monitor | None = None
        self.heard_at = world.now
        """When anything of the other node came through, or this life began."""
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._stepping = False
        self._fresh = False
        """`state` is the machine's present one."""
        self._saving: Durable | None = None
        self._ended: QemuExited | None = None
        """What is to be told of a QEMU that died while this daemon stood still."""
        self._unfinished: tuple[list[Action], int] | None = None
        self._due = 0.0
        self._timer_at: float | None = None
        self._beating = False
        self._sequence = 0
        self._peer_life = self._peer_sequence = 0
        self._offers: dict[int, Stream] = {}
        self._channels: dict[int, Stream] = {}

    def start(self) -> None:
        """Find out what runs here, and begin."""
        qemu = self.node.qemu
        if qemu is not None:
            self._watch(qemu)
        self.post(Started(self.node.disk, qemu.run if qemu else None))
        self._beat_on()

    def _watch(self, qemu: Qemu) -> None:
        self.monitor = Monitor(self.world, self, qemu)

    def die(self) -> None:
        """End, in the middle of whatever it does."""
        if self._saving is not None and self.world.random.random() < 0.5:
            self.node.save(self._saving)  # made, although nobody was told
        self.alive = False
        if self.monitor is not None:
            self.monitor.close()
        for stream in (*self._offers.values(), *self._channels.values()):
            stream.disturbed()

    def go_on(self) -> None:
        """Run again after standing still."""
        if self.monitor is not None:
            self.monitor.catch_up()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            self._bury(ended)
        self.pump()

    def lost(self, qemu: Qemu, why: str) -> None:
        """A QEMU that this daemon watches has died: what it said is taken in first."""
        if self.monitor is None or self.monitor.qemu is not qemu:
            return
        ended = QemuExited(qemu.run, why)
        if self.node.stuck:
            self._ended = ended
        else:
            self._bury(ended)

    def _bury(self, ended: QemuExited) -> None:
        """Tell of a death; channels that QEMU did not live to take end with it."""
        for session in list(self._channels):
            self._close(session, ended.complaint)
        self.post(ended)

    # The pump

    def post(self, event: Event) -> None:
        """Put an event into the inbox."""
        if self.alive:
            self._inbox.append(event)
            self.pump()

    def pump(self) -> None:
        """Take in what waits, unless the daemon is busy or stands still."""
        node = self.node
        if self._stepping:
            return  # an action had its outcome at once: it waits for the rest of its batch
        if self._unfinished is not None and not node.stuck:
            (actions, start), self._unfinished = self._unfinished, None
            self._carry_out(actions, start)
        while self._inbox and self.alive and not (self._busy or node.stuck):
            if node.lags:
                self._busy = True
                self.world.at(max(node.lags), self._lagged)
                return
            self._feed(self._inbox.popleft())

    def _lagged(self) -> None:
        self._busy = False
        if self.alive and self._inbox and not self.node.stuck:
            self._feed(self._inbox.popleft())
        self.pump()

    def _feed(self, event: Event) -> None:
        now = self.node.now()
        if event is _TIMER:
            now = max(now, self._due)
        elif isinstance(event, QemuExited):
            self.node.tell_dead({event.run})
        try:
            actions = self.machine.step(event, now)
        except InvariantError as error:
            raise Violation("core-stopped", f"{self.node.name}: {error}") from error
        self._due = self.machine.deadline()
        if self._due <= now:
            raise Violation("spinning", f"{self.node.name} spins in {self.phase}")
        self._carry_out(actions, 0)
        self._arm()

    def _arm(self) -> None:
        due = self.node.clock.when(self._due)
        if self._timer_at is None or due < self._timer_at:
            self._timer_at = due
            self.world.at(max(0.0, due - self.world.now), self._fire, due)

    def _fire(self, at: float) -> None:
        if not self.alive or at != self._timer_at:
            return
        self._timer_at = None
        if self.node.clock.paused or self._busy or self.node.stuck:
            self._timer_at = at = self.world.now + 0.01
            self.world.at(0.01, self._fire, at)
        elif self.node.now() < self._due - 1e-9:
            self._arm()
        else:
            self.post(_TIMER)

    # Actions

    def _carry_out(self, actions: list[Action], start: int) -> None:
        self._stepping = True
        for index in range(start, len(actions)):
            action = actions[index]
            if type(action) is Persist:
                self._persist(action.durable, actions, index + 1)
                break
            _DO[type(action)](self, action)
        else:
            self._fresh = False
        self._stepping = False

    def _persist(self, durable: Durable, actions: list[Action], then: int) -> None:
        """Write to the disk; the rest of the batch waits until that is done."""
        self.world.moment("persist")
        self._busy = True
        self._saving = durable
        delay_s = self.world.latency(0.003) + max(self.node.fsyncs, default=0.0)
        self.world.at(delay_s, self._saved, durable, actions, then)

    def _saved(self, durable: Durable, actions: list[Action], start: int) -> None:
        if not self.alive:
            return
        self.node.save(durable)
        self._saving = None
        self._busy = False
        self._unfinished = (actions, start)
        self.pump()

    def _beat(self, _: Beat) -> None:
        """Something is new: very often the phase."""
        if not self._beating:
            self._beating = True
            self.world.at(self.world.latency(0.0006), self._beaten)

    def _beaten(self) -> None:
        self._beating = False
        if self.alive and not self.node.stuck:
            self._send()

    def _beat_on(self) -> None:
        if self.alive:
            if not self.node.stuck:
                self._send()
            self.world.at(self.settings.interval_s, self._beat_on)

    def wire(self) -> PeerState:
        """Return what heartbeats tell now."""
        if self.state is None or not (self._fresh or self._saving is not None):
            self.state = self.machine.wire()
            self._fresh = True
            if self.state.phase is not self.phase:
                self._moved(self.state.phase)
        return self.state

    def _moved(self, phase: Phase) -> None:
        self.world.note(self.node.name, f"{self.phase} -> {phase}")
        self.phase = phase
        self.world.moment(phase.value)

    def _send(self) -> None:
        self._sequence += 1
        datagram = Datagram(self.life, self._sequence, self._peer_life, self.wire())
        self.world.network.send(self, datagram)

    def hear(self, datagram: Datagram) -> None:
        """Take a datagram in, if it counts (see `coloha.core.wire`)."""
        if datagram.life < self._peer_life:
            return
        if datagram.life > self._peer_life:
            self._peer_life, self._peer_sequence = datagram.life, 0
        if datagram.sequence <= self._peer_sequence or datagram.answers != self.life:
            return
        self._peer_sequence = datagram.sequence
        self.heard_at = self.world.now
        self.post(Heard(datagram.state))

    def _read_record(self, _: ReadRecord) -> None:
        self.world.witness.read(self)

    def _swap_record(self, action: SwapRecord) -> None:
        self.world.moment("swap")
        self.world.witness.swap(self, action)

    def _fence(self, action: Fence) -> None:
        self.world.moment("fence")
        self.world.fencer.ask(self, action)

    def _tell(self, action: Tell) -> None:
        self.world.tells[action.kind] += 1
        self.world.note(self.node.name, f"{action.kind}: {action.text}")

    # QEMU

    def _launch(self, action: Launch) -> None:
        run, world, node = action.run, self.world, self.node
        if node.qemu is not None:
            raise Violation("two-qemus", f"{node.name} starts a QEMU beside another one")
        world.moment("launch")
        if world.take_fault("launch-fails"):
            world.at(0.05, self.post, LaunchFailed(run, "it could not be started"))
            return
        if run.role is Role.PRIMARY:
            world.settle()
            world.judge.boots(node)
            world.note(node.name, f"the VM boots (life {world.judge.life})")
        qemu = Qemu(world, node, run, world.judge.life if run.role is Role.PRIMARY else 0)
        node.qemu = qemu
        world.judge.launched(qemu)
        self._watch(qemu)
        world.at(world.random.uniform(0.03, 0.15), self._launched, qemu)

    def _launched(self, qemu: Qemu) -> None:
        if not (self.alive and qemu.alive):
            return
        if qemu.frozen:
            self.world.at(0.05, self._launched, qemu)
            return
        assert self.monitor is not None
        self.monitor.connected = True
        self.post(Launched(qemu.run))

    def _kill(self, action: Kill) -> None:
        self.world.at(self.world.latency(0.001), self._killed, action.run)

    def _killed(self, run: Run) -> None:
        qemu = self.node.qemu
        if not self.alive or self.node.stuck:
            return  # not sent: the machine insists
        if qemu is None or qemu.run != run:
            self.post(QemuExited(run, "it runs no longer"))
        else:
            self.world.settle()
            self.world.judge.killed(qemu)
            self.end(qemu)

    def end(self, qemu: Qemu) -> None:
        """Kill a QEMU for good (R3: SIGKILL, which lets nothing go)."""
        self.world.qemu_dies(qemu, "killed by its daemon")

    def _run_script(self, action: RunScript) -> None:
        if action.script is Script.RELEASE:
            self.world.moment("release")
        if self.monitor is not None and self.monitor.qemu.alive:
            self.monitor.run(action)

    # Channels

    def _invite(self, action: Invite) -> None:
        self.world.moment("invite")
        for old in list(self._channels):
            self._close(old, "superseded")
        self.world.at(self.world.latency(0.005), self._connect, action)

    def _connect(self, action: Invite) -> None:
        if not self.alive or self.monitor is None or not self.monitor.qemu.alive:
            return
        world, peer, session = self.world, self.node.other.daemon, action.session
        if not world.network.open() or peer is None or self.node.other.stuck:
            world.at(0.3, self.post, ChannelFailed(session, "no connection"))
            return
        stream = Stream(world, session, self, peer)
        world.streams.append(stream)
        self._channels[session] = stream
        peer._offers[session] = stream
        peer.post(Invited(session, action.generation))
        world.at(INVITE_TIMEOUT_S, self._unanswered, session)

    def _unanswered(self, session: int) -> None:
        self.post(ChannelFailed(session, "no answer"))

    def _admit(self, action: Admit) -> None:
        stream = self._offers.pop(action.session, None)
        if stream is not None and stream.inviter is not None:
            self.world.at(self.world.latency(0.003), self._admitted, stream, None)

    def _admitted(self, stream: Stream, refusal: str | None) -> None:
        """The answer to an invitation arrives, unless the way is cut: then it comes to nothing."""
        if not self.world.network.open() or stream.inviter is None:
            return
        if refusal is None:
            stream.inviter.post(ChannelReady(stream.session))
        else:
            stream.inviter.post(ChannelFailed(stream.session, refusal))

    def _drop(self, action: DropChannel) -> None:
        self._close(action.session, action.reason)

    def _close(self, session: int, reason: str) -> None:
        stream = self._offers.pop(session, None)
        if stream is not None:
            self.world.at(self.world.latency(0.003), self._admitted, stream, reason)
            stream.invited = None
        mine = self._channels.pop(session, None)
        if mine is not None:
            mine.inviter = None
        for each in (stream, mine):
            if each is not None:
                each.disturbed()

    def channel(self, script: RunScript) -> Stream | None:
        """Return the channel that a script may give to QEMU."""
        if script.session is None:
            return None
        if script.script is Script.ACCEPT_COLO:
            return self._offers.get(script.session)
        return self._channels.pop(script.session, None)


_DO: dict[type, Callable[[Daemon, Any], None]] = {
    ReadRecord: Daemon._read_record,
    SwapRecord: Daemon._swap_record,
    Launch: Daemon._launch,
    Kill: Daemon._kill,
    RunScript: Daemon._run_script,
    Invite: Daemon._invite,
    Admit: Daemon._admit,
    DropChannel: Daemon._drop,
    Fence: Daemon._fence,
    Beat: Daemon._beat,
    Tell: Daemon._tell,
}
