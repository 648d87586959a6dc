"""A pair's replicated disks on this node: their files, connections and relays.

The other node's QEMU writes to this node's images while this node follows, and the mark says so
when what they hold is no whole disk: they were being copied to, or what a promoted secondary had
kept apart was being merged into them. It is a file beside the pair's state, and outlives a crash.
"""

import asyncio
import contextlib
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from coloha.adapters.channel import Offer, Request, invite, tune
from coloha.config.model import HostConfig, PairConfig
from coloha.core.actions import RunScript, Script
from coloha.core.events import Failure, Role, Run
from coloha.durable import replace_file, sync_folder
from coloha.errors import AuthenticationError, ChannelError, LaunchError
from coloha.qemu import command_line, disks, images
from coloha.qemu.command_line import Files
from coloha.qemu.process import Launcher, Process
from coloha.qemu.steps import ScriptError
from coloha.qemu.vm import Vm

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""How long the other node may take to join a connection with its image."""


class Storage:
    """See the module. Without replicated disks it does nothing."""

    def __init__(
        self, config: PairConfig, host: HostConfig, key: bytes, peer: str, launcher: Launcher
    ) -> None:
        self.disks = command_line.replicated(config.vm)
        self._config = config
        self._host = host
        self._key = key
        self._peer = peer
        self._launcher = launcher
        self._relays: list[Process] = []
        self._mark = host.state_directory / f"{config.name}.disks"

    # Whether the images are whole

    @property
    def torn(self) -> str | None:
        """Why the images here are no whole disks, or None if they are."""
        try:
            return self._mark.read_text().strip() or "unknown"
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{self._mark}: {error.strerror}"

    async def tear(self, why: str) -> None:
        """Remember over a crash that the images are about to be no whole disks.

        :raises OSError: if that cannot be written.
        """
        if self.disks:
            await asyncio.to_thread(replace_file, self._mark, f"{why}\n".encode())

    async def mend(self) -> None:
        """Remember that the images are whole.

        :raises OSError: if that cannot be written.
        """
        if self.disks and self._mark.exists():
            await asyncio.to_thread(self._remove_mark)

    def _remove_mark(self) -> None:
        self._mark.unlink(missing_ok=True)
        sync_folder(self._mark.parent)

    # Files

    async def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the replicated disks, bytes.

        :raises LaunchError: if an image cannot be read.
        """
        vm = self._config.vm
        return tuple([await images.size(vm.qemu_img, vm.disks[int(disk)]) for disk in self.disks])

    async def prepare(self, run: Run, wanted: tuple[int, ...]) -> None:
        """See to all that a run's QEMU needs; `wanted` are the sizes of a primary's disks.

        :raises LaunchError: if it cannot be had.
        """
        self._remove_overlays(but=run)
        if not self.disks:
            return
        if run.role is Role.PRIMARY:
            why = self.torn
            if why is not None:
                raise LaunchError(
                    f"the disks here are not whole ({why}): restore the images from a backup or"
                    f" from {self._peer}, then remove {self._mark}"
                )
            return
        mine = await self.sizes()
        if mine != wanted:
            raise LaunchError(
                f"the disks here have {list(mine)} bytes, those of {self._peer} {list(wanted)}:"
                " make images of the same sizes"
            )
        for disk, size in zip(self.disks, mine, strict=True):
            for node in (disks.active(disk), disks.hidden(disk)):
                await images.make_overlay(self._config.vm.qemu_img, self._overlay(run, node), size)
        try:
            await self.tear(f"they were being copied from {self._peer}")
        except OSError as error:
            raise LaunchError(f"{self._mark}: {error.strerror}") from error

    def _overlay(self, run: Run, node: str) -> Path:
        return command_line.overlay(self._host.overlay_directory, self._config.name, run, node)

    def _remove_overlays(self, but: Run) -> None:
        own = re.compile(rf"{self._config.name}-([ps]-[0-9a-f]+)-(active|hidden)\d+\.qcow2")
        with contextlib.suppress(OSError):
            for path in self._host.overlay_directory.iterdir():
                found = own.fullmatch(path.name)
                if found is not None and found[1] != but.id:
                    path.unlink(missing_ok=True)

    # Around scripts

    @contextlib.asynccontextmanager
    async def around(
        self, action: RunScript, vm: Vm, request: Callable[[Vm, int], Awaitable[Request]]
    ) -> AsyncIterator[Mapping[str, socket.socket]]:
        """Set the mark of the images as a script needs it, and yield the connections for it.

        :raises ScriptError: if that is not possible.
        """
        connections: dict[str, socket.socket] = {}
        try:
            if action.script is Script.PROMOTE:
                await self.tear("what a secondary had kept apart was being merged into them")
            elif action.script is Script.ENTER_COLO and self.disks:
                assert action.session is not None
                connections = await self._connect(await request(vm, action.session))
            yield connections
            if action.script in (Script.AWAIT_COLO, Script.PROMOTE, Script.LEAVE_COLO):
                await self.mend()
        except OSError as error:
            raise ScriptError(Failure.REFUSED, f"{self._mark}: {error.strerror}") from error
        finally:
            for connection in connections.values():
                connection.close()  # QEMU has its own

    # Connections, as the primary

    async def _connect(self, request: Request) -> dict[str, socket.socket]:
        """Return connections to the images of the secondary that waits for `request`'s session, by
        what QEMU is to call them.

        :raises ScriptError: if one cannot be made.
        """
        made: dict[str, socket.socket] = {}
        address = self._config.nodes[self._peer].channel
        try:
            for disk in self.disks:
                connection = made[disks.peer(disk)] = await invite(
                    (address.host, address.port),
                    self._key,
                    self._host.node,
                    self._peer,
                    replace(request, disk=disk),
                    CONNECT_S,
                )
                tune(connection, self._config.checkpoint.stall_timeout)
        except BaseException as error:
            for connection in made.values():
                connection.close()
            if isinstance(error, ChannelError | AuthenticationError):
                raise ScriptError(Failure.BROKEN, f"a disk of {self._peer}: {error}") from error
            raise
        return made

    # Relays, as the secondary

    async def join(self, offer: Offer, files: Files, ended: Callable[[], None]) -> None:
        """Join the connection of an invitation with the image that it is for; `ended` is called
        when that ends.

        :raises ChannelError: if the inviting node is gone.
        :raises LaunchError: if no relay can be started.
        """
        if offer.request.disk not in self.disks:
            await offer.refuse(f"there is no replicated disk {offer.request.disk!r} here")
            return
        tune(offer.connection, self._config.checkpoint.stall_timeout)
        with offer.connection.dup() as connection:
            await offer.admit()  # the next byte is the NBD server's
            argv = [sys.executable, "-I", "-m", "coloha.qemu.relay", str(files.exports)]
            process = self._launcher.start(argv, files.stderr, connection.fileno())
        self._relays.append(process)
        process.watch(lambda: None, lambda _: self._over(process, ended))

    def _over(self, process: Process, ended: Callable[[], None]) -> None:
        self._relays.remove(process)
        ended()

    def let_go(self) -> None:
        """Watch the relays no more; they go on."""
        for process in self._relays:
            process.close()
        self._relays = []
