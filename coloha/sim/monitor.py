"""The daemon's end of QEMU's monitor: it runs the real scripts, as `coloha.qemu.conductor` does."""

from typing import TYPE_CHECKING

from coloha.core.actions import RunScript, Script
from coloha.core.commit import Message
from coloha.core.events import (
    ColoExited,
    CopyBad,
    DiskFailed,
    Failure,
    GuestShutdown,
    Role,
    ScriptDone,
    ScriptFailed,
)
from coloha.qemu import scripts
from coloha.qemu.scripts import Plan
from coloha.qemu.steps import (
    ANSWER_S,
    Call,
    Command,
    Give,
    Look,
    Op,
    Pause,
    Report,
    ScriptError,
    Steps,
    Tape,
    Until,
)

if TYPE_CHECKING:
    from coloha.sim.colo import Stream
    from coloha.sim.daemon import Daemon
    from coloha.sim.qemu import Qemu
    from coloha.sim.world import World

PLAN = Plan(netdevs=("net0",), return_path=True)
CONNECT_POLL_S = 0.03


class Monitor:
    """One daemon's connection to one QEMU."""

    def __init__(self, world: "World", daemon: "Daemon", qemu: "Qemu") -> None:
        self.world = world
        self.daemon = daemon
        self.qemu = qemu
        self.connected = False
        self._left_colo = False
        self.giving: Stream | None = None
        """What the getfd under way hands over."""
        self._token = next(world.tokens)
        """Changes with each script: replies to commands of earlier ones, or to an earlier daemon,
        are not for this one.
        """
        self._script: RunScript | None = None
        self._steps: Steps | None = None
        self._began = self._epoch_at = 0.0
        """When the present script, and the last epoch, began."""
        self._tape = Tape()
        self._channel: Stream | None = None
        self._call: list[Message] = []
        self._expected = 0
        """How many replies the script waits for; 0 if it waits for an event, or nothing."""
        self._until: frozenset[str] | None = None
        self._serial = 0
        """Changes with each wait: what was meant for an earlier one means nothing."""
        self._what = ""
        self._deadline = float("inf")
        """When the present wait has lasted too long, and what that means."""
        self._failure = Failure.SILENT
        self._watch_at = float("inf")
        self._backlog: list[tuple[int, Message]] = []
        qemu.monitor = self

    def close(self) -> None:
        """The daemon is gone."""
        self.connected = False
        self._cut_short()
        if self.qemu.monitor is self:
            self.qemu.monitor = None
            self.qemu.forget_commands()

    # Scripts

    def run(self, script: RunScript) -> None:
        """Run a script, ending the one under way. Posts `ScriptDone` or `ScriptFailed`."""
        self._cut_short()
        self._script = script
        self._channel = self.daemon.channel(script)
        if script.script is Script.ADOPT and not self.connected:
            self._connect(script, self.world.now + script.timeout_s)
        else:
            self._begin(script)

    def _cut_short(self) -> None:
        if self._steps is not None:
            self._steps.close()
        self._steps = self._script = self._until = None
        self._expected = 0
        self._token = next(self.world.tokens)
        self._serial += 1

    def _connect(self, script: RunScript, deadline: float) -> None:
        if self._script is not script or not self.daemon.alive:
            return
        if not self.qemu.frozen and not self.qemu.blocked and not self.daemon.node.stuck:
            self.connected = True
            self._begin(script)
        elif self.world.now >= deadline:
            self._fail(ScriptError(Failure.SILENT, "QEMU does not answer"))
        else:
            self.world.at(CONNECT_POLL_S, self._connect, script, deadline)

    def _begin(self, script: RunScript) -> None:
        self._began = self.world.now
        if script.script is Script.ARM and self.qemu.switched_at is None:
            self.world.guard(self.qemu)
        self._tape = Tape()
        self._steps = scripts.write(script.script, PLAN, script.timeout_s, self._tape)
        self._go_on(None)

    def _go_on(self, outcome: object, failure: ScriptError | None = None) -> None:
        steps, script = self._steps, self._script
        assert steps is not None
        assert script is not None
        self._serial += 1
        self._deadline = float("inf")
        try:
            op = steps.throw(failure) if failure is not None else steps.send(outcome)
        except StopIteration as end:
            self._steps = self._script = None
            if script.script is Script.ADOPT:
                self._copy_bad()
            self._tell_guard(script.script)
            self.daemon.post(ScriptDone(script.number, end.value))
        except ScriptError as error:
            self._fail(error)
        else:
            self._perform(op)

    def _tell_guard(self, done: Script) -> None:
        """As `coloha.runtime.keeper` does."""
        if done is Script.EPOCH:
            self._epoch_at = self._began
        elif done is Script.RELEASE:
            self.qemu.switched_at = self._epoch_at
        elif done is Script.LEAVE_COLO:
            self.qemu.switched_at = None

    def _fail(self, error: ScriptError) -> None:
        script = self._script
        assert script is not None
        self._steps = self._script = None
        self.daemon.post(ScriptFailed(script.number, error.failure, error.reason))

    def _perform(self, op: Op) -> None:
        serial = self._serial
        match op:
            case Call(commands, timeout_s):
                self._write(commands, timeout_s)
            case Until(names, timeout_s, what):
                event = self._tape.next_event(names)
                if event is not None:
                    self._go_on(event)
                    return
                self._until, self._what = names, what
                self._expect(timeout_s, Failure.STALLED)
            case Pause(seconds):
                self.world.at(seconds, self._paused, serial)
            case Look():
                self._look()
            case Report():
                self._go_on(None)
            case Give(fdname):
                if self._channel is None:
                    broken = ScriptError(Failure.BROKEN, "the channel is closed")
                    self._go_on(None, broken)
                    return
                self.giving = self._channel
                self._write((Command("getfd", {"fdname": fdname}),), ANSWER_S)

    def _look(self) -> None:
        if self._copy_bad():
            self._go_on(None, ScriptError(Failure.BROKEN, "the secondary is half loaded"))
        else:
            self._go_on(self._left_colo)

    def _write(self, commands: tuple[Command, ...], timeout_s: float) -> None:
        self._call = []
        self._expected = len(commands)
        self._what = commands[0].name
        self._expect(timeout_s, Failure.SILENT)
        if commands[0].oob:
            self.world.at(self.world.latency(0.001), self._out_of_band, commands, self._serial)
        else:
            self.qemu.write(commands, self._token)

    def _out_of_band(self, commands: tuple[Command, ...], serial: int) -> None:
        if serial != self._serial or not self.qemu.alive:
            return
        if self.qemu.frozen:
            self.world.at(CONNECT_POLL_S, self._out_of_band, commands, serial)
            return
        for command in commands:
            reply = self.qemu.reply(command, 0.0)
            self.receive([(self._token, reply)])

    def _expect(self, timeout_s: float, failure: Failure) -> None:
        """End the present wait with `failure` if it lasts longer than that."""
        self._deadline = self.world.now + timeout_s
        self._failure = failure
        if self._watch_at > self._deadline:
            self._watch_at = self._deadline
            self.world.at(timeout_s, self._watch, self._deadline)

    def _watch(self, at: float) -> None:
        if at != self._watch_at:
            return  # an earlier one took its place
        self._watch_at = float("inf")
        if self._steps is None or not self.daemon.alive or self._deadline == float("inf"):
            return
        left_s = self._deadline - self.world.now
        if left_s > 1e-9 or self.daemon.node.stuck:
            left_s = left_s if left_s > 1e-9 else CONNECT_POLL_S
            self._watch_at = self.world.now + left_s
            self.world.at(left_s, self._watch, self._watch_at)
            return
        self._expected = 0
        self._until = None
        self._go_on(None, ScriptError(self._failure, f"{self._what}: not in time"))

    def _paused(self, serial: int) -> None:
        if serial == self._serial and self._steps is not None:
            self._go_on(None)

    # What QEMU says

    def receive(self, messages: list[tuple[int, Message]]) -> None:
        """Take in messages of QEMU in their order, now or when the daemon goes on."""
        if not self.connected:
            return
        self._backlog += messages
        if not self.daemon.node.stuck:
            self.catch_up()

    def catch_up(self) -> None:
        """Take in what came while the daemon stood still."""
        messages, self._backlog = self._backlog, []
        for token, message in messages:
            if not message.reply:
                self._tape.messages.append(message)
                self._heard(message)
            elif token == self._token:
                self._tape.messages.append(message)
                self._call.append(message)
        if self._steps is None:
            return
        if self._expected and len(self._call) >= self._expected:
            self._expected = 0
            self._go_on(self._call)
        elif self._until is not None:
            event = self._tape.next_event(self._until)
            if event is not None:
                self._until = None
                self._go_on(event)

    def _heard(self, message: Message) -> None:
        if message.name == "COLO_EXIT":
            self._left_colo = True
            self._copy_bad()
            self.daemon.post(ColoExited())
        elif message.name == "SHUTDOWN":
            self.daemon.post(GuestShutdown(panicked=message.data is True))
        elif message.name == "QUORUM_REPORT_BAD":
            self.daemon.post(DiskFailed("an image missed a write", behind=bool(message.data)))

    def _copy_bad(self) -> bool:
        if self.qemu.run.role is Role.SECONDARY and self.qemu.bad:
            self.daemon.post(CopyBad("error while loading state"))
            return True
        return False
