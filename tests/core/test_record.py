"""Who may write what into the record: the rules R1, R2 and R4, case by case and all together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.core.record import OPERATOR, Record, first_record, swap_problem

SOLO = Record("x", 4, "alpha")
GUARDED = SOLO.protect("beta", 7)


@pytest.mark.parametrize(
    ("current", "new", "by"),
    [
        (None, first_record("x", "alpha"), "alpha"),
        (SOLO, GUARDED, "alpha"),
        (SOLO, SOLO.take_over("alpha"), "alpha"),
        (GUARDED, GUARDED.take_over("alpha"), "alpha"),
        (GUARDED, GUARDED.take_over("beta"), "beta"),
        (SOLO, SOLO.take_over("beta"), OPERATOR),
        (GUARDED, GUARDED.take_over("beta"), OPERATOR),
    ],
)
def test_allowed(current: Record | None, new: Record, by: str) -> None:
    assert swap_problem(current, new, by) is None


@pytest.mark.parametrize(
    ("current", "new", "by", "rule"),
    [
        (None, Record("x", 2, "alpha"), "alpha", "first"),
        (None, first_record("x", "beta"), "alpha", "first"),
        (None, first_record("x", "alpha").protect("beta", 1), "alpha", "first"),
        (SOLO, GUARDED, "beta", "R4"),
        (SOLO, SOLO.take_over("beta"), "beta", "R4"),
        (SOLO, SOLO.protect("alpha", 7), "alpha", "R1"),
        (SOLO, Record("x", 5, "alpha", "beta", 7), "alpha", "R1"),
        (SOLO, Record("x", 4, "beta", "alpha", 7), "alpha", "R1"),
        (SOLO, Record("x", 4, "alpha", "beta", None), "alpha", "R1"),
        (SOLO, SOLO, "alpha", "R2"),
        (SOLO, Record("x", 6, "alpha"), "alpha", "R2"),
        (SOLO, SOLO.take_over("beta"), "alpha", "R2"),
        (GUARDED, SOLO, "alpha", "R2"),
        (GUARDED, Record("x", 4, "beta"), "beta", "R2"),
        (GUARDED, GUARDED.take_over("beta"), "alpha", "R2"),
        (GUARDED, SOLO.protect("beta", 8), "alpha", "R1"),
        (GUARDED, GUARDED.take_over("gamma"), "gamma", "no part"),
        (SOLO, Record("y", 5, "alpha"), "alpha", "lineage"),
        (SOLO, Record("y", 5, "beta"), OPERATOR, "lineage"),
        (SOLO, Record("x", 4, "beta"), OPERATOR, "R4"),
        (SOLO, Record("x", 6, "beta"), OPERATOR, "R4"),
        (SOLO, GUARDED, OPERATOR, "R4"),
        (None, first_record("x", "alpha"), OPERATOR, "first"),
    ],
)
def test_forbidden(current: Record | None, new: Record, by: str, rule: str) -> None:
    problem = swap_problem(current, new, by)
    assert problem is not None
    assert rule in problem


NODES = st.sampled_from(["alpha", "beta"])
RECORDS = st.builds(
    Record,
    lineage=st.just("x"),
    generation=st.integers(1, 4),
    primary=NODES,
    secondary=st.none() | NODES,
    session=st.none() | st.integers(1, 2),
)


@given(current=st.none() | RECORDS, new=RECORDS, by=NODES)
def test_what_every_allowed_swap_has_in_common(
    current: Record | None, new: Record, by: str
) -> None:
    if swap_problem(current, new, by) is not None:
        return
    if current is None:
        assert (new.generation, new.primary, new.protected) == (1, by, False)
        return
    assert by == new.primary
    if new.primary != current.primary:
        assert current.secondary == new.primary
    assert new.generation == current.generation + (not new.protected)
    assert new != current


@given(current=RECORDS, new=RECORDS, by=NODES)
def test_a_generation_is_protected_at_most_once(current: Record, new: Record, by: str) -> None:
    """Every swap goes up this order, so what a late one expects is gone for good."""
    if swap_problem(current, new, by) is None:
        assert (new.generation, new.protected) > (current.generation, current.protected)


def test_words() -> None:
    assert str(SOLO) == "solo(4, alpha)"
    assert str(GUARDED) == "protected(4, alpha, beta)"
