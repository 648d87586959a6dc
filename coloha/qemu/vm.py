"""One QEMU process with its monitor: what the pair's runtime holds of a run."""

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from coloha.core.actions import Script
from coloha.core.commit import Message
from coloha.core.events import (
    Adopted,
    ColoExited,
    ColoMode,
    Committed,
    CopyBad,
    Event,
    Failure,
    GuestShutdown,
    QemuExited,
    Role,
    Run,
)
from coloha.errors import LaunchError, QmpError
from coloha.qemu import disks, versions
from coloha.qemu.command_line import Files
from coloha.qemu.conductor import conduct, cut_off
from coloha.qemu.process import Process
from coloha.qemu.qmp import Monitor
from coloha.qemu.scripts import Plan
from coloha.qemu.steps import Command, Progress, ScriptError

log = logging.getLogger(__name__)

START_S = 15.0
"""How long QEMU may take from exec to its first answer."""

LAST_WORDS_S = 0.05
"""How long to read, once the process is gone, what it still said: SHUTDOWN tells a guest that
switched itself off from a crash."""

STDERR_READ_BYTES = 64 * 1024

_COPY_BAD = re.compile(
    r"load device state failed"
    r"|error while loading state(?: section id \d+\((?!ram\))| for instance .* of device '(?!ram'))"
    r"|Unknown (?:savevm )?section"
    r"|unsupported version \d+ for '(?!ram')"
    r"|(?:Missing section footer|Mismatched section id in footer) for (?!ram\b)"
)
"""What QEMU says when a secondary is left half loaded (6.2): up to 7.2 the first, later the others
alone. An interrupted transfer of RAM goes to the cache alone and does no harm."""


class Vm:
    """A run's process and monitor. Events go to `post`."""

    def __init__(
        self,
        run: Run,
        files: Files,
        plan: Plan,
        traits: versions.Traits,
        post: Callable[[Event], None],
    ) -> None:
        """`plan` is what scripts need to know but for QEMU's version."""
        self.run = run
        self.files = files
        self.loaded = 0
        """Checkpoints that this QEMU has loaded as secondary, since the daemon watches it."""
        self.dead = asyncio.Event()
        """Nothing is left of the process: its taps and sockets are free."""
        self.version: versions.Version | None = None
        """Of QEMU, once it has answered."""
        self.quiet = False
        """Post nothing more."""
        self.progress: Progress | None = None
        """How far the copy of the disks has come, while there is one."""
        self.copying_since = 0.0
        """When that copy began, monotonic seconds."""
        self.demanded: int | None = None
        """Mode `compare`, as primary: the session's checkpoints that QEMU asked for by itself."""
        self._resumed = 0
        """How often the guest has gone on since its output is compared."""
        self._left_colo = False
        self._lost_write: str | None = None
        """The write of this session that the other node's disk missed."""
        self._cutting: asyncio.Task[None] | None = None
        self._traits = traits
        self._post = post
        self._process: Process | None = None
        self._monitor: Monitor | None = None
        self._plan = plan
        self._farewell: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def hold(self, process: Process) -> None:
        """Watch the process; its death is posted as `QemuExited`."""
        self._process = process
        process.watch(self._ended, self._dead)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    @property
    def pid(self) -> int | None:
        """The process, while it lives."""
        return self._process.pid if self._process is not None and not self.dead.is_set() else None

    @property
    def answered_at(self) -> float | None:
        """When QEMU last said anything, monotonic seconds."""
        return self._monitor.heard_at if self._monitor is not None else None

    @property
    def lost(self) -> bool:
        """The monitor was connected, and is no longer."""
        return self._monitor is not None and self._monitor.lost.is_set()

    async def connect(self, deadline_s: float = START_S) -> None:
        """Connect the monitor, anew if it was lost, and see whether this QEMU may be used.

        :raises LaunchError: if it does not answer, or its version is refused.
        """
        if self._monitor is not None:
            if not self.lost:
                return
            await self._monitor.close()
        monitor = Monitor(self.run.id, self._heard)
        try:
            version = await self._greet(monitor, deadline_s)
            problems = versions.problems(version, self._traits)
            if problems:
                raise LaunchError("; ".join(problems))
        except BaseException:
            await monitor.close()
            raise
        self._monitor = monitor
        if self._process is not None:
            self._process.watch_threads()
        self.version = version
        self._plan = replace(self._plan, return_path=versions.needs_return_path(version))

    async def _greet(self, monitor: Monitor, deadline_s: float) -> versions.Version:
        try:
            await monitor.connect(self.files.qmp, self.files.oob, deadline_s, self._alive)
            (reply,) = await monitor.call((Command("query-version"),), deadline_s)
            return versions.parse(reply.data)
        except (QmpError, ScriptError, ValueError) as error:
            complaint = self.complaint()
            raise LaunchError(f"{error}: {complaint}" if complaint else str(error)) from error

    async def ask(self, command: Command) -> Message:
        """Execute one command; its reply may be an error.

        :raises LaunchError: if there is none in time.
        """
        assert self._monitor is not None
        try:
            (reply,) = await self._monitor.call((command,), START_S)
        except ScriptError as error:
            raise LaunchError(f"{command.name}: {error}") from error
        return reply

    def _alive(self) -> bool:
        return not self.dead.is_set()

    async def perform(
        self,
        script: Script,
        timeout_s: float,
        channel: socket.socket | None,
        links: Mapping[str, socket.socket] | None = None,
    ) -> object:
        """Run a script. `links` are further connections that it gives to QEMU, by name.

        :raises ScriptError: if it does not succeed.
        """
        assert self._monitor is not None
        if script is Script.ENTER_COLO:
            self._lost_write = None
        elif script is Script.EPOCH and self._lost_write is not None:
            raise ScriptError(Failure.BROKEN, self._lost_write)
        connections = {**({} if channel is None else {"colo": channel}), **(links or {})}
        try:
            result = await conduct(
                script, self._plan, timeout_s, self._monitor, connections, self._look, self._report
            )
        except ScriptError as error:
            if error.failure is Failure.LOST:
                # What QEMU said last comes first: a guest that switched itself off did not hang.
                await self._monitor.drain(LAST_WORDS_S)
            raise
        finally:
            self.progress = None
        if self._plan.limits is not None:
            self._count(script, result)
        if script is Script.ADOPT:
            self._check_copy()  # it may have broken before anyone listened
        return result

    def _count(self, script: Script, result: object) -> None:
        """Tell the checkpoints that epochs asked for from the others."""
        adopted = isinstance(result, Adopted) and result.colo is ColoMode.PRIMARY
        if script is Script.ARM or adopted:
            self.demanded = self._resumed = 0
        elif script is Script.LEAVE_COLO:
            self.demanded = None
        elif script is Script.EPOCH and self.demanded is not None:
            self.demanded += max(0, self._resumed - isinstance(result, Committed))
            self._resumed = 0

    def _report(self, progress: Progress) -> None:
        if self.progress is None:
            self.copying_since = time.monotonic()
        self.progress = progress

    def cut(self) -> None:
        """Cut the migration's connection: a checkpoint that has not arrived never will."""
        if self._monitor is not None and (self._cutting is None or self._cutting.done()):
            self._cutting = asyncio.get_running_loop().create_task(self._cut(self._monitor))

    async def _cut(self, monitor: Monitor) -> None:
        try:
            await cut_off(monitor)
        except ScriptError as error:
            log.error("QEMU %s: the migration was not cut off: %s", self.run.id, error)

    def _look(self) -> bool:
        """See `scripts.Look`."""
        if self._check_copy():
            raise ScriptError(Failure.BROKEN, "the secondary is half loaded: see its stderr")
        return self._left_colo

    async def close(self) -> None:
        """Let go of the monitor and the pidfd; the process lives on if it does."""
        if self._monitor is not None:
            await self._monitor.close()
        if self._process is not None:
            self._process.close()

    def _say(self, event: Event) -> None:
        if not self.quiet:
            self._post(event)

    def complaint(self) -> str:
        """Return the end of what QEMU wrote to stderr, on one line."""
        lines = [line.strip() for line in self._stderr().splitlines() if line.strip()]
        return "; ".join(lines[-3:])[-500:]

    def _stderr(self) -> str:
        with contextlib.suppress(OSError), self.files.stderr.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - STDERR_READ_BYTES))
            return file.read().decode(errors="replace")
        return ""

    def _check_copy(self) -> bool:
        """Post `CopyBad` if the secondary says that a checkpoint did not load (R5); return that."""
        if self.run.role is not Role.SECONDARY:
            return False
        bad = next((line for line in self._stderr().splitlines() if _COPY_BAD.search(line)), None)
        if bad is not None:
            self._say(CopyBad(bad.strip()))
        return bad is not None

    def _heard(self, message: Message) -> None:
        match message.name:
            case "COLO_EXIT":
                self._left_colo = True
                self._check_copy()  # QEMU complains before it says this (6.2)
                self._say(ColoExited())
            case "SHUTDOWN":
                data = message.data if isinstance(message.data, dict) else {}
                if data.get("reason") in ("guest-shutdown", "guest-panic"):
                    self._say(GuestShutdown(panicked=data["reason"] == "guest-panic"))
            case "RESUME":
                self.loaded += 1
                self._resumed += 1
            case "QUORUM_REPORT_BAD" | "QUORUM_FAILURE":
                self._disk_failed(message)
            case _:
                pass

    def _disk_failed(self, message: Message) -> None:
        """A disk missed a write, on this node or on the other one (3.4)."""
        failed = disks.failure(message, self._plan.disks)
        if failed is None:
            return
        if not failed.behind and self._lost_write is None:
            self._lost_write = failed.reason
            self.cut()
        self._say(failed)

    def _ended(self) -> None:
        """The process will not run again, though it may take long to be gone."""
        self._farewell = asyncio.get_running_loop().create_task(self._last_words())

    def _dead(self, status: str) -> None:
        log.info("QEMU %s: %s", self.run.id, status)
        self.dead.set()
        if self._monitor is not None:
            self._closing = asyncio.get_running_loop().create_task(self._hang_up(self._monitor))

    async def _hang_up(self, monitor: Monitor) -> None:
        """Close the monitor, though not before it was heard out."""
        if self._farewell is not None:
            await asyncio.wait([self._farewell])
        await monitor.close()

    async def _last_words(self) -> None:
        """Post `QemuExited`, once all that the process said before is taken in."""
        if self._monitor is not None:
            await self._monitor.drain(LAST_WORDS_S)
        self._say(QemuExited(self.run, self.complaint()))
