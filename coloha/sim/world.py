"""Everything of one history, and its clock: two nodes, the witness, the network, the faults."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coloha.core.context import Settings
from coloha.qemu.guard import UNSWITCHED_S
from coloha.sim.checkers import Judge
from coloha.sim.clock import Clock, Scheduler
from coloha.sim.colo import Stream
from coloha.sim.daemon import Daemon
from coloha.sim.faults import NODES, Fault
from coloha.sim.fencer import Fencer
from coloha.sim.happen import Happenings
from coloha.sim.network import Network
from coloha.sim.node import Node
from coloha.sim.qemu import Qemu
from coloha.sim.witness import Witness

GUARD_S = 600.0
"""How long a QEMU that holds output may be without a daemon before its guard kills it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the timeline."""

    at: float
    who: str
    text: str


class World(Scheduler):
    """All that is modelled. The same seed, settings and faults give the same history."""

    def __init__(
        self, seed: int, settings: Settings, rates: Sequence[float] = (1.0, 1.0), log: bool = False
    ) -> None:
        """`rates` are how fast the clocks of alpha and beta run."""
        super().__init__()
        self.random = random.Random(seed)  # noqa: S311 - it must be repeatable
        self.settings = settings
        self.lines: list[Line] | None = [] if log else None
        self.tells: Counter[str] = Counter()
        """Occurrences, by kind."""
        self.tokens = itertools.count(1)
        """Tell QMP connections and scripts apart."""
        self.judge = Judge(self)
        self.witness = Witness(self)
        self.fencer = Fencer(self)
        self.network = Network(self)
        self.streams: list[Stream] = []
        self.nodes = {
            name: Node(self, name, Clock(rate, self.random.uniform(0, 1000)))
            for name, rate in zip(NODES, rates, strict=True)
        }
        self._faults = Happenings(self)
        for node in self.nodes.values():
            self.at(self.latency(0.3), self.start_daemon, node)

    def latency(self, up_to_s: float) -> float:
        """Return how long something takes that usually takes up to this long, now and then more."""
        chance = self.random.random()
        return up_to_s * (0.05 + 0.95 * chance) if chance < 0.98 else up_to_s * 4

    def note(self, who: str, text: str) -> None:
        """Write a line of the timeline, if there is one."""
        if self.lines is not None:
            self.lines.append(Line(self.now, who, text))

    # Processes

    def start_daemon(self, node: Node) -> None:
        """Start a node's daemon, unless it runs or cannot."""
        if node.daemon is not None or node.daemonless or node.powerless:
            return
        node.lives += 1
        settings = replace(
            self.settings,
            me=node.name,
            peer=node.other.name,
            first=node.name == NODES[0],
            incarnation=self.random.getrandbits(40),
        )
        node.tell_dead(node.runs - ({node.qemu.run} if node.qemu is not None else set()))
        self.note(node.name, f"the daemon starts, QEMU {'runs' if node.qemu else 'does not'}")
        node.daemon = Daemon(self, node, settings)
        node.daemon.start()

    def kill_daemon(self, node: Node) -> None:
        """End a node's daemon, QEMU lives on."""
        daemon, node.daemon = node.daemon, None
        if daemon is not None:
            self.note(node.name, "the daemon is gone")
            daemon.die()
            self.at(GUARD_S, self._look_after, node, node.lives)

    def _look_after(self, node: Node, life: int) -> None:
        """What a QEMU's guard does, if no daemon came in all that time."""
        qemu = node.qemu
        if qemu is not None and qemu.a is not None and node.lives == life:
            self.qemu_dies(qemu, "its guard killed it")

    def guard(self, qemu: Qemu) -> None:
        """Have the guard watch for how long the buffers of a QEMU are not switched, from now on."""
        qemu.switched_at = self.now
        self.at(UNSWITCHED_S, self._see_switched, qemu)

    def _see_switched(self, qemu: Qemu) -> None:
        if qemu.switched_at is None or not qemu.alive:
            return
        left_s = qemu.switched_at + UNSWITCHED_S - self.now
        if left_s > 0 or qemu.node.frozen:
            self.at(max(left_s, 1.0), self._see_switched, qemu)
        else:
            self.qemu_dies(qemu, "its guard killed it: its buffers were not switched")

    def qemu_dies(self, qemu: Qemu, why: str) -> None:
        """End a QEMU process."""
        node = qemu.node
        if not qemu.alive:
            return
        self.settle()
        self.note(node.name, f"QEMU {qemu.run.id.partition('-')[0]} is gone: {why}")
        qemu.die()
        node.qemu = None
        daemon = node.daemon
        if qemu.stream is not None:
            qemu.stream.disturbed()
        if qemu.channel is not None:
            qemu.channel.disturbed()
        if daemon is not None:
            self.at(self.latency(0.002), daemon.lost, qemu, why)

    def lose_power(self, node: Node, why: str) -> None:
        """Let a host go dark with all that runs on it."""
        node.powerless += 1
        self.kill_daemon(node)
        if node.qemu is not None:
            self.qemu_dies(node.qemu, why)
        self.disturb()

    def regain_power(self, node: Node) -> None:
        """Let the host come back, unless something else keeps it off."""
        node.powerless -= 1
        self.disturb()
        self.at(self.latency(0.2), self.start_daemon, node)

    def settle(self) -> None:
        """Let both guests have run until now."""
        for node in self.nodes.values():
            if node.qemu is not None:
                node.qemu.settle()

    def disturb(self) -> None:
        """A host or the network changed: connections may notice."""
        for stream in self.streams:
            stream.disturbed()
        self.streams = [
            stream for stream in self.streams if any(end.alive for end in stream.ends())
        ]

    # Faults

    def plan(self, faults: Sequence[Fault]) -> None:
        """Let these faults happen."""
        self._faults.plan(faults)

    def moment(self, name: str) -> None:
        """Something came about to which faults may be tied."""
        if self._faults.tied:
            self._faults.moment(name)

    def take_fault(self, kind: str) -> bool:
        """Return whether a fault of this kind waits for its occasion, and use it up."""
        return self._faults.take(kind)

    def heal(self) -> None:
        """End every fault, and begin no other."""
        self.note("", "the faults are over")
        self._faults.heal()

    def whenever(self, condition: Callable[[], Any], until: float, step_s: float = 0.05) -> bool:
        """Live until the condition holds; return whether it did by that time."""
        while not condition():
            if self.now >= until:
                return False
            self.run(min(until, self.now + step_s))
        return True
