"""QEMU's part in the scripts, pure: what each command does, and what happens by itself.

Its network is as QEMU's: guest output meets the filter created last first. So it can tell which
packets the world saw, and whether a checkpoint covered them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from coloha.core.commit import Message
from coloha.core.events import Role
from coloha.qemu.steps import Command, Tape


class AbortError(BaseException):
    """QEMU died of an assertion: no script may ever cause that."""


class RefusedError(Exception):
    """QEMU answers with an error."""


@dataclass(slots=True)
class Filter:
    """A filter-buffer, or the sink of a secondary."""

    id: str
    netdev: str
    buffers: bool
    on: bool
    queue: list[int] = field(default_factory=list)


class Qemu:
    """One QEMU 11, as primary or as secondary."""

    def __init__(self, role: Role, netdevs: tuple[str, ...] = ("net0",)) -> None:
        self.role = role
        self.netdevs = netdevs
        self.status = "running" if role is Role.PRIMARY else "inmigrate"
        self.migration = ""
        self.entered = False
        """COLO was entered and RESUME sent: only from here on may the delay be set."""
        self.yankable = False
        self.filters: list[Filter] = []
        self.sent = 0
        """Packets the guest has sent, per netdev: they are numbered from 1."""
        self.wire: dict[str, list[int]] = {netdev: [] for netdev in netdevs}
        self.captured = self.committed = 0
        """Newest packets that the checkpoint under way, and the secondary's memory, remember."""
        self.executed: list[Command] = []
        self.tape = Tape()
        self.coming: list[Callable[[], None]] = []
        """What happens next by itself, one thing per `advance`."""
        self.entering: list[Callable[[], None]] = []
        """What migrate or migrate-incoming brings about."""
        self.secondary_lives = True
        self.fd: str | None = None
        self.bad = False
        """It complained that it is half loaded."""
        self.left_colo = False
        """COLO_EXIT was heard."""
        self.at_yank: list[Callable[[], None]] = [self.leave_colo]
        """What comes of cutting the stream in COLO."""
        self.announced = 0
        self.refuse: dict[str, str] = {}
        """Errors that commands of these names are answered with."""
        self.entering = [self._migrating("active"), self._migrating("colo"), self._enter]
        if role is Role.PRIMARY:
            stop = [self._migrating("setup"), lambda: self._stop("finish-migrate")]
            self.entering[:1] = [stop[0], self.entering[0], stop[1]]
        else:
            self.filters += [Filter(f"sink-{netdev}", netdev, False, True) for netdev in netdevs]

    # The guest and its network

    def guest_sends(self) -> None:
        """The guest, if it runs, sends one packet on every netdev."""
        if self.status != "running":
            return
        self.sent += 1
        for netdev in self.netdevs:
            self._pass(netdev, [self.sent], len(self.filters))

    def _pass(self, netdev: str, packets: list[int], below: int) -> None:
        """Packets leave the filter at place `below`, or the guest: towards older filters."""
        for nearer in reversed(self.filters[:below]):
            if nearer.netdev == netdev and nearer.on:
                if nearer.buffers:
                    nearer.queue += packets
                return
        self.wire[netdev] += packets

    def _flush(self, target: Filter) -> None:
        packets, target.queue = target.queue, []
        self._pass(target.netdev, packets, self.filters.index(target))

    # Events

    def say(self, name: str, data: object = None) -> None:
        """Put an event on the tape."""
        self.tape.messages.append(Message(name, 0.0, data=data))

    def leave_colo(self) -> None:
        """COLO_EXIT."""
        self.left_colo = True
        self.say("COLO_EXIT", {"reason": "error"})

    def advance(self) -> bool:
        """Let the next thing happen; return whether there was one."""
        if not self.coming:
            return False
        self.coming.pop(0)()
        return True

    def _migrating(self, status: str) -> Callable[[], None]:
        def happen() -> None:
            self.migration = status
            self.say("MIGRATION", {"status": status})

        return happen

    def _stop(self, status: str) -> None:
        if self.status == "running":
            self.say("STOP")
        self.status = status

    def _resume(self) -> None:
        self.status = "running"
        self.say("RESUME")

    def _enter(self) -> None:
        self._resume()
        self.entered = True
        self.committed = self.sent

    # Commands

    def execute(self, command: Command) -> Message:
        """Execute one command; its reply is on the tape too, unless it is out of band."""
        self.executed.append(command)
        handler = getattr(self, "_do_" + command.name.replace("-", "_"), None)
        assert handler is not None, f"no script may need {command.name}"
        try:
            if command.name in self.refuse:
                raise RefusedError(self.refuse[command.name])
            reply = Message(command.name, 0.0, reply=True, data=handler(dict(command.arguments)))
        except RefusedError as error:
            reply = Message(command.name, 0.0, reply=True, error=str(error))
        if not command.oob:
            self.tape.messages.append(reply)
        return reply

    def give(self, name: str) -> None:
        """Getfd."""
        self.fd = name

    @property
    def mode(self) -> str:
        """As query-colo-status has it."""
        return self.role.value if self.migration == "colo" else "none"

    def _do_query_status(self, _: dict[str, Any]) -> object:
        return {"status": self.status, "running": self.status == "running"}

    def _do_query_colo_status(self, _: dict[str, Any]) -> object:
        return {"mode": self.mode, "last-mode": "none", "reason": "none"}

    def _do_query_migrate(self, _: dict[str, Any]) -> object:
        return {"status": self.migration} if self.migration else {}

    def _do_query_yank(self, _: dict[str, Any]) -> object:
        chardevs: list[object] = [{"type": "chardev", "id": "compat_monitor0"}]
        return [*chardevs, {"type": "migration"}] if self.yankable else chardevs

    def _do_qom_list(self, arguments: dict[str, Any]) -> object:
        assert arguments == {"path": "/objects"}
        others = [{"name": "type", "type": "string"}]
        return others + [{"name": each.id, "type": "child<filter>"} for each in self.filters]

    def _do_migrate_set_capabilities(self, arguments: dict[str, Any]) -> object:
        return {}

    def _do_migrate_set_parameters(self, arguments: dict[str, Any]) -> object:
        if "x-checkpoint-delay" in arguments and self.migration == "colo":
            if not self.entered:
                raise AbortError("qemu_event_set: Assertion `ev->initialized' failed")
            self.begin_checkpoint()
        return {}

    def begin_checkpoint(self) -> None:
        """Asked for, or by QEMU's own timer."""
        if self.coming or not self.secondary_lives or not self.entered:
            return  # one is under way, or nobody answers
        self.coming += [self._checkpoint_stops, self._checkpoint_loaded]

    def _checkpoint_stops(self) -> None:
        self._stop("colo")
        self.captured = self.sent

    def _checkpoint_loaded(self) -> None:
        self.committed = self.captured
        self._resume()

    def _do_migrate(self, arguments: dict[str, Any]) -> object:
        assert arguments == {"uri": f"fd:{self.fd}"}
        self.yankable = True
        self.coming += self.entering
        return {}

    def _do_migrate_incoming(self, arguments: dict[str, Any]) -> object:
        assert arguments == {"uri": f"fd:{self.fd}"}
        self.yankable = True
        self.coming += self.entering
        return {}

    def _do_yank(self, arguments: dict[str, Any]) -> object:
        assert arguments == {"instances": [{"type": "migration"}]}, "never the monitors"
        if not self.yankable:
            raise RefusedError("Instance not found")
        self.yankable = False
        self.secondary_lives = False
        self.coming.clear()
        if self.migration == "colo":
            self.coming += self.at_yank
        elif self.migration in ("setup", "active"):
            self.coming += [self._migrating("failed"), self._resume]
        return {}

    def _do_x_colo_lost_heartbeat(self, _: dict[str, Any]) -> object:
        if self.mode == "none":
            raise RefusedError("VM is not in COLO mode")
        if self._failover in self.coming:
            raise RefusedError("COLO failover is already activated")
        self.coming = [self._failover, self._resume]
        return {}

    def _failover(self) -> None:
        self._stop("colo")
        self._migrating("completed")()
        self.entered = False
        self.yankable = False
        if self.role is Role.SECONDARY:
            for each in self.filters:  # QEMU does that by itself
                each.on = False

    def _do_stop(self, _: dict[str, Any]) -> object:
        if self.status == "running":
            self._stop("paused")
        return {}

    def _do_cont(self, _: dict[str, Any]) -> object:
        if self.mode != "none":
            raise AbortError("cont during COLO lets the guest run ahead of a checkpoint")
        self._resume()
        return {}

    def _do_qom_set(self, arguments: dict[str, Any]) -> object:
        target = next((each for each in self.filters if arguments["path"].endswith(each.id)), None)
        if target is None or arguments["path"] != f"/objects/{target.id}":
            raise RefusedError(f"Device '{arguments['path']}' not found")
        assert arguments["property"] == "status"
        assert arguments["value"] in ("on", "off")
        target.on = arguments["value"] == "on"
        if not target.on:
            self._flush(target)
        return {}

    def _do_object_add(self, arguments: dict[str, Any]) -> object:
        if any(each.id == arguments["id"] for each in self.filters):
            raise RefusedError(f"attempt to add duplicate property '{arguments['id']}' to object")
        assert arguments["qom-type"] == "filter-buffer"
        assert arguments["queue"] == "rx", "rx is the guest's output"
        assert 0 < arguments["interval"] < 2**32, "0 and larger ones are refused"
        on = arguments["status"] == "on"
        self.filters.append(Filter(arguments["id"], arguments["netdev"], True, on))
        return {}

    def _do_object_del(self, arguments: dict[str, Any]) -> object:
        target = next((each for each in self.filters if each.id == arguments["id"]), None)
        if target is None:
            raise RefusedError(f"object '{arguments['id']}' not found")
        self._flush(target)
        self.filters.remove(target)
        return {}

    def _do_system_powerdown(self, _: dict[str, Any]) -> object:
        return {}

    def _do_announce_self(self, _: dict[str, Any]) -> object:
        self.announced += 1
        return {}
