"""Silence, credit for our own stalls, and the lease: pure functions of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.core.detector import MAX_CREDIT, Detector, Pulse


def detector() -> Detector:
    return Detector(interval_s=0.1, misses=5, heard_at=10.0)


def test_silence_needs_every_miss() -> None:
    judge = detector()
    assert not judge.silent(10.49)
    assert judge.silent(10.51)
    judge.heard(10.4, pulse=1)
    assert not judge.silent(10.89)
    assert judge.silent(10.91)


def test_a_pulse_that_stands_still_is_no_life() -> None:
    judge = detector()
    judge.heard(10.1, pulse=1)
    for at in (10.2, 10.3, 10.4, 10.5, 10.59):
        judge.heard(at, pulse=1)
    assert judge.silent(10.61)
    judge.heard(10.7, pulse=2)
    assert not judge.silent(10.8)


def test_a_hold_puts_off_the_verdict_once() -> None:
    judge = detector()
    assert judge.hold(10.4, 3.0)
    assert not judge.hold(10.9, 3.0)
    assert not judge.silent(13.39)
    assert judge.silent(13.41)
    assert not judge.hold(13.5, 3.0)
    assert judge.silent(13.5)


def test_a_hold_ends_with_a_sign_of_life() -> None:
    judge = detector()
    judge.hold(10.4, 3.0)
    judge.heard(11.0, pulse=1)
    assert judge.silent(11.51)
    assert not judge.hold(11.51, 3.0)
    judge.heard(11.6, pulse=2)
    assert judge.hold(11.7, 0.1)
    assert not judge.silent(12.0)


def test_a_verdict_that_was_spoken_stands() -> None:
    judge = detector()
    assert not judge.hold(10.51, 3.0)
    assert judge.silent(10.51)


def test_no_hold_is_no_news() -> None:
    assert not detector().hold(10.4, 0.0)


@pytest.mark.parametrize(("stall", "patience"), [(0.06, 0.06), (0.3, 0.3), (0.5, 0.5), (9.0, 0.5)])
def test_a_stall_of_ours_is_given_back(stall: float, patience: float) -> None:
    judge = detector()
    now = 10.45 + stall
    judge.stalled(now, stall)
    assert judge.silent_at() == pytest.approx(max(10.5, now + patience))


def test_credit_is_bounded() -> None:
    """A node that is always late must notice a death all the same."""
    judge = detector()
    now = 10.0
    while not judge.silent(now):
        now += 0.2
        judge.stalled(now, 0.2)
        assert now < 20
    assert now <= 10.0 + 0.5 + 0.5 * MAX_CREDIT + 0.5
    judge.heard(now, pulse=1)
    judge.stalled(now + 1.0, 1.0)
    assert not judge.silent(now + 1.4)


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.booleans(), st.floats(0.0, 1.0)), max_size=60))
def test_never_silent_too_early(steps: list[tuple[float, bool, float]]) -> None:
    """Whatever happens: no verdict within a detection time of the last heartbeat."""
    judge, now, last, pulse = detector(), 10.0, 10.0, 0
    for wait, heard, stall in steps:
        now += wait
        judge.stalled(now, min(stall, wait))
        if judge.silent(now):
            assert now >= last + judge.detection_s - 1e-9
        if heard:
            pulse += 1
            judge.heard(now, pulse)
            last = now
        assert judge.heard_at <= now


def test_lease_runs_from_when_the_pulse_was_made() -> None:
    pulse = Pulse(interval_s=0.1, misses=5, number=100)
    assert pulse.lease_until() == float("-inf")
    pulse.step(10.0)
    pulse.step(10.01)
    pulse.step(10.1)
    assert pulse.number == 102
    pulse.echoed(101)
    assert pulse.lease_until() == pytest.approx(10.4)
    pulse.echoed(102)
    assert pulse.lease_until() == pytest.approx(10.5)
    pulse.echoed(101)
    pulse.echoed(77)
    assert pulse.lease_until() == pytest.approx(10.5)


def test_old_pulses_are_forgotten_not_guessed() -> None:
    pulse = Pulse(interval_s=0.1, misses=3, number=0)
    for step in range(100):
        pulse.step(10 + step * 0.1)
    pulse.echoed(1)
    assert pulse.lease_until() == float("-inf")


@given(
    delays=st.lists(st.floats(0.0, 0.4), min_size=1, max_size=40),
    losses=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_a_lease_ends_before_the_other_side_can_judge(
    delays: list[float], losses: list[bool]
) -> None:
    """The safety of the lease: while it runs, the other node's detector is not silent."""
    mine = Pulse(interval_s=0.1, misses=5, number=0)
    theirs = Detector(interval_s=0.1, misses=5, heard_at=0.0)
    now = 0.0
    for delay, lost in zip(delays, losses, strict=False):
        now += 0.1
        mine.step(now)
        if not lost:
            theirs.heard(now + delay, mine.number)
            mine.echoed(mine.number)
        now += delay
        assert theirs.silent_at() >= mine.lease_until()
