"""Switches that turn one rule off, for the tests alone: they rewrite a function's code.

What the simulator then finds, and how soon, is the table in docs/safety.md.
"""

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType

from coloha.sim.faults import USUAL


@dataclass(frozen=True)
class Change:
    """In the function at `place`, `old` becomes `new`."""

    place: str
    old: str
    new: str


@dataclass(frozen=True)
class Switch:
    """One rule turned off. `found` is what must be found within `seeds` seeds, from 0 on."""

    rule: str
    name: str
    changes: tuple[Change, ...]
    found: tuple[str, ...]
    seeds: int
    faults: tuple[str, ...] = USUAL
    arbiter: str = "witness"


# The core's own last line of defence is off with every switch: the checkers must do without.
UNGUARDED = (
    Change("coloha.core.invariants:check", "for action in c.actions:", "for action in ():"),
    Change("coloha.core.invariants:check", "    if c.phase in SPEAKING", "    if False"),
    Change("coloha.core.invariants:check", "    if c.phase in SPEAKING", "    if False"),
    Change(
        "coloha.core.record:swap_problem",
        "if current is None:",
        "if True:\n        return None\n    if current is None:",
    ),
)

SWITCHES = [
    Switch(
        "R1",
        "protection is asked for without a commit since the output is held",
        (Change("coloha.core.primary:arm", "elif c.committed == 0:", "elif False:"),),
        ("forgotten",),
        50,
    ),
    Switch(
        "R2",
        "the secondary promotes without asking the witness",
        (
            Change(
                "coloha.core.secondary:_ask_for_generation",
                "elif _guards(c):\n        own(c)",
                "elif _guards(c):\n        c.go(Phase.PROMOTE)",
            ),
        ),
        ("no-right", "two-voices"),
        100,
    ),
    Switch(
        "R2",
        "the primary opens its output without asking the witness",
        (
            Change(
                "coloha.core.primary:defend",
                "if own(c, forced=ordered):",
                "if True:",
            ),
        ),
        ("no-right", "two-voices"),
        100,
    ),
    Switch(
        "R3",
        "the loser's QEMU is ended with quit instead of SIGKILL",
        (
            Change(
                "coloha.sim.daemon:Daemon.end",
                "self.world.qemu_dies(",
                "qemu.settle()\n"
                "    qemu.a_holds = qemu.ran\n"
                "    if qemu.a is not None:\n"
                "        qemu._empty_b(self.world.now)\n"
                "    self.world.qemu_dies(",
            ),
        ),
        ("forgotten", "two-voices"),
        100,
    ),
    Switch(
        "R3",
        "the loser's QEMU is not killed",
        (
            Change(
                "coloha.core.common:overtaken",
                "record, peer, mine =",
                "return False\n    record, peer, mine =",
            ),
        ),
        ("record", "two-voices"),
        100,
    ),
    Switch(
        "R4",
        "a starting node goes on with the QEMU that it finds, whatever the record says",
        (
            Change("coloha.core.common:_found", "elif _entitled(c):", "elif True:"),
            Change(
                "coloha.core.common:_adopted",
                "Phase.FOLLOW if colo",
                "Phase.LEAVE if colo is ColoMode.PRIMARY else Phase.FOLLOW if colo",
            ),
            Change(
                "coloha.core.common:overtaken",
                "record, peer, mine =",
                "return False\n    record, peer, mine =",
            ),
        ),
        ("two-voices", "no-right"),
        200,
    ),
    Switch(
        "R4",
        "a secondary claims the generation of a record that is solo",
        (
            Change(
                "coloha.core.secondary:_guards",
                "c.record.protected and c.record.session == c.session",
                "True",
            ),
        ),
        ("record",),
        500,
    ),
    Switch(
        "R5",
        "a checkpoint that did not load is not taken note of",
        (
            Change(
                "coloha.core.absorb:_copy_bad", "if c.run is None", "return\n    if c.run is None"
            ),
            Change("coloha.sim.monitor:Monitor._look", "if self._copy_bad():", "if False:"),
        ),
        ("bad-copy",),
        1500,
        ("bad-load", "daemon-crash"),
    ),
    Switch(
        "R6",
        "a node whose QEMU died does not say so",
        (Change("coloha.core.absorb:_lose_copy", "if taking_part:", "if False:"),),
        ("not-protected",),
        200,
    ),
    Switch(
        "R8",
        "the primary of a protected record does not start the VM anew when both copies are lost",
        (
            Change(
                "coloha.core.primary:yielded",
                "if not record.protected or alone or abandoned or ordered:",
                "if not record.protected:",
            ),
        ),
        ("not-protected",),
        200,
    ),
    Switch(
        "unpromotable mark",
        "a half-loaded copy is known, and promoted all the same",
        (
            Change(
                "coloha.core.absorb:_copy_bad",
                "if c.session is not None and not c.owned:",
                "if False:",
            ),
            Change("coloha.core.secondary:follow", "if c.copy_bad is not None:", "if False:"),
            Change("coloha.core.secondary:claim", "elif c.copy_bad is not None:", "elif False:"),
            Change("coloha.core.secondary:promote", "elif c.copy_bad is not None:", "elif False:"),
            Change("coloha.sim.monitor:Monitor._look", "if self._copy_bad():", "if False:"),
            Change("coloha.core.snapshot:wire", " and c.copy_bad is None", ""),
        ),
        ("bad-copy",),
        1500,
        ("bad-load", "daemon-crash"),
    ),
    Switch(
        "second look",
        "a copy is looked at before the stream is cut, not after",
        (
            Change(
                "coloha.qemu.scripts:promote",
                "yield from cut(chardevs=",
                "yield Look()\n    yield from cut(chardevs=",
            ),
            Change(
                "coloha.qemu.scripts:promote",
                "yield from _loads_no_more()\n    yield Look()",
                "pass",
            ),
        ),
        ("bad-copy",),
        2500,
        ("bad-load", "host-freeze", "own-checkpoint"),
    ),
    Switch(
        "epoch's stop",
        "buffer A is emptied while the guest runs, and that is not looked at",
        (
            Change("coloha.qemu.scripts:epoch", 'Command("stop"), ', ""),
            Change("coloha.qemu.scripts:epoch", "range(1, ", "range(0, "),
            Change("coloha.core.commit:why_not", "if any(", "if False and any("),
        ),
        ("forgotten",),
        600,
        ("spurious-resume",),
    ),
    Switch(
        "commit predicate",
        "any RESUME is a commit",
        (Change("coloha.core.commit:why_not", "if not stream", "return None\n    if not stream"),),
        ("forgotten",),
        300,
        ("spurious-resume",),
    ),
    Switch(
        "persist before act",
        "actions do not wait for the disk: it is written 0.3 s later",
        (
            Change(
                "coloha.sim.daemon:Daemon._carry_out",
                "self._persist(action.durable, actions, index + 1)\n            break",
                "late = lambda d=action.durable: self.alive and setattr(self.node, 'disk', d)\n"
                "            self.world.at(0.3, late)\n"
                "            continue",
            ),
        ),
        ("not-protected", "lost-vm", "no-right"),
        300,
        ("daemon-crash", "witness-doubt"),
    ),
    Switch(
        "own copy first",
        "the primary asks for the next generation without seeing that its own QEMU lives",
        (Change("coloha.core.primary:defend", "elif outcome is None and", "elif False and"),),
        ("lost-vm",),
        600,
        ("qemu-crash",),
    ),
    Switch(
        "lease",
        "output is released without a lease",
        (
            Change(
                "coloha.core.primary:_epochs",
                "c.releasable and c.now < c.pulse.lease_until()",
                "c.releasable",
            ),
        ),
        ("two-voices",),
        500,
        ("mute", "daemon-slow"),
    ),
    Switch(
        "R7",
        "without a witness the secondary takes over from silence",
        (
            Change("coloha.core.secondary:_may_claim", "entitled(c)", "(c.silent or entitled(c))"),
            Change("coloha.core.ownership:own", "(forced or entitled(c))", "True"),
        ),
        ("not-dead", "two-voices", "forgotten"),
        50,
        arbiter="hold",
    ),
    Switch(
        "R7",
        "a primary that is to hold goes on alone from silence",
        (Change("coloha.core.ownership:entitled", "not hold and mine", "mine"),),
        ("not-dead", "record"),
        50,
        arbiter="hold-fence",
    ),
    Switch(
        "R7",
        "a primary takes the generation although it gave up its copy",
        (Change("coloha.core.ownership:entitled", "mine = c.durable.gave_up", "mine = -1"),),
        ("record", "lost-vm", "two-voices"),
        100,
        arbiter="primary",
    ),
    Switch(
        "R7",
        "a node whose disk is empty begins anew without asking the other one",
        (
            Change(
                "coloha.core.common:_begin_unwitnessed",
                "c.heard is not None and c.heard.record is None and not c.heard.living",
                "True",
            ),
        ),
        ("record", "two-voices"),
        50,
        ("disk-lost", "cut"),
        arbiter="hold",
    ),
    Switch(
        "R7",
        "a copy is given up for what the primary said long ago",
        (Change("coloha.core.secondary:_conceded", "c.now >= c.pulse.lease_until()", "False"),),
        ("lost-vm",),
        2500,
        ("daemon-freeze", "qemu-crash", "reset"),
        arbiter="hold",
    ),
    Switch(
        "fencing",
        "a fencing of unknown outcome is taken for confirmed",
        (
            Change(
                "coloha.core.absorb:_fence_done",
                "event.outcome is Fenced.CONFIRMED",
                "event.outcome is not Fenced.FAILED",
            ),
        ),
        ("not-dead",),
        600,
        arbiter="hold-fence",
    ),
    Switch(
        "fencing",
        "a copy is given up while the other host is being switched off",
        (Change("coloha.core.secondary:_conceded", "if c.fence is not None:", "if False:"),),
        ("lost-vm",),
        400,
        ("host-freeze", "fence-slow"),
        arbiter="hold-fence",
    ),
    Switch(
        "fencing",
        "fencing is required, and a failed one borne",
        (Change("coloha.core.secondary:_may_speak", "c.s.fencing is Fencing.OPTIONAL and", ""),),
        ("not-dead",),
        150,
        arbiter="witness-fence-required",
    ),
]


def _function(place: str) -> FunctionType:
    module, _, path = place.partition(":")
    found: object = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert isinstance(found, FunctionType)
    return found


def _source(place: str) -> str:
    return textwrap.dedent(inspect.getsource(_function(place)))


@contextlib.contextmanager
def turned_off(switch: Switch) -> Iterator[None]:
    """Turn a rule off. The code of functions is exchanged, so every reference sees it."""
    sources: dict[str, str] = {}
    for change in (*UNGUARDED, *switch.changes):
        source = sources.get(change.place) or _source(change.place)
        assert change.old in source, f"{change.place}: the rule moved: follow it"
        sources[change.place] = source.replace(change.old, change.new, 1)
    before = {place: _function(place).__code__ for place in sources}
    try:
        for place, source in sources.items():
            function = _function(place)
            made: dict[str, FunctionType] = {}
            exec(source, function.__globals__, made)
            function.__code__ = made[function.__name__].__code__
        yield
    finally:
        for place, code in before.items():
            _function(place).__code__ = code
