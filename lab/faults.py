"""What chaos does, as data drawn from a seed; pure: it touches nothing.

A plan is a list of *blows*. A blow is one fault, or two that are in the world at the same time.
Where a blow could cost both copies of the VM, which nothing can survive, it is not drawn, unless
its kind is asked for by name.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A way in which something fails."""

    QEMU_KILL = "qemu-kill"
    """SIGKILL to a host's QEMU."""
    QEMU_STOP = "qemu-stop"
    """SIGSTOP to a host's QEMU; SIGCONT at the end, if it still lives."""
    DAEMON_KILL = "daemon-kill"
    """SIGKILL to a host's daemon, which is started again at the end."""
    HOST_FREEZE = "host-freeze"
    """SIGSTOP to all of a host's processes; SIGCONT at the end."""
    HOST_KILL = "host-kill"
    """A host loses power: nothing of it is left; at the end it is there again with its daemon."""
    HOST_CUT = "host-cut"
    """A host loses its links, to the other host and to the clients, and the witness."""
    LINK = "link"
    """Neither host hears the other; both hear the clients and the witness."""
    LINK_ONE_WAY = "link-one-way"
    """One host does not hear the other, and is heard by it."""
    HEARTBEATS = "heartbeats"
    """One host does not hear the other's heartbeats, but all else, checkpoints too."""
    WITNESS_GONE = "witness-gone"
    """The witness's folder is not mounted, on one host or both."""
    WITNESS_HANGS = "witness-hangs"
    """Whoever opens the record waits until the end, on one host or both."""
    TWO = "two"
    """Two of the kinds above at the same time. Drawn only; no fault has this kind."""
    BOTH_COPIES = "both-copies"
    """SIGKILL to both QEMUs: the VM is lost and must boot again. Only if asked for by name."""


class Target(StrEnum):
    """Whom a fault hits: the node's role when the blow begins."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. Times in seconds: `delay_s` after the VM was seen protected, or after the first
    fault of the blow; it ends after `duration_s`.
    """

    kind: Kind
    target: Target
    delay_s: float
    duration_s: float

    def __str__(self) -> str:
        lasts = f" for {self.duration_s:.2f} s" if self.duration_s else ""
        return f"{self.kind} of {self.target} after {self.delay_s:.2f} s{lasts}"


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault, or two; the second begins while the pair deals with the first, or with it."""

    first: Fault
    second: Fault | None = None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Both, or the one there is."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def kind(self) -> Kind:
        """The kind under which it is counted."""
        return self.first.kind if self.second is None else Kind.TWO

    @property
    def cold_boot(self) -> bool:
        """Whether it costs both copies, so that the VM must boot again."""
        return self.first.kind is Kind.BOTH_COPIES

    def __str__(self) -> str:
        return ", then ".join(map(str, self.faults))


SINGLE = tuple(kind for kind in Kind if kind not in (Kind.TWO, Kind.BOTH_COPIES))
DEFAULT = (*SINGLE, Kind.TWO)

_DECK = {Kind.TWO: 3}
"""How often a kind is in the deck that is drawn from; once if not named."""

_LASTS = {
    Kind.QEMU_KILL: (0.0, 0.0),
    Kind.BOTH_COPIES: (0.0, 0.0),
    Kind.WITNESS_GONE: (1.0, 6.0),
    Kind.WITNESS_HANGS: (1.0, 6.0),
    Kind.HOST_KILL: (0.5, 4.0),
}
_LASTS_ELSE = (0.1, 4.5)
"""Shorter and longer than it takes to be noticed (see lab.chaos.TIMING)."""

_TRIES = 10_000
"""More than enough to find two that go together, if there are any."""

_ANY_BOTH = frozenset({Kind.WITNESS_GONE, Kind.WITNESS_HANGS})
_ONLY_BOTH = frozenset({Kind.LINK, Kind.BOTH_COPIES})
_KILLS = frozenset({Kind.QEMU_KILL, Kind.HOST_KILL})
_WITNESS = frozenset({Kind.WITNESS_GONE, Kind.WITNESS_HANGS})
_LINKS = frozenset({Kind.LINK, Kind.LINK_ONE_WAY, Kind.HEARTBEATS})
_CUTS_WITNESS = frozenset({Kind.HOST_CUT, Kind.HOST_KILL, *_WITNESS})


def spoils(fault: Fault) -> frozenset[Target]:
    """Whose copy the pair may give up because of a fault, though nothing has killed it."""
    if fault.kind in _WITNESS:
        return frozenset()
    if fault.kind in _LINKS:
        return frozenset({Target.PRIMARY, Target.SECONDARY})  # the witness lets one of them win
    return frozenset({fault.target})


def survivable(first: Fault, second: Fault) -> bool:
    """Whether one copy is left whatever the pair decides in between (docs/chaos.md).

    A copy that is killed is one that nobody can choose. So after a kill everything else may happen,
    except to kill the other one; before a kill nothing that lets the pair choose what is killed.
    """
    if second.kind not in _KILLS:
        return True
    harmed = {first.target} if first.kind in _KILLS else spoils(first)
    return harmed <= {second.target}


def separate(first: Fault, second: Fault) -> bool:
    """Whether the end of one does not end the other: they break different things."""
    same = first.kind is second.kind and first.target is second.target
    links = first.kind in _LINKS and second.kind in _LINKS
    hangs = Kind.WITNESS_HANGS in (first.kind, second.kind)
    return not same and not links and not (hangs and {first.kind, second.kind} <= _CUTS_WITNESS)


def _fault(choose: random.Random, kind: Kind, delay_s: float) -> Fault:
    low, high = _LASTS.get(kind, _LASTS_ELSE)
    targets = list(Target) if kind in _ANY_BOTH else [Target.PRIMARY, Target.SECONDARY]
    target = Target.BOTH if kind in _ONLY_BOTH else choose.choice(targets)
    return Fault(kind, target, round(delay_s, 3), round(choose.uniform(low, high), 3))


def _second_delay_s(choose: random.Random) -> float:
    """At once; during the failover; or while the VM is being protected again."""
    return choose.choice([0.0, choose.uniform(0.0, 0.8), choose.uniform(0.8, 4.0)])


def _two(choose: random.Random, kinds: Sequence[Kind], delay_s: float) -> Blow:
    for _ in range(_TRIES):
        first = _fault(choose, choose.choice(kinds), delay_s)
        second = _fault(choose, choose.choice(kinds), _second_delay_s(choose))
        if survivable(first, second) and separate(first, second):
            return Blow(first, second)
    raise ValueError(f"no two faults of these kinds can be drawn together: {', '.join(kinds)}")


def plan(seed: int, count: int, kinds: Sequence[Kind] = DEFAULT) -> list[Blow]:
    """Draw `count` blows; the same ones for the same arguments.

    Kinds are dealt from a shuffled deck, so that each comes before any comes again and again. Two
    faults at a time are of the kinds given; if only `Kind.TWO` is given, of all.

    :raises ValueError: if two at a time are wanted and no two of the kinds go together.
    """
    choose = random.Random(seed)
    singles = [kind for kind in SINGLE if kind in kinds] or list(SINGLE)
    blows: list[Blow] = []
    deck: list[Kind] = []
    while len(blows) < count:
        if not deck:
            deck = [kind for kind in kinds for _ in range(_DECK.get(kind, 1))]
            choose.shuffle(deck)
        kind, delay_s = deck.pop(), choose.uniform(0.0, 1.5)
        if kind is Kind.TWO:
            blows.append(_two(choose, singles, delay_s))
        else:
            blows.append(Blow(_fault(choose, kind, delay_s)))
    return blows
