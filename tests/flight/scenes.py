"""Histories to record, in the simulator's world: nothing else here knows that world."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from coloha.core.phases import Phase
from coloha.flight.explain import Story
from coloha.sim.history import PROFILES, decided_by, plan
from coloha.sim.history import live as live_through
from coloha.sim.node import Node
from coloha.sim.world import World
from tests.flight.recording import Tape, recorded, story_of


class Scene:
    """A pair whose VM is protected at first: what may happen to it, and its records."""

    def __init__(self, seed: int, tapes: dict[str, Tape], arbiter: str) -> None:
        self.tapes = tapes
        self._world = World(seed, decided_by(arbiter, PROFILES[2]))
        self.settle(0.5)
        self.primary = self._in_phase(Phase.PROTECTED).name
        self.secondary = self._in_phase(Phase.FOLLOW).name

    def _in_phase(self, phase: Phase) -> Node:
        nodes = self._world.nodes.values()
        return next(n for n in nodes if n.daemon is not None and n.daemon.phase is phase)

    def run(self, seconds: float) -> None:
        self._world.run(self._world.now + seconds)

    def settle(self, seconds: float = 2.0) -> None:
        """Let time pass until the VM is protected, again if need be, and some more."""
        self.run(seconds)
        assert self._world.whenever(self._world.judge.whole, self._world.now + 30)
        self.run(0.3)

    def kill_qemu(self, name: str) -> None:
        qemu = self._world.nodes[name].qemu
        assert qemu is not None
        self._world.qemu_dies(qemu, "killed")

    def freeze_qemu(self, name: str) -> None:
        qemu = self._world.nodes[name].qemu
        assert qemu is not None
        qemu.freeze()

    def kill_daemon(self, name: str) -> None:
        self._world.kill_daemon(self._world.nodes[name])

    def start_daemon(self, name: str) -> None:
        self._world.start_daemon(self._world.nodes[name])

    def cut(self, *, witness_of: set[str]) -> None:
        """Cut the link, and the way of these nodes to the witness."""
        for name in self._world.nodes:
            self._world.network.cuts[name] = 1
            self._world.witness.away[name] = int(name in witness_of)
        self._world.disturb()

    def mend(self, *, witness: bool = True) -> None:
        for name in self._world.nodes:
            self._world.network.cuts[name] = 0
            if witness:
                self._world.witness.away[name] = 0
        self._world.disturb()

    def story(self, name: str, folder: Path) -> Story:
        return story_of(self.tapes[name].save(folder / name))


@contextlib.contextmanager
def scene(seed: int = 3, arbiter: str = "witness") -> Iterator[Scene]:
    """A scene; its machines are recorded until the end of the block."""
    with recorded() as tapes:
        yield Scene(seed, tapes, arbiter)


def live(seed: int) -> list[str]:
    """Live through a history full of faults that the seed decides, and heal; return its swaps."""
    outcome = live_through(plan(seed), log=True)
    if outcome.violation is not None:
        raise outcome.violation  # it catches everything, what tests assert meanwhile too
    swaps = (line for line in outcome.lines if "swaps the record" in line.text)
    return [f"{line.text} by {line.who}" for line in swaps]
