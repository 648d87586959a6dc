"""Every kind of event that is told is known by its name."""

import pytest

from coloha.core.actions import Severity
from coloha.core.kinds import KINDS, OF_HOOKS, TRIGGERS, EventClass, triggers
from tests.docs import messages


def test_every_kind_that_is_told_is_known_and_no_other() -> None:
    assert KINDS.keys() == messages.kinds().keys()


def test_no_word_means_two_things() -> None:
    assert len(set(TRIGGERS)) == len(TRIGGERS)
    assert set(OF_HOOKS) <= set(KINDS)


@pytest.mark.parametrize(
    ("trigger", "chosen"),
    [
        ("any", "promoted reloaded halted unknown"),
        ("failover", "promoted"),
        ("service", "halted"),
        ("daemon", "reloaded"),
        ("guest", ""),
        ("halted", "halted"),
        ("warning", "promoted halted"),
        ("error", "halted"),
        ("unknown", "unknown"),
    ],
)
def test_what_a_trigger_stands_for(trigger: str, chosen: str) -> None:
    events = {
        "promoted": Severity.WARNING,
        "reloaded": Severity.INFO,
        "halted": Severity.ERROR,
        "unknown": Severity.INFO,
    }
    found = {kind for kind, severity in events.items() if triggers(trigger, kind, severity)}
    assert found == set(chosen.split())


def test_every_class_has_kinds() -> None:
    assert set(KINDS.values()) == set(EventClass)
