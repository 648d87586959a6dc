"""The streams of mode `compare`: the primary's input to the secondary, and its answers back."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

from coloha.adapters.channel import Offer, Request
from coloha.config.model import PairConfig
from coloha.core.actions import RunScript, Script
from coloha.qemu import command_line, compare
from coloha.qemu.command_line import Files
from coloha.qemu.vm import Vm
from coloha.runtime.links import Links

BUFFER_BYTES = 4 << 20
"""Of the sockets inside a primary: the smaller, the sooner its main loop waits."""


class Streams:
    """See the module. In mode `buffer` it does nothing."""

    def __init__(self, config: PairConfig, links: Links) -> None:
        compared = config.checkpoint.mode == "compare"
        self._netdevs = command_line.netdevs(config.vm, "held") if compared else ()
        self._links = links

    @contextlib.asynccontextmanager
    async def around(
        self, action: RunScript, vm: Vm, request: Callable[[Vm, int], Awaitable[Request]]
    ) -> AsyncIterator[Mapping[str, socket.socket]]:
        """Yield what a script is to give to QEMU.

        :raises ScriptError: if a connection cannot be made.
        """
        made: dict[str, socket.socket] = {}
        try:
            if action.script is Script.ENTER_COLO and self._netdevs:
                assert action.session is not None
                base = await request(vm, action.session)
                for netdev in self._netdevs:
                    streams = compare.streams(netdev)
                    wanted = {k: replace(base, stream=name) for k, name in streams.items()}
                    made |= await self._links.connect(wanted)
                    for pair in compare.pairs(netdev):
                        made |= dict(zip(pair, _socketpair(), strict=True))
            yield made
        finally:
            for connection in made.values():
                connection.close()  # QEMU has its own

    async def join(self, offer: Offer, files: Files, ended: Callable[[], None]) -> None:
        """Join the connection of an invitation with the secondary that is here for it; `ended` is
        called when that ends.

        :raises ChannelError: if the inviting node is gone.
        :raises LaunchError: if no relay can be started.
        """
        name = offer.request.stream
        if name not in {s for netdev in self._netdevs for s in compare.streams(netdev).values()}:
            await offer.refuse(f"there is no stream {name!r} here")
            return
        await self._links.join(offer, files.stream(name), files.stderr, ended)


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets with as much room as this user may have."""
    ends = socket.socketpair()
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ends
