"""The witness: one record, changed by compare-and-swap, with answers that can be lost or late."""

from collections import Counter
from typing import TYPE_CHECKING

from coloha.core.actions import SwapRecord
from coloha.core.events import RecordRead, SwapDone, WitnessFailed
from coloha.core.record import Record

if TYPE_CHECKING:
    from coloha.sim.daemon import Daemon
    from coloha.sim.node import Node
    from coloha.sim.world import World

TIMEOUT_S = 0.3


def _rank(record: Record) -> tuple[int, bool]:
    return record.generation, record.protected


class Witness:
    """Judges no swap: what it is asked for it does, so that the checkers can see it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.record: Record | None = None
        self.away: Counter[str] = Counter()
        """Faults that keep each node from it."""
        self.stopped = 0
        self.doubts: list[float] = []
        """Shares of swaps that are not answered."""
        self.slowness: list[float] = []
        self.late = 0
        """Swaps that may yet be made although nobody waits for them any more."""

    def copied(self, node: "Node", record: Record) -> None:
        """A node without a witness has `record` on its disk: the later one of both counts."""
        before = self.record
        if before == record or (before is not None and _rank(record) < _rank(before)):
            return
        world = self._world
        world.note(node.name, f"moves the record: {before or 'none'} -> {record}")
        world.settle()
        self.record = record
        world.judge.record_moved(before, record, node, world.judge.asked(node))
        world.moment("swapped")

    def _reachable(self, daemon: "Daemon") -> bool:
        return not self.stopped and not self.away[daemon.node.name]

    def _delay(self) -> float:
        world = self._world
        slow = max(self.slowness, default=0.0)
        return world.latency(0.002) + slow * world.random.random()

    def read(self, daemon: "Daemon") -> None:
        """Answer a read, some time later."""
        self._world.at(self._delay(), self._read, daemon)

    def _read(self, daemon: "Daemon") -> None:
        if self._reachable(daemon):
            self._world.at(self._world.latency(0.002), daemon.post, RecordRead(self.record))
        else:
            self._world.at(TIMEOUT_S, daemon.post, WitnessFailed("it does not answer"))

    def swap(self, daemon: "Daemon", action: SwapRecord) -> None:
        """Make a swap, some time later. It survives the daemon that asked for it."""
        told_dead = self._world.judge.asked(daemon.node)
        self._world.at(self._delay(), self._swap, daemon, action, told_dead)

    def _swap(self, daemon: "Daemon", action: SwapRecord, told_dead: bool) -> None:
        world = self._world
        if not self._reachable(daemon):
            # It may have arrived before the answer was lost.
            unknown = world.random.random() < 0.5
            answer = WitnessFailed("it does not answer", unknown=unknown)
            world.at(TIMEOUT_S, daemon.post, answer)
            return
        if world.random.random() < max(self.doubts, default=0.0):
            fate = world.random.random()
            kept = "made" if fate < 0.4 else "made later" if fate < 0.8 else "not made"
            world.note(
                daemon.node.name, f"gets no answer to its swap to {action.new}: it is {kept}"
            )
            if fate < 0.4:
                self._make(daemon, action, told_dead)
            elif fate < 0.8:
                self.late += 1
                late_s = world.random.uniform(0.0, 3.0)
                world.at(late_s, self._make_late, daemon, action, told_dead)
            world.at(TIMEOUT_S, daemon.post, WitnessFailed("no answer", unknown=True))
            return
        made = self._make(daemon, action, told_dead)
        answer_event = SwapDone(action.new) if made else RecordRead(self.record)
        world.at(world.latency(0.002), daemon.post, answer_event)

    def _make_late(self, daemon: "Daemon", action: SwapRecord, told_dead: bool) -> None:
        self.late -= 1
        self._make(daemon, action, told_dead)

    def _make(self, daemon: "Daemon", action: SwapRecord, told_dead: bool) -> bool:
        if self.record != action.expected:
            return False
        world, by = self._world, daemon.node
        world.note(by.name, f"swaps the record: {self.record or 'none'} -> {action.new}")
        world.settle()
        self.record, before = action.new, self.record
        world.judge.record_moved(before, action.new, by, told_dead)
        world.moment("swapped")
        return True
