"""One host: its disk, its clock, the QEMU and the daemon on it."""

from typing import TYPE_CHECKING

from coloha.core.events import Durable, Run
from coloha.sim.clock import Clock

if TYPE_CHECKING:
    from coloha.sim.daemon import Daemon
    from coloha.sim.qemu import Qemu
    from coloha.sim.world import World


class Node:
    """What a host keeps over the deaths of its processes."""

    def __init__(self, world: "World", name: str, clock: Clock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.disk = Durable()
        self.daemon: Daemon | None = None
        self.qemu: Qemu | None = None
        self.lives = 0
        """Counts the daemon's starts."""
        self.frozen = 0
        """Faults that make the host stand still."""
        self.stuck = 0
        """Faults that make the daemon stand still, its host's among them."""
        self.powerless = 0
        self.fenced_at = float("-inf")
        """When its host was last switched off by the other node."""
        self.daemonless = 0
        self.lags: list[float] = []
        """Seconds by which each step of the daemon is late."""
        self.fsyncs: list[float] = []
        """Seconds that each fsync takes more than usual."""
        self.runs: set[Run] = set()
        """Every QEMU that was ever started here."""
        self.told_dead: set[Run] = set()
        """Runs of whose end a daemon here knows."""

    @property
    def powered(self) -> bool:
        """Whether the host is on."""
        return not self.powerless

    @property
    def other(self) -> "Node":
        """The other host."""
        return self.world.nodes["beta" if self.name == "alpha" else "alpha"]

    def save(self, durable: Durable) -> None:
        """Have this on the disk from now on, a copy of the record with it."""
        if durable.gave_up != self.disk.gave_up:
            self.world.judge.gave_up(self, durable.gave_up)
        self.disk = durable
        if durable.record is not None:
            self.world.witness.copied(self, durable.record)

    def now(self) -> float:
        """Return what the host's clock says."""
        return self.clock.read(self.world.now)

    def tell_dead(self, runs: set[Run]) -> None:
        """A daemon here comes to know that these QEMUs are dead."""
        self.told_dead |= runs
