"""Runs the pure scripts against the model of QEMU, step by step."""

from dataclasses import dataclass, field

from coloha.core.actions import Script
from coloha.core.events import Failure, Role
from coloha.qemu.scripts import Plan, write
from coloha.qemu.steps import Call, Command, Give, Look, Op, Pause, Report, ScriptError, Tape, Until
from tests.qemu.model import Qemu

TIMEOUT_S = 1.0

PLAN = Plan(("net0",), return_path=True)


class CutShortError(Exception):
    """The script was ended before its end, as the test wanted it."""


@dataclass(slots=True)
class Driver:
    """Runs scripts on a QEMU. The guest sends a packet between any two things that happen.

    `eager`: what happens by itself in QEMU happens between commands; else not before it is
    waited for.
    """

    qemu: Qemu
    plan: Plan = PLAN
    eager: bool = False
    ops: list[Op] = field(default_factory=list)
    """What the last script yielded."""
    silent: str | None = None
    """A command that QEMU executes, but not before the script gives up."""

    def run(self, script: Script, *, ops: int | None = None, commands: int | None = None) -> object:
        """Run a script to its end and return its result.

        :param ops: end it after so many steps, as the machine does when it has other plans.
        :param commands: end it after so many commands, as the daemon's death does.
        :raises CutShortError: if one of these came first.
        """
        self.ops = []
        self.qemu.tape = Tape()
        steps = write(script, self.plan, TIMEOUT_S, self.qemu.tape)
        outcome: object = None
        failure: ScriptError | None = None
        left = [commands] if commands is not None else []
        while True:
            try:
                op = steps.throw(failure) if failure is not None else steps.send(outcome)
            except StopIteration as end:
                return end.value
            failure = None
            if ops == len(self.ops):
                steps.close()
                raise CutShortError
            self.ops.append(op)
            try:
                outcome = self._perform(op, left)
            except ScriptError as error:
                failure = error

    def _perform(self, op: Op, left: list[int]) -> object:
        match op:
            case Report():
                return None
            case Call(commands):
                replies = [self._execute(command, left) for command in commands]
                if any(command.name == self.silent for command in commands):
                    raise ScriptError(Failure.SILENT, "no answer")
                return replies
            case Give(fdname):
                self._spend(left)
                self.qemu.give(fdname)
                return None
            case Look():
                if self.qemu.bad:
                    raise ScriptError(Failure.BROKEN, "half loaded")
                return self.qemu.left_colo
            case Pause():
                self._pass_time()
                return None
            case Until(names):
                while (event := self.qemu.tape.next_event(names)) is None:
                    if not self._pass_time():
                        raise ScriptError(Failure.STALLED, op.what)
                return event

    def _spend(self, left: list[int]) -> None:
        if left:
            if left[0] == 0:
                raise CutShortError
            left[0] -= 1

    def _execute(self, command: Command, left: list[int]) -> object:
        self._spend(left)
        reply = self.qemu.execute(command)
        self.qemu.guest_sends()
        if self.eager:
            self._pass_time()
        return reply

    def _pass_time(self) -> bool:
        happened = self.qemu.advance()
        self.qemu.guest_sends()
        return happened

    def settle(self) -> None:
        """Let happen what happens by itself."""
        while self._pass_time():
            pass


def primary(*scripts: Script, eager: bool = False, netdevs: tuple[str, ...] = ("net0",)) -> Driver:
    """A running VM on which these scripts were run."""
    return _driver(Role.PRIMARY, scripts, eager, netdevs)


def secondary(
    *scripts: Script, eager: bool = False, netdevs: tuple[str, ...] = ("net0",)
) -> Driver:
    """A QEMU that waits for a VM, on which these scripts were run."""
    return _driver(Role.SECONDARY, scripts, eager, netdevs)


def _driver(
    role: Role, scripts: tuple[Script, ...], eager: bool, netdevs: tuple[str, ...]
) -> Driver:
    driver = Driver(Qemu(role, netdevs), Plan(netdevs, return_path=True), eager)
    for script in scripts:
        driver.run(script)
    driver.qemu.executed.clear()
    return driver


PROTECTED = (Script.ENTER_COLO, Script.ARM)
FOLLOWING = (Script.ACCEPT_COLO, Script.AWAIT_COLO)


def short(command: Command) -> str:
    """A command in a few words."""
    arguments = command.arguments
    if command.name == "qom-set":
        where = str(arguments["path"]).removeprefix("/objects/")
        return f"{where} {arguments['value']}"
    if command.name in ("object-add", "object-del"):
        return f"{command.name[-3:]} {arguments['id']}"
    if command.name == "migrate-set-parameters" and set(arguments) == {"x-checkpoint-delay"}:
        return "trigger"
    return f"{command.name}!" if command.oob else command.name
