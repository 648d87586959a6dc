"""Connections of a session beside the migration's: to images, and of compared output.

The primary's node makes them, its QEMU takes its ends over. On the secondary's node a relay
(`coloha.qemu.relay`) joins each with a socket where QEMU listens, and outlives the daemon.
"""

import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from coloha.adapters.channel import Offer, Request, invite, tune
from coloha.config.model import HostConfig, PairConfig
from coloha.core.events import Failure
from coloha.errors import AuthenticationError, ChannelError
from coloha.qemu.process import ChildLauncher, Process
from coloha.qemu.steps import ScriptError

CONNECT_S = 10.0
"""How long the other node may take to join a connection."""


class Links:
    """See the module."""

    def __init__(
        self, config: PairConfig, host: HostConfig, key: bytes, peer: str, launcher: ChildLauncher
    ) -> None:
        self._config = config
        self._host = host
        self._key = key
        self._peer = peer
        self._launcher = launcher
        self._relays: list[Process] = []

    async def connect(self, requests: Mapping[str, Request]) -> dict[str, socket.socket]:
        """Return a connection for each request, by what QEMU is to call it.

        :raises ScriptError: if one cannot be made.
        """
        made: dict[str, socket.socket] = {}
        address = self._config.nodes[self._peer].channel
        try:
            for name, request in requests.items():
                connection = made[name] = await invite(
                    (address.host, address.port),
                    self._key,
                    self._host.node,
                    self._peer,
                    request,
                    CONNECT_S,
                )
                tune(connection, self._config.checkpoint.stall_timeout)
        except BaseException as error:
            for connection in made.values():
                connection.close()
            if isinstance(error, ChannelError | AuthenticationError):
                raise ScriptError(Failure.BROKEN, f"a link to {self._peer}: {error}") from error
            raise
        return made

    async def join(
        self, offer: Offer, listener: Path, complaints: Path, ended: Callable[[], None]
    ) -> None:
        """Join the connection of an invitation with the socket at `listener`; `ended` is called
        when that ends. The relay complains to the file `complaints`.

        :raises ChannelError: if the inviting node is gone.
        :raises LaunchError: if no relay can be started.
        """
        tune(offer.connection, self._config.checkpoint.stall_timeout)
        with offer.connection.dup() as connection:
            await offer.admit()  # the next byte is QEMU's
            argv = [sys.executable, "-I", "-m", "coloha.qemu.relay", str(listener)]
            process = self._launcher.start(argv, complaints, connection.fileno())
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
