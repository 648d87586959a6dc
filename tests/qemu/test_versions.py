"""The version table: each boundary from both sides, and what `query-version` may say."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.qemu.versions import (
    RULES,
    Traits,
    Version,
    misfit,
    needs_return_path,
    parse,
    problems,
)
from tests.qemu.relaxed import relaxed

KVM = Traits("pc", "kvm")
TCG = Traits("pc", "tcg")
Q35 = Traits("q35", "kvm")
QTEST = Traits("pc-i440fx-11.0", "qtest")

ALL = (KVM, TCG, Q35, Traits("pc-q35-9.0", "tcg"), QTEST)

GOOD = {
    KVM: ["7.2.0", "7.2.22", "8.1.99", "9.1.0", "9.2.4", "10.0.7", "10.0.13", "10.1.3", "10.2.2"],
    QTEST: ["7.2.0", "11.0.0", "11.1.3"],
    TCG: ["11.0.0", "11.1.3", "99.0.0"],
    Q35: ["11.0.0", "11.1.3"],
    Traits("pc-q35-9.0", "tcg"): ["11.0.0"],
    Traits("q35,usb=off", "kvm"): ["11.0.0"],
}

BAD = {
    KVM: [
        *("0.0.0", "2.8.0", "6.2.0", "7.1.99"),
        *("8.2.0", "8.2.10", "9.0.0", "9.0.99"),
        *("10.0.0", "10.0.6", "10.1.0", "10.1.2"),
    ],
    TCG: ["7.2.0", "7.2.22", "9.1.0", "10.0.13", "10.2.99"],
    Q35: ["7.2.22", "10.2.2"],
    Traits("pc-q35-7.2", "kvm"): ["7.2.22"],
    Traits("q35,usb=off", "kvm"): ["10.2.2"],
    QTEST: ["7.1.0", "8.2.0", "10.1.2"],
}


def version(text: str) -> Version:
    major, minor, micro = map(int, text.split("."))
    return major, minor, micro


def listed(table: dict[Traits, list[str]]) -> list[Any]:
    pairs = [(traits, text) for traits, texts in table.items() for text in texts]
    return [
        pytest.param(*pair, id=f"{pair[0].machine}-{pair[0].accelerator}-{pair[1]}")
        for pair in pairs
    ]


@pytest.mark.parametrize(("traits", "text"), listed(GOOD))
def test_versions_that_are_taken(traits: Traits, text: str) -> None:
    assert problems(version(text), traits) == []


@pytest.mark.parametrize(("traits", "text"), listed(BAD))
def test_versions_that_are_refused(traits: Traits, text: str) -> None:
    found = problems(version(text), traits)
    assert found
    for problem in found:
        said, _, advice = problem.partition(": ")
        assert said.startswith(f"QEMU {text} ")
        assert advice.startswith(("install ", "set "))


def test_every_problem_is_told() -> None:
    found = problems((7, 1, 0), Traits("q35", "tcg"))
    assert len(found) == 3
    assert "too old" in found[0]


def test_the_tables_above_know_every_rule() -> None:
    """Each rule is met by a version in its range, which it alone may forbid."""
    met = [
        rule
        for rule in RULES
        for traits, texts in BAD.items()
        for text in texts
        if rule.first <= version(text) < rule.below and rule.applies(traits)
    ]
    assert all(rule in met for rule in RULES)


@pytest.mark.parametrize(
    ("text", "needed"),
    [("7.2.22", False), ("10.2.2", False), ("10.99.99", False), ("11.0.0", True), ("11.1.3", True)],
)
def test_return_path(text: str, needed: bool) -> None:
    assert needs_return_path(version(text)) is needed


@pytest.mark.parametrize(
    ("primary", "secondary", "fits"),
    [
        ("11.1.3", "11.1.3", True),
        ("11.0.0", "11.1.3", True),
        ("7.2.22", "10.0.7", True),
        ("10.2.2", "11.0.0", False),
        ("11.0.0", "10.2.2", False),
    ],
)
def test_who_can_follow_whom(primary: str, secondary: str, fits: bool) -> None:
    problem = misfit(version(primary), version(secondary))
    assert (problem is None) is fits
    if problem is not None:
        assert f"the primary runs QEMU {primary}, the secondary {secondary}" in problem


def test_from_return_path_on_all_is_taken() -> None:
    """There is no version that needs the return path and does COLO badly, that we know of."""
    for traits, minor in itertools.product(ALL, range(5)):
        assert problems((11, minor, 0), traits) == []


# What QEMU says


def test_the_reply_of_a_real_qemu() -> None:
    reply = {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7"}
    assert parse(reply) == (7, 2, 22)


GARBAGE: list[object] = [
    *(None, "11.1.3", 11, [], [1, 2, 3], {}, {"qemu": None}, {"qemu": "11.1.3"}),
    *({"qemu": []}, {"qemu": {"major": 11, "minor": 1}}, {"major": 11, "minor": 1, "micro": 3}),
    {"qemu": {"major": "eleven", "minor": 1, "micro": 3}},
    {"qemu": {"major": None, "minor": 1, "micro": 3}},
    {"qemu": {"major": float("inf"), "minor": 1, "micro": 3}},
    {"qemu": {"major": float("nan"), "minor": 1, "micro": 3}},
]


@pytest.mark.parametrize("reply", GARBAGE, ids=repr)
def test_garbage_is_no_version(reply: object) -> None:
    with pytest.raises(ValueError, match="not a QEMU version"):
        parse(reply)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["qemu", "major", "minor", "micro", "package"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@relaxed(300)
@given(JSON)
def test_any_reply_is_a_version_or_a_value_error(reply: object) -> None:
    try:
        triple = parse(reply)
    except ValueError:
        return
    assert all(isinstance(number, int) for number in triple)
