"""The simulator itself: repeatable, readable, and its shortest story is short."""

import json
from dataclasses import replace

import pytest

from coloha.cli.main import main
from coloha.sim import campaign
from coloha.sim.faults import PlanError, read, written
from coloha.sim.history import live, plan
from coloha.sim.shrink import shrink
from tests.sim.switches import SWITCHES, turned_off

Captured = pytest.CaptureFixture[str]
OPENS = next(switch for switch in SWITCHES if "opens its output" in switch.name)


def test_the_same_seed_is_the_same_history() -> None:
    for seed in range(20):
        first, second = live(plan(seed), log=True), live(plan(seed), log=True)
        assert first.lines == second.lines
        assert first.seen == second.seen


def test_watching_changes_nothing() -> None:
    for seed in range(20):
        assert live(plan(seed), log=True).seen == live(plan(seed)).seen


def test_faults_are_read_as_they_were_written() -> None:
    for seed in range(200):
        planned = plan(seed)
        text = written(planned.faults, planned.heal_at)
        assert read(text) == (planned.faults, planned.heal_at)
        assert plan(seed, text=text) == planned


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "ends with SECONDS heal"),
        ("1 cut pair 1 0", "ends with SECONDS heal"),
        ("soon heal", "no number of seconds"),
        ("1 cut pair; 2 heal", "expected"),
        ("1 cut alpha 1 0; 2 heal", "no such kind, node or moment"),
        ("1 flood pair 1 0; 2 heal", "no such kind, node or moment"),
        ("noon.1+1 cut pair 1 0; 2 heal", "no such kind, node or moment"),
    ],
)
def test_a_plan_that_cannot_be_read(text: str, complaint: str, capsys: Captured) -> None:
    with pytest.raises(PlanError, match=complaint):
        read(text)
    assert main(["simulate", "--seed", "1", "--plan", text]) == 2
    assert complaint in capsys.readouterr().err


def first_broken(size: int) -> int:
    """The first seed with so many faults that breaks a promise while the switch is off."""
    return next(
        seed
        for seed in range(500)
        if len(plan(seed).faults) >= size and live(plan(seed)).violation is not None
    )


def test_a_broken_history_shrinks() -> None:
    with turned_off(OPENS):
        broken = live(plan(first_broken(3)))
        short = shrink(broken)
        assert broken.violation is not None
        assert short.violation is not None
        assert short.violation.name == broken.violation.name
        assert len(short.plan.faults) < len(broken.plan.faults)
        for place in range(len(short.plan.faults)):
            rest = short.plan.faults[:place] + short.plan.faults[place + 1 :]
            again = live(replace(short.plan, faults=rest))
            assert again.violation is None or again.violation.name != short.violation.name


def test_the_verb_tells_a_broken_history(capsys: Captured) -> None:
    with turned_off(OPENS):
        seed = first_broken(2)
        assert main(["simulate", "--seed", str(seed), "--histories", "1"]) == 1
        told = capsys.readouterr().out
        assert f"seed {seed}: " in told
        assert "FAULT" in told
        assert "BROKEN" in told
        again = told.splitlines()[-1].partition("--plan ")[2].strip("'")
        assert main(["simulate", "--seed", str(seed), "--plan", again, "--json"]) == 1
        retold = json.loads(capsys.readouterr().out)
        assert retold["violation"] in told
        assert retold["plan"] == again


def test_the_verb_when_all_is_well(capsys: Captured) -> None:
    assert main(["simulate", "--seed", "0", "--histories", "60", "--fault", "cut"]) == 0
    assert "no promise was broken" in capsys.readouterr().out
    assert main(["simulate", "--seed", "0", "--histories", "60", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["histories"] == 60
    assert main(["simulate", "--seed", "0", "--plan", "2 heal"]) == 0


def test_several_processes_find_the_same() -> None:
    one, two = campaign.run(0, 120), campaign.run(0, 120, jobs=2)
    assert (one.histories, one.seen) == (two.histories, two.seen) == (120, one.seen)
