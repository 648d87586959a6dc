"""The plan of chaos: the same for the same seed, of what was asked for, and survivable."""

import pytest

from lab.faults import (
    DEFAULT,
    SINGLE,
    Blow,
    Fault,
    Kind,
    Target,
    plan,
    separate,
    survivable,
)

P, S = Target.PRIMARY, Target.SECONDARY
MANY = [blow for seed in range(50) for blow in plan(seed, 40)]


def fault(kind: Kind, target: Target) -> Fault:
    return Fault(kind, target, 0.0, 1.0)


def test_a_seed_repeats_its_plan() -> None:
    assert plan(7, 30) == plan(7, 30)
    assert plan(7, 30) != plan(8, 30)
    assert plan(7, 10) == plan(7, 30)[:10]


def test_every_kind_comes_soon() -> None:
    deck = len(DEFAULT) + 2  # there are three of `two` in it
    assert {blow.kind for blow in plan(0, deck)} == set(DEFAULT)


@pytest.mark.parametrize("kind", Kind)
def test_only_what_was_asked_for_is_drawn(kind: Kind) -> None:
    blows = plan(1, 20, [kind])
    assert {blow.kind for blow in blows} == {kind}
    assert len(blows) == 20
    members = {each.kind for blow in blows for each in blow.faults}
    assert members == {kind} if kind is not Kind.TWO else members <= set(SINGLE)


def test_pairs_are_of_what_was_asked_for() -> None:
    blows = plan(1, 30, [Kind.TWO, Kind.QEMU_KILL, Kind.WITNESS_GONE])
    members = {each.kind for blow in blows for each in blow.faults}
    assert members == {Kind.QEMU_KILL, Kind.WITNESS_GONE}


def test_kinds_of_which_no_two_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="together: link"):
        plan(1, 1, [Kind.TWO, Kind.LINK])


def test_cold_boots_are_never_drawn_unasked() -> None:
    assert not any(blow.cold_boot for blow in MANY)
    assert plan(1, 1, [Kind.BOTH_COPIES])[0].cold_boot


def test_pairs_hit_at_once_and_later_either_side() -> None:
    seconds = [blow.second for blow in MANY if blow.second is not None]
    assert {each.kind for each in seconds} == set(SINGLE)
    assert {each.target for each in seconds} == set(Target)
    assert any(each.delay_s == 0 for each in seconds)
    assert any(each.delay_s > 2 for each in seconds)


def killed(blow: Blow) -> set[Target]:
    return {each.target for each in blow.faults if each.kind in (Kind.QEMU_KILL, Kind.HOST_KILL)}


def test_no_plan_kills_both_copies() -> None:
    assert all(len(killed(blow)) < 2 for blow in MANY)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (fault(Kind.QEMU_KILL, P), fault(Kind.QEMU_KILL, S), False),
        (fault(Kind.QEMU_KILL, P), fault(Kind.HOST_KILL, P), True),
        # The witness may let the one win that is killed then, and the other has no copy any more.
        (fault(Kind.LINK, Target.BOTH), fault(Kind.QEMU_KILL, P), False),
        (fault(Kind.LINK_ONE_WAY, P), fault(Kind.HOST_KILL, S), False),
        (fault(Kind.QEMU_KILL, P), fault(Kind.LINK, Target.BOTH), True),
        # The other one takes over meanwhile, and is killed then.
        (fault(Kind.DAEMON_KILL, P), fault(Kind.QEMU_KILL, S), False),
        (fault(Kind.DAEMON_KILL, P), fault(Kind.QEMU_KILL, P), True),
        (fault(Kind.HOST_FREEZE, S), fault(Kind.QEMU_KILL, P), False),
        # Its copy is the only one, and nothing kills it.
        (fault(Kind.QEMU_KILL, P), fault(Kind.HOST_FREEZE, S), True),
        (fault(Kind.WITNESS_GONE, Target.BOTH), fault(Kind.HOST_KILL, P), True),
        (fault(Kind.LINK, Target.BOTH), fault(Kind.QEMU_STOP, P), True),
    ],
)
def test_what_leaves_one_copy(first: Fault, second: Fault, expected: bool) -> None:
    assert survivable(first, second) is expected


def test_what_the_end_of_one_would_end() -> None:
    assert not separate(fault(Kind.LINK, Target.BOTH), fault(Kind.LINK_ONE_WAY, P))
    assert not separate(fault(Kind.WITNESS_HANGS, P), fault(Kind.HOST_CUT, P))
    assert not separate(fault(Kind.QEMU_STOP, P), fault(Kind.QEMU_STOP, P))
    assert separate(fault(Kind.QEMU_STOP, P), fault(Kind.QEMU_STOP, S))
    assert separate(fault(Kind.WITNESS_HANGS, P), fault(Kind.QEMU_KILL, P))


def test_a_blow_says_what_it_is() -> None:
    blow = Blow(Fault(Kind.LINK, Target.BOTH, 0.5, 2.0), Fault(Kind.DAEMON_KILL, P, 0.0, 1.0))
    assert str(blow) == (
        "link of both after 0.50 s for 2.00 s, then daemon-kill of primary after 0.00 s for 1.00 s"
    )
