"""Every interleaving within bounds: nothing in the true core, and something with a rule off."""

import json

import pytest

from coloha.cli.main import main
from coloha.core.events import Committed
from coloha.sim.explore import everywhere, explore, roots
from coloha.sim.moves import Model
from tests.sim.switches import SWITCHES, turned_off

Captured = pytest.CaptureFixture[str]


class Believing(Model):
    """Any RESUME is a commit."""

    def resumed(self) -> object:
        return Committed(0.0)


def test_all_that_follows_from_a_fault() -> None:
    model = Model()
    report = explore(model, everywhere(model), instants=2, faults=0)
    assert report.violation is None, report.lines
    assert report.complete
    assert report.states > 7000
    assert report.moves > 15_000
    assert report.deepest > 30


def test_a_fault_at_every_step_of_an_epoch() -> None:
    model = Model()
    report = explore(model, [roots(model)[-1]], instants=0, faults=1)
    assert report.violation is None, report.lines
    assert report.complete
    assert report.states > 1500


@pytest.mark.parametrize(
    ("rule", "part", "name"),
    [
        ("R1", "without a commit", "forgotten"),
        ("R2", "the secondary promotes", "no-right"),
        ("R2", "the primary opens", "no-right"),
    ],
)
def test_a_rule_turned_off_is_noticed(rule: str, part: str, name: str) -> None:
    switch = next(each for each in SWITCHES if each.rule == rule and part in each.name)
    with turned_off(switch):
        model = Model()
        report = explore(model, everywhere(model), instants=2, faults=0, most=20_000)
    assert report.violation is not None
    assert report.violation.name == name
    assert "BROKEN" in report.lines[-1].text


def test_a_commit_predicate_that_believes_everything_is_noticed() -> None:
    model = Believing()
    report = explore(model, [roots(model)[-1]], instants=2, faults=1, most=20_000)
    assert report.violation is not None
    assert report.violation.name == "forgotten"


def test_too_many_states_are_not_taken_for_all() -> None:
    model = Model()
    report = explore(model, roots(model), instants=2, faults=0, most=100)
    assert not report.complete
    assert report.states == 100


def test_it_is_repeatable() -> None:
    def counts() -> tuple[int, int, int]:
        model = Model()
        report = explore(model, roots(model), instants=1, faults=0)
        return report.states, report.moves, report.deepest

    assert counts() == counts()


def test_the_verb(capsys: Captured) -> None:
    assert main(["simulate", "--explore", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"] > 100
    with turned_off(SWITCHES[1]):
        assert main(["simulate", "--explore", "1"]) == 1
    assert "BROKEN no-right" in capsys.readouterr().out
