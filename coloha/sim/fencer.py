"""The device that switches hosts off and on again: sure, if it answers that it did."""

from typing import TYPE_CHECKING

from coloha.core.actions import Fence
from coloha.core.events import Fenced, FenceDone

if TYPE_CHECKING:
    from coloha.sim.daemon import Daemon
    from coloha.sim.node import Node
    from coloha.sim.world import World

OFF_S = (0.2, 1.5)
"""How long a host stays off."""
LATE_S = 2.0


class Fencer:
    """Each daemon can have the other host switched off; no cut of the network is in its way."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.failures: list[float] = []
        """Shares of attempts that fail."""
        self.doubts: list[float] = []
        """Shares of attempts that are not answered: done, not done, or done late."""
        self.slowness: list[float] = []
        self._asked: set[tuple[Daemon, int]] = set()
        """Attempts that have not ended, with who asked."""

    def doomed(self, node: "Node") -> bool:
        """Return whether the daemon of the other node waits for this host to be switched off."""
        return any(daemon.node is node.other and daemon.alive for daemon, _ in self._asked)

    def ask(self, daemon: "Daemon", action: Fence) -> None:
        """Do it, some time later."""
        world = self._world
        self._asked.add((daemon, action.number))
        slow_s = max(self.slowness, default=0.0) * world.random.random()
        world.at(world.latency(0.1) + slow_s, self._do, daemon, action)

    def _do(self, daemon: "Daemon", action: Fence) -> None:
        world, node = self._world, daemon.node
        self._asked.discard((daemon, action.number))
        if not node.powered and world.random.random() < 0.5:
            return  # it had not got as far as asking the device
        fate = world.random.random()
        if fate < max(self.failures, default=0.0):
            self._answer(daemon, action, Fenced.FAILED)
        elif world.random.random() < max(self.doubts, default=0.0):
            if fate < 0.4:
                self.switch_off(node.other)
            elif fate < 0.8:
                world.at(world.random.uniform(0.0, LATE_S), self.switch_off, node.other)
            self._answer(daemon, action, Fenced.UNKNOWN)
        else:
            self.switch_off(node.other)
            self._answer(daemon, action, Fenced.CONFIRMED)

    def _answer(self, daemon: "Daemon", action: Fence, outcome: Fenced) -> None:
        world = self._world
        world.note(daemon.node.name, f"fencing {action.number}: {outcome}")
        answer = FenceDone(action.number, outcome, "the device")
        world.at(world.latency(0.02), daemon.post, answer)

    def switch_off(self, node: "Node") -> None:
        """Switch a host off, and on again some time later."""
        world = self._world
        world.tells["switched off"] += 1
        node.fenced_at = world.now
        world.lose_power(node, "it was fenced")
        world.at(world.random.uniform(*OFF_S), world.regain_power, node)
