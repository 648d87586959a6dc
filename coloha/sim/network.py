"""The network between the two hosts: datagrams that are lost, late, doubled, and cut ways."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coloha.core.events import PeerState, Unattended

if TYPE_CHECKING:
    from coloha.sim.daemon import Daemon
    from coloha.sim.node import Node
    from coloha.sim.world import World


@dataclass(frozen=True, slots=True)
class Datagram:
    """A heartbeat. `life` and `sequence` are the sender's, `answers` the receiver's life it knows.

    What `coloha.core.wire` makes of nonces and sequences, in short: repeated ones, older ones and
    those for or of another life do not count.
    """

    life: int
    sequence: int
    answers: int
    state: PeerState


class Network:
    """Two ways, each open or cut; both share loss, delay and duplication."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.cuts: Counter[str] = Counter()
        """Faults that cut the way from each node."""
        self.mutes: Counter[str] = Counter()
        """Faults that keep the datagrams of each node from arriving, and nothing else."""
        self.losses: list[float] = []
        self.delays: list[float] = []
        self.duplicates: list[float] = []

    def open(self) -> bool:
        """Whether a connection can make progress: it needs both ways."""
        return not self.cuts["alpha"] and not self.cuts["beta"]

    def send(self, sender: "Daemon", datagram: Datagram) -> None:
        """Carry a datagram to whatever daemon runs on the other node when it arrives."""
        world = self._world
        name = sender.node.name
        if (
            self.cuts[name]
            or self.mutes[name]
            or (self.losses and world.random.random() < max(self.losses))
        ):
            return
        copies = 1
        if self.duplicates and world.random.random() < max(self.duplicates):
            copies = 2
        for _ in range(copies):
            delay = world.latency(0.001)
            if self.delays:
                delay += max(self.delays) * world.random.random()
            world.at(delay, self._arrive, sender.node.other, datagram, name)

    def _arrive(self, node: "Node", datagram: Datagram, sender: str) -> None:
        if self.cuts[sender]:
            return
        answers = node.powered and not node.frozen and not self.cuts[node.name]
        if node.daemon is not None:
            node.daemon.hear(datagram)
        elif answers and node.other.daemon is not None:
            node.other.daemon.post(Unattended())  # the host says that nobody listens
