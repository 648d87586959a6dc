"""Histories to record, in the world of tests/core/world.py: nothing else here knows that world."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from coloha.core.phases import Phase
from coloha.flight.explain import Story
from tests.core import test_world
from tests.core.world import World
from tests.flight.recording import Tape, recorded, story_of


class Scene:
    """A pair whose VM is protected at first: what may happen to it, and its records."""

    def __init__(self, seed: int, tapes: dict[str, Tape]) -> None:
        self.tapes = tapes
        self._world = World(seed, **test_world.QUICK)
        self.settle(0.5)
        self.primary = self._world.in_phase(Phase.PROTECTED).name
        self.secondary = self._world.in_phase(Phase.FOLLOW).name

    def run(self, seconds: float) -> None:
        self._world.run(seconds)

    def settle(self, seconds: float = 2.0) -> None:
        """Let time pass until the VM is protected, again if need be, and some more."""
        self._world.run(seconds)
        self._world.run_until(self._world.protected, 30)
        self._world.run(0.3)

    def kill_qemu(self, name: str) -> None:
        self._world.kill_qemu(name)

    def freeze_qemu(self, name: str) -> None:
        self._world.freeze_qemu(name)

    def kill_daemon(self, name: str) -> None:
        self._world.kill_daemon(name)

    def start_daemon(self, name: str) -> None:
        self._world.start_daemon(name)

    def cut(self, *, witness_of: set[str]) -> None:
        """Cut the link, and the way of these nodes to the witness."""
        self._world.cut = {("alpha", "beta"), ("beta", "alpha")}
        self._world.witness_down = set(witness_of)

    def mend(self, *, witness: bool = True) -> None:
        self._world.cut = set()
        if witness:
            self._world.witness_down = set()

    def story(self, name: str, folder: Path) -> Story:
        return story_of(self.tapes[name].save(folder / name))


@contextlib.contextmanager
def scene(seed: int = 3) -> Iterator[Scene]:
    """A scene; its machines are recorded until the end of the block."""
    with recorded() as tapes:
        yield Scene(seed, tapes)


def live(seed: int) -> list[str]:
    """Live through a history full of faults that the seed decides, and heal; return its swaps."""
    return [line for line in test_world.life(seed).history if "witness: " in line]
