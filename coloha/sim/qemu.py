"""A model of one QEMU process: its monitor, its guest, and the way of the guest's output.

It does what docs/qemu.md says, command by command, each when the process comes to it: what is
written to one that stands still is executed later. The guest is a number: the seconds it has run.
Its output up to some second is held, released or lost; which seconds clients have heard of is what
the checkers judge.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coloha.core.commit import Message
from coloha.core.events import ColoMode, Role, Run
from coloha.qemu.scripts import DEADMAN_MS, HOLD_US
from coloha.qemu.steps import Command

if TYPE_CHECKING:
    from coloha.sim.colo import Stream
    from coloha.sim.monitor import Monitor
    from coloha.sim.node import Node
    from coloha.sim.world import World


class RefusedError(Exception):
    """QEMU answers with an error."""


class AbortError(Exception):
    """QEMU died of an assertion: no script may ever cause that."""


class Qemu:
    """One process. `remembers` is how far its copy of the VM covers what the VM has said."""

    def __init__(self, world: "World", node: "Node", run: Run, life: int) -> None:
        primary = run.role is Role.PRIMARY
        self.world = world
        self.node = node
        self.run = run
        self.life = life
        """Which life of the VM it holds, counted by the checkers; 0 for none yet."""
        self.alive = True
        self.frozen = 0
        """Faults that make it stand still, its host's among them."""
        self.froze_at = self.thawed_at = self.died_at = float("-inf")
        self.status = "running" if primary else "inmigrate"
        self.migration = ""
        self.mode = ColoMode.NONE
        self.entered = False
        """COLO was entered and RESUME sent: only then may the delay be set."""
        self.blocked = False
        """The main loop waits for the stream: only out-of-band commands are executed."""
        self.stream: Stream | None = None
        self.channel: Stream | None = None
        """What getfd gave it."""
        self.bad = False
        """It is half loaded."""
        self.behind = False
        """Its disk lacks what its guest believes in."""
        self.off = False
        """The guest switched itself off."""
        self.ran = 0.0
        """Seconds the guest has run, up to `since`."""
        self.since = world.now
        self.remembers = 0.0
        self.a: bool | None = None
        self.b: bool | None = None
        """Filter-buffers A and B: on, off, or not there."""
        self.sink: bool | None = None if primary else True
        self.a_holds = self.b_holds = 0.0
        """A and B hold what the guest said from here on: A up to now, B up to where A's begins."""
        self.flush_at = float("inf")
        """When A and B empty themselves, in seconds of the guest (4.1)."""
        self.switched_at: float | None = None
        """What the daemon noted for the guard: since then the buffers have held; None: they do not.
        """
        self.monitor: Monitor | None = None
        self._inbox: deque[tuple[Command, int, float]] = deque()
        self._outbox: list[tuple[int, Message]] = []
        self._reading = self._saying = False
        self._deadman_at = float("inf")
        self._deadman_set = False

    @property
    def is_primary(self) -> bool:
        """Whether it is in COLO as the primary."""
        return self.mode is ColoMode.PRIMARY

    # The guest and its output

    def settle(self) -> None:
        """Let the guest have run until now, its output gone where it goes."""
        now = self.world.now
        if self.status == "running" and not self.frozen and self.alive and now > self.since:
            self.ran += now - self.since
            self.since = now
            self._emitted()
        self.since = now

    def _emitted(self) -> None:
        if self.sink:
            self.a_holds = self.b_holds = self.ran
        elif self.a:
            if self.ran >= self.flush_at:
                self._flush()
        elif self.b:
            self.a_holds = self.ran
        else:
            self.a_holds = self.b_holds = self.ran
            self.world.judge.heard(self, self.ran, free=True)

    def _empty_a(self) -> None:
        self.a_holds = self.ran
        if not self.b:
            self._empty_b(self.world.now)

    def _empty_b(self, written_at: float) -> None:
        if self.a_holds > self.b_holds:
            self.b_holds = self.a_holds
            self.world.settle()
            self.world.judge.heard(self, self.a_holds, written_at=written_at)

    def _flush(self) -> None:
        """Nobody has switched the buffers for very long."""
        self.flush_at = self.ran + HOLD_US / 1e6
        self._empty_a()
        self._empty_b(self.world.now)

    # The monitor

    def write(self, commands: tuple[Command, ...], token: int) -> None:
        """Put commands into the socket; `token` tells whose replies they will be."""
        now = self.world.now
        self._inbox.extend((command, token, now) for command in commands)
        self.read_soon()

    def read_soon(self) -> None:
        """Come to the socket in a moment, if the process can."""
        if self._inbox and not (self._reading or self.frozen or self.blocked):
            self._reading = True
            self.world.at(self.world.latency(0.0008), self._read)

    def _read(self) -> None:
        self._reading = False
        world = self.world
        while self._inbox and self.alive and not (self.frozen or self.blocked):
            command, token, written_at = self._inbox.popleft()
            self._answer(command, token, written_at)
            if world.random.random() < 0.03:  # something else has its turn in between
                self.read_soon()
                return

    def _answer(self, command: Command, token: int, written_at: float) -> None:
        self._send(token, self.reply(command, written_at))

    def reply(self, command: Command, written_at: float) -> Message:
        """Execute a command and return the reply to it."""
        self.settle()
        try:
            data = self.execute(command, written_at)
        except RefusedError as error:
            return Message(command.name, 0.0, reply=True, error=str(error))
        return Message(command.name, 0.0, reply=True, data=data)

    def forget_commands(self) -> None:
        """The client is gone: what was not read yet may or may not be executed."""
        if self.world.random.random() < 0.5:
            self._inbox.clear()

    def say(self, name: str, data: object = None) -> None:
        """Send an event."""
        self._send(0, Message(name, self.world.now, data=data))

    def _send(self, token: int, message: Message) -> None:
        self._outbox.append((token, message))
        if not self._saying:
            self._saying = True
            self.world.at(self.world.latency(0.0006), self._deliver)

    def _deliver(self) -> None:
        self._saying = False
        messages, self._outbox = self._outbox, []
        if self.monitor is not None:
            self.monitor.receive(messages)

    # Standing still, and dying

    def freeze(self) -> None:
        """Stand still."""
        self.settle()
        self.frozen += 1
        self.froze_at = self.world.now

    def thaw(self) -> None:
        """Go on, with the commands that came meanwhile."""
        self.settle()
        self.frozen -= 1
        if not self.frozen:
            self.thawed_at = self.world.now
            self.read_soon()

    def die(self) -> None:
        """Be gone; what it held is gone with it."""
        self.settle()
        self.alive = False
        self.died_at = self.world.now
        self._deliver()  # what it had written is read before its end is told

    # What commands do

    def execute(self, command: Command, written_at: float = 0.0) -> object:
        """Execute one command and return its value.

        :raises RefusedError: if QEMU would refuse it.
        """
        handler = _COMMANDS.get(command.name)
        assert handler is not None, f"no script may need {command.name}"
        if command.name == "qom-set":
            return self._qom_set(command.arguments, written_at)
        return handler(self, command.arguments)

    def _query_version(self, _: Any) -> object:
        return {}

    def _query_status(self, _: Any) -> object:
        return {"status": self.status, "running": self.status == "running"}

    def _query_colo_status(self, _: Any) -> object:
        return {"mode": self.mode}

    def _query_migrate(self, _: Any) -> object:
        return {"status": self.migration}

    def _query_yank(self, _: Any) -> object:
        alive = self.stream is not None and not self.stream.broken
        return [{"type": "migration"}] if alive else []

    def _qom_list(self, _: Any) -> object:
        present = (("hold-a-net0", self.a), ("hold-b-net0", self.b), ("sink-net0", self.sink))
        return [{"name": name} for name, there in present if there is not None]

    def _nothing(self, _: Any) -> object:
        return {}

    def _set_parameters(self, arguments: Any) -> object:
        if "x-checkpoint-delay" not in arguments or self.mode is not ColoMode.PRIMARY:
            return {}
        if not self.entered:
            raise AbortError("qemu_event_set: Assertion `ev->initialized' failed")
        self.arm_deadman()
        if self.stream is not None:
            self.stream.request()
        return {}

    def arm_deadman(self) -> None:
        """QEMU's own timer takes a checkpoint after the delay, counted anew each time it is set."""
        self._deadman_at = self.world.now + DEADMAN_MS / 1000
        if not self._deadman_set:
            self._deadman_set = True
            self.world.at(DEADMAN_MS / 1000, self._deadman)

    def _deadman(self) -> None:
        self._deadman_set = False
        if not self.alive or self.mode is not ColoMode.PRIMARY or self.stream is None:
            return
        left_s = self._deadman_at - self.world.now
        if left_s <= 0 and not self.frozen:
            self.stream.request()
            self.arm_deadman()
            return
        self._deadman_set = True
        self.world.at(max(left_s, 0.1), self._deadman)

    def _getfd(self, _: Any) -> object:
        self.channel = self.monitor.giving if self.monitor is not None else None
        return {}

    def _migrate(self, _: Any) -> object:
        if self.channel is None:
            raise RefusedError("no file descriptor of that name")
        self.stream, self.channel = self.channel, None
        self._migrating("setup")
        self._migrating("active")
        self.stream.join(self, ColoMode.PRIMARY)
        return {}

    def _migrate_incoming(self, _: Any) -> object:
        if self.channel is None:
            raise RefusedError("no file descriptor of that name")
        self.stream, self.channel = self.channel, None
        self._migrating("active")
        self.stream.join(self, ColoMode.SECONDARY)
        return {}

    def _migrating(self, status: str) -> None:
        self.migration = status
        self.say("MIGRATION", {"status": status})

    def enter(self, mode: ColoMode) -> None:
        """COLO begins."""
        self.settle()
        self.mode = mode
        self._migrating("colo")

    def stop_for_checkpoint(self) -> None:
        """The guest stands still for a checkpoint; it may do so already."""
        self.settle()
        if self.status == "running":
            self.say("STOP")
        self.status = "colo"

    def resume(self) -> None:
        """The guest runs."""
        self.settle()
        self.status = "running"
        self.say("RESUME")

    def migration_failed(self) -> None:
        """The first copy broke off: the guest goes on alone."""
        self._migrating("failed")
        self.mode, self.entered, self.stream = ColoMode.NONE, False, None
        self.resume()

    def _yank(self, _: Any) -> object:
        if self.stream is None or self.stream.broken:
            raise RefusedError("Instance not found")
        self.stream.shut_down(self)
        return {}

    def _lost_heartbeat(self, _: Any) -> object:
        if self.mode is ColoMode.NONE:
            raise RefusedError("VM is not in COLO mode")
        self.world.at(self.world.latency(0.004), self._fail_over, self.stream)
        return {}

    def _fail_over(self, stream: "Stream | None") -> None:
        if not self.alive or self.mode is ColoMode.NONE or stream is not self.stream:
            return
        if self.frozen:
            self.world.at(0.02, self._fail_over, stream)
            return
        self.world.settle()
        if stream is not None:
            stream.leave(self)
        mode, self.mode, self.entered, self.stream = self.mode, ColoMode.NONE, False, None
        if self.status == "running":
            self.say("STOP")
        self._migrating("completed")
        self.say("COLO_EXIT")
        if mode is ColoMode.SECONDARY:
            self.sink = False  # QEMU does that by itself
            self.world.judge.promoted(self)
        self.resume()

    def guest_ends(self, *, panicked: bool = False) -> None:
        """Have the guest switch itself off, or panic."""
        self.off = True
        self.say("SHUTDOWN", panicked)
        self.world.at(0.01, self.world.qemu_dies, self, "its guest switched itself off")

    def _system_powerdown(self, _: Any) -> object:
        self.world.at(self.world.latency(0.3), self._heed)
        return {}

    def _heed(self) -> None:
        if self.alive and self.status == "running" and not self.frozen and not self.off:
            self.guest_ends()

    def _stop(self, _: Any) -> object:
        if self.status == "running":
            self.status = "paused"
            self.say("STOP")
        return {}

    def _cont(self, _: Any) -> object:
        if self.mode is not ColoMode.NONE:
            raise AbortError("cont during COLO lets the guest run ahead of a checkpoint")
        self.resume()
        return {}

    def _qom_set(self, arguments: Any, written_at: float) -> object:
        letter = arguments["path"].removeprefix("/objects/hold-").partition("-")[0]
        was, on = getattr(self, letter), arguments["value"] == "on"
        if was is None:
            raise RefusedError(f"Device '{arguments['path']}' not found")
        setattr(self, letter, on)
        if on:
            self.flush_at = self.ran + HOLD_US / 1e6
        if was and not on:
            if letter == "a":
                self._empty_a()
            else:
                self._empty_b(written_at)
        return {}

    def _object_add(self, arguments: Any) -> object:
        letter = arguments["id"].removeprefix("hold-").partition("-")[0]
        if getattr(self, letter) is not None:
            raise RefusedError(f"attempt to add duplicate property '{arguments['id']}'")
        setattr(self, letter, arguments["status"] == "on")
        self.flush_at = self.ran + HOLD_US / 1e6
        return {}

    def _object_del(self, arguments: Any) -> object:
        name, _, rest = arguments["id"].partition("-")
        if name == "sink":
            self.sink = None
            return {}
        letter = rest.partition("-")[0]
        if getattr(self, letter) is None:
            raise RefusedError(f"object '{arguments['id']}' not found")
        setattr(self, letter, None)
        if letter == "a":
            self._empty_a()
        else:
            self._empty_b(self.world.now)
        return {}


_COMMANDS: dict[str, Callable[[Qemu, Any], object]] = {
    "query-version": Qemu._query_version,
    "query-status": Qemu._query_status,
    "query-colo-status": Qemu._query_colo_status,
    "query-migrate": Qemu._query_migrate,
    "query-yank": Qemu._query_yank,
    "qom-list": Qemu._qom_list,
    "qom-set": Qemu._nothing,
    "object-add": Qemu._object_add,
    "object-del": Qemu._object_del,
    "migrate-set-capabilities": Qemu._nothing,
    "migrate-set-parameters": Qemu._set_parameters,
    "getfd": Qemu._getfd,
    "migrate": Qemu._migrate,
    "migrate-incoming": Qemu._migrate_incoming,
    "yank": Qemu._yank,
    "x-colo-lost-heartbeat": Qemu._lost_heartbeat,
    "announce-self": Qemu._nothing,
    "system_powerdown": Qemu._system_powerdown,
    "stop": Qemu._stop,
    "cont": Qemu._cont,
}
