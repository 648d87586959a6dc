"""The promises hold in simulated histories, fresh ones in every run."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from coloha.cli.simulate import story
from coloha.core.phases import Phase
from coloha.sim.faults import DISKS, KINDS, NODES, ORDERS, USUAL, Fault, draw
from coloha.sim.history import (
    ARBITERS,
    PROFILES,
    Outcome,
    Plan,
    decided_by,
    drawn_arbiter,
    live,
    plan,
)
from coloha.sim.shrink import shrink
from coloha.sim.sweep import one_fault, two_faults
from coloha.sim.world import World
from tests.sim.switches import Change, Switch, turned_off

FRESH = 2000
PARTS = 10


def explained(outcome: Outcome) -> str:
    """A broken history, with as few faults as break it, as text for people."""
    return "\n".join(story(live(shrink(outcome).plan, log=True)))


def check(seeds: range, arbiter: str | None = None, kinds: Sequence[str] = USUAL) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        outcome = live(plan(seed, kinds, arbiter=arbiter or drawn_arbiter(seed)))
        assert outcome.violation is None, explained(outcome)
        seen += outcome.seen
    return seen


@pytest.mark.parametrize("part", range(PARTS))
def test_fresh_histories(part: int, first_seed: int) -> None:
    size = FRESH // PARTS
    check(range(first_seed + part * size, first_seed + (part + 1) * size))


def test_the_histories_are_no_bed_of_roses() -> None:
    """They must contain what they are meant to try."""
    seen = check(range(1000), "witness")
    assert seen["failovers"] > 60
    assert {"yielded", "claimed", "promoted", "adopted", "overtaken", "recovered"} <= set(seen)
    assert {"cold-start", "witness-unreachable", "epoch-kept", "hung", "copy-bad"} <= set(seen)


@pytest.mark.parametrize(
    ("arbiter", "expected"),
    [
        ("hold", {"yielded", "claimed", "conceded", "adopted", "recovered"}),
        ("hold-fence", {"fenced", "fence-failed", "switched off", "conceded", "claimed"}),
        ("primary", {"yielded", "claimed", "overtaken", "cold-start"}),
        ("witness-fence", {"fenced", "fence-failed", "claimed", "overtaken"}),
        ("witness-fence-required", {"fenced", "fence-failed", "claimed", "overtaken"}),
    ],
)
def test_each_arbiter_is_tried(arbiter: str, expected: set[str]) -> None:
    seen = check(range(300), arbiter)
    assert expected <= set(seen)
    assert seen["late output"] == 0


def test_disks_that_fail_break_no_promise() -> None:
    """With copies and daemons that die, and a link that is cut; by every arbiter."""
    others = ("qemu-crash", "daemon-crash", "host-freeze", "cut", "witness-doubt")
    seen = check(range(200), kinds=DISKS) + check(range(300), kinds=(*DISKS, *others))
    assert {"disk-failed", "handed-over", "copy-bad", "unprotected", "adopted"} <= set(seen)


def test_orders_break_no_promise() -> None:
    """Alone, and amid faults; by every arbiter."""
    others = ("qemu-crash", "daemon-crash", "host-freeze", "cut", "witness-doubt", "witness-away")
    seen = check(range(300), kinds=ORDERS) + check(range(700), kinds=(*ORDERS, *others))
    told = {"switchover", "failover-ordered", "alone", "protection-wanted", "power-down", "stopped"}
    assert told | {"unprotected", "promoted"} <= set(seen)


def test_every_arbiter_is_drawn() -> None:
    assert {drawn_arbiter(seed) for seed in range(200)} == set(ARBITERS)


@pytest.mark.parametrize("arbiter", ["hold", "hold-fence", "primary"])
def test_a_disk_that_was_lost_makes_no_second_voice(arbiter: str) -> None:
    """Each node's in turn, the link cut before or after: the other node still knows."""
    for seed in range(60):
        lost = Fault(2.0, "disk-lost", NODES[seed % 2], 0.05 * seed)
        cut = Fault(1.5 + 0.02 * seed, "cut", "pair", 2.0)
        outcome = live(replace(plan(seed, arbiter=arbiter), faults=(lost, cut), heal_at=6.0))
        assert outcome.violation is None, explained(outcome)


@pytest.mark.parametrize("name", USUAL)
def test_one_fault_alone_loses_nothing(name: str) -> None:
    """At many instants, to a pair that was protected: the VM never boots again."""
    kind = KINDS[name]
    for number in range(20):
        target = "pair" if kind.pair else NODES[number % 2]
        lasts = kind.lasts[0] + (kind.lasts[1] - kind.lasts[0]) * number / 20
        fault = Fault(3.0 + 0.0317 * number, name, target, lasts, kind.share[1])
        arbiter = tuple(ARBITERS)[number % len(ARBITERS)]
        settings = decided_by(arbiter, PROFILES[number % 4])
        planned = Plan(number, settings, (1.0, 1.0), (fault,), 3.7 + lasts, arbiter)
        outcome = live(planned)
        assert outcome.violation is None, explained(outcome)
        assert outcome.seen["boots"] <= (2 if name == "guest-shutdown" else 1), fault


def settled(seed: int) -> World:
    world = World(seed, PROFILES[0])
    assert world.whenever(world.judge.whole, 20)
    return world


def test_the_witness_alone_is_no_fault() -> None:
    world = settled(1)
    world.witness.stopped += 1
    generation, said = world.witness.record, world.judge.said
    world.run(world.now + 15)
    assert world.witness.record == generation
    assert world.judge.said > said + 13, "clients hear the VM all the time"


def test_endless_failovers() -> None:
    world = settled(2)
    for _ in range(25):
        primary = next(
            n for n in world.nodes.values() if n.daemon and n.daemon.phase is Phase.PROTECTED
        )
        assert primary.qemu is not None
        world.qemu_dies(primary.qemu, "it crashed")
        world.run(world.now + 0.1)
        assert world.whenever(world.judge.whole, world.now + 20)
        world.run(world.now + 0.5)
    assert world.judge.life == 1
    assert world.judge.failovers == 25
    assert world.witness.record is not None
    assert world.witness.record.generation == 26


def test_clocks_must_not_stand_still() -> None:
    """What the lease rests on: a host whose clock pauses with it may speak too late."""
    broken = live(plan(2195, ("clock-pause",)))
    assert broken.violation is not None
    assert broken.violation.name == "two-voices"


BUFFERS = Change("coloha.sim.world:World._see_switched", "if left_s > 0 or", "if True or")
"""The guard does not see whether the buffers are switched."""


def test_an_orphan_is_killed_before_it_speaks() -> None:
    """After 4000 s of guest time a filter-buffer empties itself: the guard must be quicker."""
    away = "2 daemon-crash alpha {} 0; {} heal"
    assert live(plan(0, text=away.format(4200, 4100))).violation is None
    look = Change("coloha.sim.world:World._look_after", "qemu is not None and", "False and")
    with turned_off(Switch("guard", "no guard", (look, BUFFERS), (), 0)):
        assert live(plan(0, text=away.format(4200, 3900))).violation is None
        broken = live(plan(0, text=away.format(4200, 4100))).violation
    assert broken is not None
    assert broken.name == "two-voices"


def test_one_that_decides_nothing_is_killed_before_it_speaks() -> None:
    """Its daemon lives, but hears neither the other node nor the witness, and runs no epochs."""
    alone = "; ".join(
        f"2 {fault} {{0}} 0" for fault in ("mute alpha", "mute beta", "witness-away alpha")
    )
    alone += "; {0} heal"
    outcome = live(plan(0, text=alone.format(4100)))
    assert outcome.violation is None, explained(outcome)
    with turned_off(Switch("guard", "it sees the daemon alone", (BUFFERS,), (), 0)):
        assert live(plan(0, text=alone.format(3900))).violation is None
        broken = live(plan(0, text=alone.format(4100))).violation
    assert broken is not None
    assert broken.name == "two-voices"


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = Counter(f.kind for seed in range(2000) for f in draw(random.Random(seed), USUAL, 3.0))
    assert set(drawn) == set(USUAL)


@pytest.mark.parametrize(("plans", "every"), [(one_fault, 10), (two_faults, 200)])
def test_faults_at_every_step(
    plans: Callable[[int], Iterator[Plan]], every: int, first_seed: int
) -> None:
    """A share of them; `coloha simulate --sweep` tries all."""
    tried = 0
    for planned in itertools.islice(plans(first_seed), first_seed % every, None, every):
        outcome = live(planned)
        assert outcome.violation is None, explained(outcome)
        tried += 1
    assert tried > 100


def test_a_fault_comes_right_before_its_step() -> None:
    """Up to there the history is the one without the fault."""
    *_, late = (planned for planned in one_fault(5) if planned.faults[0].kind == "qemu-crash")
    quiet = live(replace(late, faults=()), log=True).lines
    lines = live(late, log=True).lines
    place = next(k for k, line in enumerate(lines) if "FAULT" in line.text)
    assert place > 10
    assert lines[:place] == quiet[:place]
    assert lines[place].at == late.faults[0].at


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (
            2012651,  # alpha's QEMU dies; beta's daemon starts anew and cannot read the record
            "1.8742 witness-away beta 3.005 0; 1.8742 qemu-crash alpha 0 0; "
            "1.9383 daemon-crash beta 0.647 0; 4.04 heal",
        ),
        (
            1,  # beta's QEMU dies; alpha's daemon starts anew and cannot read the record
            "2 witness-away alpha 12 0; 2 daemon-crash alpha 0.05 0; "
            "2 qemu-crash beta 0 0; 15 heal",
        ),
    ],
)
def test_a_node_that_waits_is_not_hasty(seed: int, faults: str) -> None:
    """A daemon that cannot read the record lives, and so may its copy."""
    outcome = live(plan(seed, text=faults))
    assert outcome.violation is None, explained(outcome)
    assert outcome.seen["boots"] == 1


def test_a_copy_that_is_spoilt_while_it_is_promoted_does_not_speak() -> None:
    faults = "1.15 cut pair 0.087 0; 1.15 bad-load pair 0 0; 3.594 heal"
    outcome = live(plan(4077853, text=faults))
    assert outcome.violation is None, explained(outcome)
    assert outcome.seen["copy-bad"] == 1
