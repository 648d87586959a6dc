"""Keeps a pair's QEMU on this node, and the channels to the other one."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from coloha.adapters.channel import Offer, Request, invite, tune
from coloha.config.model import HostConfig, PairConfig
from coloha.core.actions import RunScript, Script
from coloha.core.events import (
    Adopted,
    ChannelFailed,
    ChannelReady,
    ColoMode,
    Event,
    Failure,
    Invited,
    Launched,
    LaunchFailed,
    QemuExited,
    Run,
    ScriptDone,
    ScriptFailed,
)
from coloha.errors import (
    AuthenticationError,
    ChannelError,
    LaunchError,
    StoreError,
    WatchdogError,
)
from coloha.qemu import command_line, versions
from coloha.qemu.process import ChildLauncher, Launcher, Process
from coloha.qemu.steps import ScriptError
from coloha.qemu.unit import UnitLauncher
from coloha.qemu.vm import Vm
from coloha.runtime.compared import Streams
from coloha.runtime.guards import Guard
from coloha.runtime.links import Links
from coloha.runtime.origin import Origin
from coloha.runtime.storage import Storage
from coloha.runtime.watchman import Watchman

log = logging.getLogger(__name__)

DEATH_S = 5.0
BURIAL_S = 60.0
"""How long the kernel may take to free the memory of a killed QEMU."""
TRIM_S = 10.0
CONSOLE_BYTES = 4 * 1024 * 1024
"""The guest's console is emptied beyond this: the runtime folder is usually memory."""
MAX_OFFERS = 4
SECONDARY_MEMORY_FACTOR = 2
"""COLO's secondary keeps a cache of all of the guest's memory (QEMU, migration/ram.c)."""


class Keeper:
    """Launches, finds, drives and kills the pair's QEMU; makes and holds channels.

    Every outcome is posted as an event.
    """

    def __init__(
        self,
        config: PairConfig,
        host: HostConfig,
        key: bytes,
        peer: str,
        post: Callable[[Event], None],
        fail: Callable[[Exception], None],
        watchman: Watchman | None = None,
    ) -> None:
        """`fail` is called with an error that nobody foresaw: an outcome will be missing."""
        self._watchman = watchman
        self._config = config
        self._host = host
        self._key = key
        self._peer = peer
        self._post = post
        self._fail = fail
        self._children = ChildLauncher()
        self._origin = Origin(config, host, self._launcher())
        self._traits = versions.Traits(config.vm.machine, config.vm.accelerator)
        self._links = Links(config, host, key, peer, self._children)
        self.storage = Storage(config, host, peer, self._links)
        self._streams = Streams(config, self._links)
        self.vm: Vm | None = None
        self._guard: Guard | None = None
        self._epoch_at = 0.0
        """When the last epoch began, monotonic seconds."""
        self._launching: asyncio.Task[None] | None = None
        self._script: asyncio.Task[None] | None = None
        self._offers: dict[int, Offer] = {}
        self._channels: dict[int, socket.socket] = {}
        self._inviting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # The process

    def _launcher(self) -> Launcher:
        if self._host.launcher == "systemd":
            return UnitLauncher(self._host.runtime_directory)
        return self._children

    def find(self) -> Run | None:
        """Look for a QEMU of this pair that an earlier daemon started, and watch it.

        :raises StoreError: if there are several: only an operator can tell which one counts.
        """
        self._beside(self._trim())
        found = self._origin.find()
        if len(found) > 1:
            pids = ", ".join(str(process.pid) for process, _ in found)
            for process, _ in found:
                process.close()
            raise StoreError(f"several QEMUs of this pair run here (pids {pids}): end all but one")
        for process, run in found:
            self.vm = self._make(run)
            self._hold(self.vm, process)
            return run
        return None

    def _hold(self, vm: Vm, process: Process) -> None:
        vm.hold(process)
        if self._guard is not None:
            self._guard.close()
        after_s = self._config.recovery.orphan_after
        self._guard = Guard(vm.files, process.pid, after_s, self._children)

    def tend(self, now: float) -> None:
        """Say that the pump goes on: QEMU is looked after."""
        if self._guard is not None and self.vm is not None and self.vm.pid is not None:
            self._guard.tend(now)

    @property
    def disk_bytes_left(self) -> int:
        """What is yet to be copied of the disks, if they are being copied."""
        vm = self.vm  # the thread that serves metrics asks
        progress = vm.progress if vm is not None else None
        return progress.total - progress.copied if progress is not None else 0

    async def _trim(self) -> None:
        """Keep the guest's console within bounds. QEMU appends to it, so it can be emptied."""
        while True:
            await asyncio.sleep(TRIM_S)
            if self.vm is None:
                continue
            console = self.vm.files.console
            with contextlib.suppress(OSError):
                if console.stat().st_size > CONSOLE_BYTES:
                    os.truncate(console, 0)

    def _make(self, run: Run) -> Vm:
        files = self._origin.files(run)
        limits = command_line.limits(self._config.checkpoint)
        plan = command_line.plan(self._config.vm, files, self._config.recovery.sync_rate, limits)
        return Vm(run, files, plan, self._traits, self._said)

    def _said(self, event: Event) -> None:
        """Pass on what QEMU says, or what its death does."""
        if isinstance(event, QemuExited):
            self._hang_up()
        self._post(event)

    def launch(self, run: Run) -> None:
        """Start QEMU. Posts `Launched` or `LaunchFailed`."""
        self._launching = self._beside(self._launch(run))

    async def _launch(self, run: Run) -> None:
        vm: Vm | None = None
        try:
            await self._last_one_dead()
            vm = self.vm = self._make(run)
            self._origin.prepare(run, vm.files)
            await self.storage.prepare(run, self._wanted_sizes(run))
            self._hold(vm, await self._origin.start(run, vm.files))
            await vm.connect()
            await self._origin.look(vm)
        except (LaunchError, OSError) as error:
            if vm is not None:
                await self._bury(vm)
            self._post(LaunchFailed(run, str(error)))
        else:
            self._post(Launched(run))
        finally:
            self._launching = None

    def _wanted_sizes(self, run: Run) -> tuple[int, ...]:
        offer = self._offers.get(run.session) if run.session is not None else None
        return offer.request.sizes if offer is not None else ()

    async def _last_one_dead(self) -> None:
        """Wait until the QEMU before has let go of its taps."""
        if self.vm is not None and self.vm.pid is not None:
            try:
                async with asyncio.timeout(BURIAL_S):
                    await self.vm.dead.wait()
            except TimeoutError:
                raise LaunchError("the QEMU before this one is killed but not gone yet") from None

    async def _bury(self, vm: Vm) -> None:
        """See a process that never came to life dead, without a word about its death.

        One that somebody else started is left alone.
        """
        vm.quiet = True
        if vm.files.monitors is not None:
            self._origin.forget(vm.files)
            await vm.close()
            self.vm = None
            return
        vm.kill()
        if vm.pid is not None:
            try:
                async with asyncio.timeout(DEATH_S):
                    await vm.dead.wait()
            except TimeoutError:
                return  # still watched: the next launch waits for its end
        await vm.close()

    def kill(self, run: Run) -> None:
        """SIGKILL the QEMU of `run`. Its death posts `QemuExited`."""
        waiting = self.vm is None or self.vm.run != run or self.vm.pid is None
        if self._launching is not None and waiting:
            launching, self._launching = self._launching, None
            # What was about to start it has taken that back by then.
            ended = QemuExited(run, "it was not yet started")
            launching.add_done_callback(lambda _: self._post(ended))
            launching.cancel()
        elif self.vm is not None and self.vm.run == run and self.vm.pid is not None:
            if self._launching is not None:
                self._launching.cancel()
            self.vm.kill()
        else:
            self._post(QemuExited(run, "it runs no longer"))  # it may have died unheard

    # Scripts

    def run_script(self, action: RunScript) -> None:
        """Run a script, ending the one under way. Posts `ScriptDone` or `ScriptFailed`."""
        if self._script is not None:
            self._script.cancel()
        self._script = self._beside(self._perform(action))

    async def _perform(self, action: RunScript) -> None:
        vm = self.vm
        if vm is None:
            return  # its death is on the way to the machine
        channel = self._channel_for(action)
        try:
            self._see_fit(action, vm)
            if action.script is Script.ADOPT or (vm.lost and action.script is not Script.CHECK):
                await vm.connect(action.timeout_s)
            if action.script is Script.ENTER_COLO and self._guard is not None:
                self._guard.start()  # it is there when output is to be held
            if action.script is Script.ARM:
                await self._prepare_to_hold()
            began = time.monotonic()
            async with (
                self.storage.around(action, vm, self._request) as images,
                self._streams.around(action, vm, self._request) as streams,
            ):
                links = {**images, **streams}
                result = await vm.perform(action.script, action.timeout_s, channel, links)
            self._see_guarded(action.script, result, began)
        except ScriptError as error:
            self._post(ScriptFailed(action.number, error.failure, error.reason))
        except LaunchError as error:
            self._post(ScriptFailed(action.number, Failure.SILENT, str(error)))
        else:
            self._post(ScriptDone(action.number, result))

    async def _prepare_to_hold(self) -> None:
        """See to all that must be there before output is held.

        :raises ScriptError: if something is not.
        """
        if self._guard is not None:
            await self._guard.hold()
        if self._watchman is not None:
            try:
                await self._watchman.hold()
            except WatchdogError as error:
                raise ScriptError(Failure.REFUSED, str(error)) from error

    def _see_guarded(self, script: Script, result: object, began: float) -> None:
        """Tell the guard whether QEMU holds output, and since when none of its buffers was
        switched: a release switches B, the epoch before it A.
        """
        if self._guard is None:
            return
        try:
            if script is Script.LEAVE_COLO:
                self._guard.release()
            elif script is Script.EPOCH:
                self._epoch_at = began
            elif script is Script.RELEASE:
                self._guard.switched(self._epoch_at)
            elif isinstance(result, Adopted) and result.colo is ColoMode.PRIMARY:
                self._guard.mark()
                self._guard.start()
        except OSError as error:
            log.error("%s: the guard cannot be told: %s", self._config.name, error)

    def _see_fit(self, action: RunScript, vm: Vm) -> None:
        """See that the secondary's QEMU understands the primary's.

        :raises ScriptError: if it does not.
        """
        offer = self._offers.get(action.session) if action.session is not None else None
        if action.script is Script.ACCEPT_COLO and offer is not None and vm.version is not None:
            problem = versions.misfit(offer.request.qemu, vm.version)
            if problem is not None:
                raise ScriptError(Failure.REFUSED, problem)

    def _channel_for(self, action: RunScript) -> socket.socket | None:
        if action.session is None:
            return None
        if action.script is Script.ACCEPT_COLO:
            offer = self._offers.get(action.session)
            return offer.connection if offer is not None else None
        # QEMU's copy must be the only one: else its death would not end the connection.
        return self._channels.pop(action.session, None)

    # Channels, as the inviting side

    def invite(self, session: int, generation: int, timeout_s: float) -> None:
        """Ask the other node for a secondary. Posts `ChannelReady` or `ChannelFailed`."""
        for old in list(self._channels):
            self.drop(old, "superseded")
        self._inviting = self._beside(self._invite(session, generation, timeout_s))

    async def _invite(self, session: int, generation: int, timeout_s: float) -> None:
        if self.vm is None or self.vm.version is None:
            return  # its death is on the way to the machine
        address = self._config.nodes[self._peer].channel
        try:
            request = await self._request(self.vm, session, generation)
            connection = await invite(
                (address.host, address.port),
                self._key,
                self._host.node,
                self._peer,
                request,
                timeout_s,
            )
        except (ChannelError, AuthenticationError, LaunchError) as error:
            self._post(ChannelFailed(session, str(error)))
            return
        tune(connection, self._config.checkpoint.stall_timeout)
        self._channels[session] = connection
        self._post(ChannelReady(session))

    async def _request(self, vm: Vm, session: int, generation: int = 0) -> Request:
        """Return what is asked of the other node.

        :raises LaunchError: if an image here cannot be read.
        """
        assert vm.version is not None
        fingerprint, sizes = self._config.fingerprint(), await self.storage.sizes()
        name = self._config.name
        return Request(name, session, generation, fingerprint, vm.version, sizes)

    def _hang_up(self) -> None:
        """End the channels that QEMU did not live to take: a secondary would wait for its copy."""
        if self._inviting is not None:
            self._inviting.cancel()
        for session in list(self._channels):
            self.drop(session, "QEMU died")

    # Channels, as the invited side

    def offered(self, offer: Offer) -> None:
        """Take an invitation. Posts `Invited`, unless it is for a link of a session."""
        if offer.request.disk or offer.request.stream:
            self._beside(self._join(offer))
            return
        tune(offer.connection, self._config.checkpoint.stall_timeout)
        while len(self._offers) >= MAX_OFFERS:
            self.drop(next(iter(self._offers)), "too many invitations")
        request = offer.request
        self._offers[request.session] = offer
        self._post(Invited(request.session, request.generation, self._problem(request)))

    async def _join(self, offer: Offer) -> None:
        """Join a link with the secondary that is here for it."""
        vm = self.vm
        try:
            if vm is None or vm.pid is None or vm.run.session != offer.request.session:
                await offer.refuse("the secondary of this session is gone")
            elif offer.request.stream:
                await self._streams.join(offer, vm.files, vm.cut)
            else:
                await self.storage.join(offer, vm.files, vm.cut)
        except (ChannelError, LaunchError) as error:
            log.warning("%s: a link: %s", self._config.name, error)

    def _problem(self, request: Request) -> str | None:
        """Say why this node cannot run the secondary, as far as can be seen without trying."""
        if request.fingerprint != self._config.fingerprint():
            return (
                f"the files of pair {self._config.name} differ between {self._host.node} and "
                f"{self._peer}: make them the same (`coloha check --against` says what differs)"
            )
        needed = SECONDARY_MEMORY_FACTOR * self._config.vm.memory
        available = available_memory_bytes()
        if (self.vm is None or self.vm.pid is None) and available < needed:
            return (
                f"{self._host.node} has {available >> 20} MiB of memory available, a secondary "
                f"needs {needed >> 20} MiB, twice the guest's"
            )
        return None

    def admit(self, session: int) -> None:
        """Tell the inviting node that its secondary waits."""
        offer = self._offers.pop(session, None)
        if offer is not None:
            self._beside(_ignoring_gone(offer.admit()))

    def drop(self, session: int, reason: str) -> None:
        """Close the channel of a session; an invitation is told why."""
        offer = self._offers.pop(session, None)
        if offer is not None:
            self._beside(_ignoring_gone(offer.refuse(reason)))
        connection = self._channels.pop(session, None)
        if connection is not None:
            connection.close()

    # All of it

    def _beside(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            log.error("%s: %s", self._config.name, error, exc_info=error)
            self._fail(error)

    async def let_go(self) -> None:
        """Close everything but leave QEMU as it is."""
        for task in list(self._tasks):
            task.cancel()
        for session in [*self._offers, *self._channels]:
            offer = self._offers.pop(session, None)
            connection = offer.connection if offer else self._channels.pop(session, None)
            if connection is not None:
                connection.close()
        self._links.let_go()
        if self.vm is not None:
            vm, self.vm = self.vm, None
            if self._guard is not None:
                self._guard.close()
            vm.quiet = True
            await vm.close()


async def _ignoring_gone(answer: Coroutine[None, None, None]) -> None:
    """Answer an invitation; the one who asked may have given up."""
    try:
        await answer
    except ChannelError as error:
        log.info("%s", error)


def available_memory_bytes() -> int:
    """Return how much memory this host could give to a new process."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
