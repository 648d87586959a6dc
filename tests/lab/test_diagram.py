"""The phases in the documents are those of the table."""

import pytest

from coloha.core.phases import TRANSITIONS, Phase
from lab import diagram


def test_the_document_is_current() -> None:
    assert diagram.FILE.read_text() == diagram.render(), "run `make docs`"


def test_every_phase_is_explained() -> None:
    text = diagram.render()
    assert all(text.count(f"| **{phase}** |") == 1 for phase in Phase)


def test_a_move_that_changes_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = diagram.render()
    monkeypatch.setitem(TRANSITIONS, Phase.SOLO, TRANSITIONS[Phase.SOLO] | {Phase.FOLLOW})
    assert diagram.render() != before
