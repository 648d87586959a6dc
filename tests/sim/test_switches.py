"""Turn each rule off: the simulator must notice, within the seeds that docs/safety.md states."""

from pathlib import Path

import pytest

from coloha.sim.faults import USUAL
from coloha.sim.history import live, plan
from tests.sim.switches import SWITCHES, Switch, turned_off

SAFETY = Path(__file__).parents[2] / "docs" / "safety.md"


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: f"{switch.rule}: {switch.name}")
def test_a_rule_turned_off_is_noticed(switch: Switch) -> None:
    found = set()
    with turned_off(switch):
        for seed in range(switch.seeds):
            violation = live(plan(seed, switch.faults, arbiter=switch.arbiter)).violation
            if violation is not None:
                found.add(violation.name)
            if found & set(switch.found):
                return
    pytest.fail(f"not noticed in {switch.seeds} seeds; found {found or 'nothing'}")


def row(switch: Switch) -> str:
    faults = "all" if switch.faults == USUAL else ", ".join(switch.faults)
    if switch.arbiter != "witness":
        faults += f"; arbiter {switch.arbiter}"
    found = ", ".join(f"`{name}`" for name in switch.found)
    return f"| {switch.rule} | {switch.name} | {found} | {faults} | {switch.seeds} |"


def test_the_table_in_the_docs_is_this_one() -> None:
    text = SAFETY.read_text()
    table = text.partition("| rule | what is turned off ")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == [row(switch) for switch in SWITCHES]


def test_a_switch_leaves_no_trace() -> None:
    def outcome() -> str:
        return str(live(plan(3), log=True).lines)

    before = outcome()
    with turned_off(SWITCHES[1]):
        assert outcome() != before
    assert outcome() == before


def test_a_switch_that_misses_its_rule_fails() -> None:
    missing = Switch(
        "R0",
        "none",
        (SWITCHES[0].changes[0].__class__("coloha.core.primary:arm", "no such code", ""),),
        (),
        0,
    )
    with pytest.raises(AssertionError, match="follow it"), turned_off(missing):
        pass
