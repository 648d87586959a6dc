"""The parts of the world around the machines: its clients, and QEMU at the level of scripts."""

from dataclasses import dataclass, field

from coloha.core.actions import Tell
from coloha.core.events import ColoMode, Durable, Run
from coloha.core.machine import PairMachine


class BrokenPromiseError(AssertionError):
    """What must never happen did."""


@dataclass
class Clients:
    """Hear the guest, and remember."""

    heard: int = 0
    voice: tuple[int, str] | None = None
    """Which life of the VM was heard last: (generation it speaks in, node)."""
    lives: int = 1
    said: int = 0
    stale: int = 0
    """Committed output that came after the other side had begun to speak; see `hear_stale`."""

    def hear(self, node: str, generation: int, number: int) -> None:
        self.said += 1
        if self.voice is not None and self.voice != (generation, node):
            if generation < self.voice[0]:
                raise BrokenPromiseError(f"{node} spoke in {generation} after {self.voice}")
            if generation == self.voice[0] and node != self.voice[1]:
                raise BrokenPromiseError(f"two voices in {generation}: {node}, {self.voice[1]}")
        self.voice = (generation, node)
        if number <= self.heard:
            raise BrokenPromiseError(f"{node} forgot: said {number} after {self.heard}")
        self.heard = number

    def hear_stale(self, node: str, number: int, life: int) -> None:
        """Hear what a host let go that stood still between deciding to and doing it.

        No software on that host can close this gap (docs/design.md, "What remains"). What comes out
        late must at least be committed: the survivor remembers it.
        """
        self.stale += 1
        if life == self.lives and number > self.heard:
            raise BrokenPromiseError(f"{node} let go {number}, which nobody remembers")

    def rebooted(self) -> None:
        """The VM was booted anew: it need not remember."""
        self.lives += 1
        self.heard = 0


@dataclass
class Qemu:
    """One process: the guest in it, its output path, its end of a session."""

    run: Run
    count: int = 0
    running: bool = True
    frozen: bool = False
    colo: ColoMode = ColoMode.NONE
    stream: "Stream | None" = None
    buffers: bool = False
    sunk: bool = False
    a: list[int] = field(default_factory=list)
    b: list[int] = field(default_factory=list)
    generation: int = 0
    life: int = 0
    """Which life of the VM this process began in; see `Clients.lives`."""


@dataclass
class Stream:
    """A channel between two QEMUs."""

    primary: Qemu
    secondary: Qemu
    broken: bool = False


@dataclass
class Node:
    name: str
    disk: Durable = field(default_factory=Durable)
    machine: PairMachine | None = None
    qemu: Qemu | None = None
    life: int = 0
    """Counts daemon starts: what belongs to an earlier one is not delivered."""
    frozen: bool = False
    scripts: int = 0
    told: list[Tell] = field(default_factory=list)
