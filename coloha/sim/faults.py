"""What can go wrong, as data: made from a seed, written as text, and read back from it."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coloha.core.phases import Phase
from coloha.errors import ColohaError

NODES = ("alpha", "beta")
PAIR = "pair"


class PlanError(ColohaError):
    """A list of faults cannot be read."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    `lasts`: the shortest and longest time it lasts, seconds. `share`: the range of its strength.
    `weight`: how often it is drawn. `usual`: it is drawn if no kinds are named.
    """

    text: str
    lasts: tuple[float, float] = (0.0, 0.0)
    share: tuple[float, float] = (0.0, 0.0)
    weight: int = 2
    usual: bool = True
    pair: bool = False
    """It happens to the pair, not to one of its nodes."""
    fencing: bool = False
    """It means something only where hosts can be switched off."""


KINDS: dict[str, Kind] = {
    "qemu-crash": Kind("QEMU dies", weight=4),
    "qemu-freeze": Kind("QEMU stands still (SIGSTOP), then goes on", (0.02, 3.0), weight=4),
    "daemon-crash": Kind("the daemon dies and is started again", (0.02, 4.0), weight=5),
    "daemon-freeze": Kind("the daemon stands still, QEMU runs", (0.05, 3.0), weight=4),
    "daemon-slow": Kind("each step of the daemon is late by `share` s", (0.2, 3.0), (0.002, 0.15)),
    "host-crash": Kind("the host loses power, and comes back", (0.3, 5.0), weight=4),
    "host-freeze": Kind("the host stands still as a whole, its clock runs", (0.05, 4.0), weight=4),
    "disk-slow": Kind("each fsync takes `share` s", (0.5, 3.0), (0.02, 0.3)),
    "cut": Kind("no packet passes between the hosts", (0.05, 4.0), weight=4, pair=True),
    "cut-from": Kind("no packet passes from this host to the other", (0.05, 4.0), weight=4),
    "mute": Kind("no heartbeat of this node arrives, connections hold", (0.2, 4.0), weight=3),
    "loss": Kind(
        "this share of the packets between the hosts is lost", (0.2, 3.0), (0.05, 0.6), pair=True
    ),
    "delay": Kind(
        "packets are late by up to `share` s, so they overtake", (0.2, 3.0), (0.01, 0.6), pair=True
    ),
    "duplicate": Kind(
        "this share of the packets comes twice", (0.2, 3.0), (0.1, 0.9), 1, pair=True
    ),
    "reset": Kind("the connection between the two QEMUs breaks", pair=True),
    "witness-away": Kind("the witness does not answer this node", (0.1, 4.0), weight=3),
    "witness-doubt": Kind(
        "this share of the swaps is not answered: made, not made, or made late",
        (0.5, 4.0),
        (0.3, 1.0),
        4,
        pair=True,
    ),
    "witness-slow": Kind(
        "answers of the witness take up to `share` s", (0.5, 3.0), (0.05, 0.8), pair=True
    ),
    "witness-restart": Kind(
        "the witness goes away with answers unsaid; nothing is lost", (0.1, 2), pair=True
    ),
    "bad-load": Kind("the next checkpoint on this node leaves it half loaded", weight=3, pair=True),
    "ack-loss": Kind(
        "the next acknowledgement of a checkpoint is lost with the stream", weight=3, pair=True
    ),
    "own-checkpoint": Kind("QEMU takes a checkpoint that nobody asked for", weight=3, pair=True),
    "spurious-resume": Kind("QEMU says STOP and RESUME that mean nothing", weight=2, pair=True),
    "launch-fails": Kind("the next start of QEMU fails", weight=1, pair=True),
    "guest-shutdown": Kind("the guest switches itself off", weight=1, pair=True),
    "fence-fails": Kind(
        "this share of the attempts to fence fails", (0.5, 4.0), (0.3, 1.0), pair=True, fencing=True
    ),
    "fence-doubt": Kind(
        "this share of the attempts to fence is not answered: done, not done, or done late",
        (0.5, 4.0),
        (0.3, 1.0),
        pair=True,
        fencing=True,
    ),
    "fence-slow": Kind(
        "fencing takes up to `share` s more", (0.5, 4.0), (0.1, 2.0), pair=True, fencing=True
    ),
    "disk-lost": Kind(
        "the host loses power, and comes back with its state directory empty",
        (0.3, 5.0),
        weight=3,
        usual=False,
    ),
    "image-missed": Kind(
        "the secondary's disk misses a write: the primary is told", usual=False, pair=True
    ),
    "image-behind": Kind("the primary's disk misses a write", usual=False, pair=True),
    "copy-failed": Kind("the secondary's guest sees its disk fail", usual=False, pair=True),
    "switchover": Kind("an operator wants the VM on the other node", usual=False, pair=True),
    "failover": Kind("an operator wants that at once", usual=False, pair=True),
    "unprotect": Kind("an operator wants no secondary for so long", (0.1, 4.0), usual=False),
    "power-down": Kind("an operator has the guest switch itself off", usual=False, pair=True),
    "power-off": Kind("an operator switches the VM off", usual=False, pair=True),
    "guest-panic": Kind("the guest panics", usual=False, pair=True),
    "clock-pause": Kind("the host and its monotonic clock stand still", (0.3, 4.0), usual=False),
}
DISKS = ("image-missed", "image-behind", "copy-failed")
"""What happens to VMs with replicated disks. The disks themselves are not modelled."""
ORDERS = ("switchover", "failover", "unprotect", "power-down", "power-off", "guest-panic")
"""What an operator orders of a VM that runs; and a guest that ends by its own doing."""
USUAL = tuple(name for name, kind in KINDS.items() if kind.usual and not kind.fencing)
FENCING = tuple(name for name, kind in KINDS.items() if kind.fencing)

MOMENTS = (
    *(phase.value for phase in Phase if phase is not Phase.HALTED),
    *("persist", "swap", "swapped", "launch", "invite"),
    *("requested", "captured", "loaded", "committed", "release", "broken"),
)
"""What a fault can be tied to: a node enters a phase, or one of these things happens."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `at` seconds after the start, or after `moment` came about for the `nth` time."""

    at: float
    kind: str
    target: str
    lasts: float = 0.0
    share: float = 0.0
    moment: str = ""
    nth: int = 1

    def __str__(self) -> str:
        when = f"{self.moment}.{self.nth}+{self.at:g}" if self.moment else repr(self.at)
        return f"{when} {self.kind} {self.target} {self.lasts:g} {self.share:g}"


def written(faults: Iterable[Fault], heal_at: float) -> str:
    """Return a list of faults, and when the last of them ends, as one line of text."""
    return "; ".join([*map(str, faults), f"{heal_at!r} heal"])


def read(text: str) -> tuple[tuple[Fault, ...], float]:
    """Return what `written` wrote.

    :raises PlanError: if the text is none of its.
    """
    *parts, last = [part.split() for part in text.split(";") if part.strip()] or [[]]
    if len(last) != 2 or last[1] != "heal":
        raise PlanError("a list of faults ends with SECONDS heal: when all of them are over")
    try:
        return tuple(map(_read_one, parts)), float(last[0])
    except ValueError:
        raise PlanError(f"heal: {last[0]!r} is no number of seconds") from None


def _read_one(words: Sequence[str]) -> Fault:
    text = " ".join(words)
    try:
        when, kind, target, lasts, share = words
        moment, _, at = when.rpartition("+")
        name, _, nth = moment.partition(".")
        fault = Fault(float(at), kind, target, float(lasts), float(share), name, int(nth or 1))
    except ValueError:
        raise PlanError(
            f"fault {text!r}: expected [MOMENT.NTH+]SECONDS KIND NODE LASTS SHARE"
        ) from None
    known = kind in KINDS and target in ((PAIR,) if KINDS[kind].pair else NODES)
    if not known or (name and name not in MOMENTS):
        raise PlanError(f"fault {text!r}: no such kind, node or moment")
    return fault


def draw(choose: random.Random, kinds: Sequence[str], span_s: float) -> tuple[Fault, ...]:
    """Return a random list of faults of these kinds, within `span_s` seconds.

    Few kinds at a time, often close together, often tied to a moment: faults that have to meet
    within milliseconds would else hardly ever do so.
    """
    kinds = choose.sample(kinds, min(len(kinds), choose.choice((2, 3, 5, len(kinds)))))
    weights = [KINDS[name].weight for name in kinds]
    favourite = choose.choice(NODES)
    faults: list[Fault] = []
    for _ in range(choose.choice((1, 1, 2, 2, 2, 3, 3, 4, 6))):
        name = choose.choices(kinds, weights)[0]
        kind = KINDS[name]
        target = favourite if choose.random() < 0.6 else choose.choice(NODES)
        target = PAIR if kind.pair else target
        if faults and choose.random() < 0.7:
            before = faults[-1]
            moment, nth, at = before.moment, before.nth, before.at
            if before.kind in _WAITING:
                moment, nth, at = "broken", 1, 0.0
            at += choose.choice(_GAPS)(choose)
        elif choose.random() < 0.5:
            moment = choose.choice(_USEFUL)
            nth = choose.randint(1, _OFTEN.get(moment, 2))
            at = choose.choice(_GAPS)(choose)
        else:
            moment, nth, at = "", 1, span_s * choose.random() ** 0.5
        lasts = round(_skewed(choose, *kind.lasts), 3)
        share = round(choose.uniform(*kind.share), 3)
        faults.append(Fault(round(at, 4), name, target, lasts, share, moment, nth))
    return tuple(faults)


_GAPS: tuple[Callable[[random.Random], float], ...] = (
    lambda _: 0.0,
    lambda choose: choose.expovariate(500),
    lambda choose: choose.expovariate(30),
    lambda choose: choose.expovariate(3),
)
"""How long after a moment, or after the fault before, a fault comes."""

_WAITING = ("bad-load", "ack-loss")
"""They wait for a checkpoint, and break the stream then."""

_CHECKPOINT = ("requested", "captured", "loaded", "committed", "release")
_OFTEN = {"persist": 9, "swap": 4, "swapped": 4} | dict.fromkeys(_CHECKPOINT, 9)
"""Of how many times that a moment comes about one is chosen, if not of two."""

_USEFUL = (
    *MOMENTS,
    *("persist", "swap", "swapped", *_CHECKPOINT) * 3,
    *("protected", "arm", "defend", "claim", "promote", "leave", "yielded") * 2,
)


def _skewed(choose: random.Random, least: float, most: float) -> float:
    """Return a time between `least` and `most`, short ones more often."""
    return least + (most - least) * choose.random() ** 2
