"""The codec: whatever the core says and is, and nothing that is not what a hint says."""

import dataclasses
import json
import math
from collections import deque
from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.core.actions import Action
from coloha.core.events import Event, QemuExited, Role, Run, ScriptDone
from coloha.flight.codec import FormError, codec
from tests.flight.recording import Twins
from tests.flight.scenes import live


class Colour(StrEnum):
    RED = "red"


class Number(Enum):
    ONE = 1


@dataclasses.dataclass(frozen=True)
class One:
    value: int


@dataclasses.dataclass(frozen=True)
class Two:
    value: int


@dataclasses.dataclass(slots=True)
class Everything:
    """One field of each kind that a machine's state may come to hold."""

    flag: bool
    count: int
    share: float
    word: str
    colour: Colour
    one: One | None
    either: One | Two | None
    word_or_flag: bool | str | None
    pair: tuple[Colour, One | Two]
    many: tuple[float, ...]
    listed: list[One]
    recent: deque[tuple[int, float]]
    names: set[str]
    frozen: frozenset[int]
    by_name: dict[str, list[float]]
    anything: object
    _hidden: float
    late: float = dataclasses.field(init=False)


FLOATS = st.floats(allow_nan=False)
ONES = st.builds(One, st.integers())
EITHER = st.one_of(ONES, st.builds(Two, st.integers()))


@st.composite
def everything(draw: st.DrawFn) -> Everything:
    made = Everything(
        flag=draw(st.booleans()),
        count=draw(st.integers()),
        share=draw(FLOATS),
        word=draw(st.text()),
        colour=Colour.RED,
        one=draw(st.none() | ONES),
        either=draw(st.none() | EITHER),
        word_or_flag=draw(st.none() | st.booleans() | st.text()),
        pair=(Colour.RED, draw(EITHER)),
        many=tuple(draw(st.lists(FLOATS, max_size=3))),
        listed=draw(st.lists(ONES, max_size=3)),
        recent=deque(
            draw(st.lists(st.tuples(st.integers(), FLOATS), max_size=3)),
            draw(st.none() | st.integers(3, 9)),
        ),
        names=draw(st.sets(st.text(), max_size=3)),
        frozen=draw(st.frozensets(st.integers(), max_size=3)),
        by_name=draw(st.dictionaries(st.text(), st.lists(FLOATS, max_size=2), max_size=3)),
        anything=draw(st.none() | EITHER),
        _hidden=draw(FLOATS),
    )
    made.late = draw(FLOATS)
    return made


def through_json(plain: Any) -> Any:
    return json.loads(json.dumps(plain, allow_nan=False))


@given(everything())
def test_every_kind_of_field_comes_back(value: Everything) -> None:
    way = codec(Everything)
    found = way.decode(through_json(way.encode(value)))
    assert found == value
    assert found.recent.maxlen == value.recent.maxlen
    assert list(found.by_name) == list(value.by_name)  # the order of a dict decides, too
    assert math.copysign(1, found.share) == math.copysign(1, value.share)


KINDS: list[type] = [*get_args(Event), *get_args(Action)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_whole_language_of_the_core_is_known(kind: type) -> None:
    codec(kind)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_a_machine_made_from_its_json_goes_on_as_if_nothing_had_been(first: int) -> None:
    compared = 0
    for seed in range(first, first + 50):
        twins = Twins(seed)
        with twins.watching():
            live(seed)
        compared += twins.compared
    assert compared > 500


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True),
        (int, 1.0),
        (bool, 1),
        (str, None),
        (float, "1.0"),
        (float, math.nan),
        (float, True),
        (One, Two(1)),
        (One, One("1")),  # type: ignore[arg-type]
        (One | Two, Everything),
        (int | None, "1"),
        (list[int], (1,)),
        (list[int], [1, None]),
        (tuple[int, int], (1,)),
        (tuple[int, ...], [1]),
        (Colour, "red"),
        (Event, Run("x", Role.PRIMARY)),
        (Event, ScriptDone(1, 5)),
        (Event, QemuExited(None)),  # type: ignore[arg-type]
        (Event, None),
    ],
    ids=range(20),
)
def test_a_value_that_its_hint_denies_is_not_written(hint: Any, value: Any) -> None:
    with pytest.raises(FormError):
        codec(hint).encode(value)


@pytest.mark.parametrize(
    ("hint", "plain", "words"),
    [
        (int, True, "is not a whole number"),
        (int, 1.0, "is not a whole number"),
        (float, 1, "with a fraction"),
        (float, "nan", "with a fraction"),
        (float, "Infinity", "with a fraction"),
        (float, math.inf, "with a fraction"),
        (One, {}, "One: missing: value"),
        (One, {"value": 1, "extra": 2}, "One: no such field: extra"),
        (One, {"value": "1"}, "value: '1' is not a whole number"),
        (One, [1], "an object of One"),
        (One | Two, {"Three": {}}, "'Three' is not one of One, Two"),
        (One | Two, {"One": {"value": 1}, "Two": {"value": 1}}, "with the name of"),
        (One | Two, {"Two": {"value": None}}, "Two.value: None is not"),
        (Colour, "blue", "is not a Colour"),
        (list[One], [{"value": 1}, {"value": True}], "1.value: True is not"),
        (deque[int], [], "begins with the greatest length"),
        (deque[int], ["x"], "begins with the greatest length"),
        (tuple[int, str], [1], "a list of 2"),
        (dict[str, int], [["a", 1, 2]], "a list of 2"),
        (Event, {"ScriptDone": {"number": 1, "result": {"Path": {}}}}, "'Path' is not"),
        (Event, "Timer", "'Timer' is not of Started | Timer"),
    ],
    ids=range(21),
)
def test_json_that_a_hint_denies_is_refused(hint: Any, plain: Any, words: str) -> None:
    with pytest.raises(FormError) as caught:
        codec(hint).decode(plain)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "hint", [str | float, Colour | str, list[int] | tuple[int, ...], Number, complex, Sequence[int]]
)
def test_a_hint_whose_values_cannot_be_told_apart_is_refused_at_once(hint: Any) -> None:
    with pytest.raises(TypeError):
        codec(hint)
