"""Two keepers, and a QEMU in the place of which stands something else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coloha.adapters.channel import ChannelServer
from coloha.config import Config, PairConfig
from coloha.config.units import Address
from coloha.core.events import (
    Event,
    Role,
    Run,
)
from coloha.qemu import versions
from coloha.runtime.keeper import Keeper
from coloha.runtime.watchman import Watchman
from tests.adapters.support import KEY, eventually
from tests.config.support import PAIR, edit, load_from

PRIMARY = Run("p-1", Role.PRIMARY)
PLAIN = edit(PAIR, "  nics:\n    - mac: 52:54:00:12:34:56\n      bridge: br0\n", "")


@dataclass
class Side:
    """One node's keeper, its channel server, and what it told."""

    keeper: Keeper
    config: PairConfig
    server: ChannelServer
    events: list[Event] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    async def told(self, kind: type[Any]) -> Any:
        """The first event of a kind, taken from the list."""
        await eventually(lambda: any(isinstance(e, kind) for e in self.events), kind.__name__)
        event = next(e for e in self.events if isinstance(e, kind))
        self.events.remove(event)
        return event


def changed(config: PairConfig, section: str, **changes: Any) -> PairConfig:
    part = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={section: part})


@contextlib.asynccontextmanager
async def side(
    folder: Path,
    node: str,
    change: Callable[[PairConfig], PairConfig] = lambda pair: pair,
    watchman: Watchman | None = None,
) -> AsyncIterator[Side]:
    """A node's half of a pair without NICs, on loopback."""
    text = PLAIN.replace("128MiB", "16MiB")
    config: Config = load_from(folder, {"pairs.d/web.yaml": text})
    own = dict.fromkeys(("runtime_directory", "overlay_directory"), folder / node)
    state = folder / f"{node}-state"
    state.mkdir()
    host = config.host.model_copy(update={"node": node, "state_directory": state, **own})
    pair = change(config.pairs[0])
    events: list[Event] = []
    failures: list[Exception] = []
    peer = "beta" if node == "alpha" else "alpha"
    keeper = Keeper(pair, host, KEY, peer, events.append, failures.append, watchman=watchman)
    server = ChannelServer(node, KEY, keeper.offered)
    server.start(("127.0.0.1", 0))
    try:
        yield Side(keeper, pair, server, events, failures)
    finally:
        server.stop()
        await keeper.let_go()
        await asyncio.sleep(0.01)


def connect(inviting: Side, invited: Side) -> None:
    """Tell one keeper where the other one listens."""
    assert invited.server.listener is not None
    host, port = invited.server.listener.getsockname()[:2]
    node = next(name for name in inviting.config.nodes if name == inviting.keeper._peer)
    addresses = inviting.config.nodes[node].model_copy(update={"channel": Address(host, port)})
    nodes = {**inviting.config.nodes, node: addresses}
    inviting.keeper._config = inviting.config.model_copy(update={"nodes": nodes})
    inviting.keeper._links._config = inviting.keeper._config
    invited.keeper._config = invited.config.model_copy(update={"nodes": nodes})


@contextlib.asynccontextmanager
async def both(
    folder: Path, change: Callable[[PairConfig], PairConfig] = lambda pair: pair
) -> AsyncIterator[tuple[Side, Side]]:
    async with side(folder, "alpha", change) as alpha, side(folder, "beta", change) as beta:
        connect(alpha, beta)
        run_qemu(alpha, PRIMARY, (11, 1, 3))
        yield alpha, beta


def run_qemu(side: Side, run: Run, version: versions.Version) -> None:
    """As if a QEMU of this version had answered."""
    side.keeper.vm = side.keeper._make(run)
    side.keeper.vm.version = version


def program(folder: Path, text: str) -> str:
    """Something in QEMU's place."""
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)
