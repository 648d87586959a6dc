"""A pair's replicated disks on this node: their files and connections.

The other node's QEMU writes to this node's images while this node follows, and the mark says so
when what they hold is no whole disk: they were being copied to, or what a promoted secondary had
kept apart was being merged into them. It is a file beside the pair's state, and outlives a crash.
"""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from coloha.adapters.channel import Offer, Request
from coloha.config.model import HostConfig, PairConfig
from coloha.core.actions import RunScript, Script
from coloha.core.events import Failure, Role, Run
from coloha.durable import replace_file, sync_folder
from coloha.errors import LaunchError
from coloha.qemu import command_line, disks, images
from coloha.qemu.command_line import Files
from coloha.qemu.steps import ScriptError
from coloha.qemu.vm import Vm
from coloha.runtime.links import Links

log = logging.getLogger(__name__)


class Storage:
    """See the module. Without replicated disks it does nothing."""

    def __init__(self, config: PairConfig, host: HostConfig, peer: str, links: Links) -> None:
        self.disks = command_line.replicated(config.vm)
        self._config = config
        self._host = host
        self._peer = peer
        self._links = links
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
                base = await request(vm, action.session)
                wanted = {disks.peer(disk): replace(base, disk=disk) for disk in self.disks}
                connections = await self._links.connect(wanted)
            yield connections
            if action.script in (Script.AWAIT_COLO, Script.PROMOTE, Script.LEAVE_COLO):
                await self.mend()
        except OSError as error:
            raise ScriptError(Failure.REFUSED, f"{self._mark}: {error.strerror}") from error
        finally:
            for connection in connections.values():
                connection.close()  # QEMU has its own

    # Connections

    async def join(self, offer: Offer, files: Files, ended: Callable[[], None]) -> None:
        """Join the connection of an invitation with the image that it is for; `ended` is called
        when that ends.

        :raises ChannelError: if the inviting node is gone.
        :raises LaunchError: if no relay can be started.
        """
        if offer.request.disk not in self.disks:
            await offer.refuse(f"there is no replicated disk {offer.request.disk!r} here")
            return
        await self._links.join(offer, files.exports, files.stderr, ended)
