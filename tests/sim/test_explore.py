"""Every interleaving within bounds: nothing in the true core, and something with a rule off."""

import json

import pytest

from coloha.cli.main import main
from coloha.core.actions import Persist
from coloha.core.events import Durable
from coloha.sim.abstract import World
from coloha.sim.explore import Root, after, everywhere, explore, roots
from coloha.sim.moves import Model, Move
from tests.sim.switches import SWITCHES, turned_off

Captured = pytest.CaptureFixture[str]

CUT = ("cut", (True, True))


class Quitting(Model):
    """A QEMU is ended with quit, which lets go what is held."""

    def end(self, w: World, node: int) -> None:
        self.fill(w, node)
        self.let_go(w, node)
        self.die(w, node)


class Hasty(Model):
    """Actions do not wait for the disk."""

    late_disk = True

    def persist(self, w: World, node: int, before: Durable, action: Persist) -> Durable:
        super().persist(w, node, before, action)
        return before


def followed_by(model: Model, fault: Move, phases: str = "") -> list[Root]:
    """Return what comes right after a fault, at rest or where these phases were entered."""
    every = roots(model)
    root = next(each for each in every if each.name == phases) if phases else every[-1]
    return after(model, root, fault)[:1]


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


@pytest.mark.parametrize("arbiter", ["witness", "hold", "hold-fence", "primary"])
def test_a_silence_and_the_failover_after_it(arbiter: str) -> None:
    """A silence lasts 6 instants; what was cut may be mended at the end of any."""
    model = Model(arbiter)
    report = explore(model, followed_by(model, CUT), instants=6, faults=0)
    assert report.violation is None, report.lines
    assert report.complete
    assert report.states > 1000


def test_clients_hear_a_pair_at_rest() -> None:
    model = Model()
    world = roots(model)[-1].world
    model.log = []
    passed = 0
    while passed < 6:
        move = next(model.moves(world, 0))
        passed += move[0] == "tick"
        world = model.make(world, move)
    assert ("alpha", "QEMU executes release") in model.log


@pytest.mark.parametrize(
    ("rule", "part", "name", "phases", "fault", "arbiter"),
    [
        ("R1", "without a commit", "forgotten", "sync/follow", None, "witness"),
        ("R2", "the secondary promotes", "no-right", "", CUT, "witness"),
        ("R2", "the primary opens", "no-right", "", CUT, "witness"),
        ("R3", "is not killed", "record", "", CUT, "witness"),
        ("R4", "a starting node", "two-voices", "", ("crash", 0), "witness"),
        ("R4", "a secondary claims", "record", "sync/follow", CUT, "witness"),
        ("R7", "the secondary takes over", "not-dead", "", CUT, "hold"),
        ("R7", "a primary that is to hold", "not-dead", "", CUT, "hold-fence"),
    ],
)
def test_a_rule_turned_off_is_noticed(
    rule: str, part: str, name: str, phases: str, fault: Move | None, arbiter: str
) -> None:
    switch = next(each for each in SWITCHES if each.rule == rule and part in each.name)
    with turned_off(switch):
        model = Model(arbiter)
        if fault is not None:
            begin = followed_by(model, fault, phases)
        else:
            begin = [root for root in roots(model) if root.name == phases]
        report = explore(model, begin, instants=6, faults=0, most=5000)
    assert report.violation is not None
    assert report.violation.name == name
    assert "BROKEN" in report.lines[-1].text


def test_a_commit_predicate_that_believes_everything_is_noticed() -> None:
    with turned_off(next(each for each in SWITCHES if each.rule == "commit predicate")):
        model = Model()
        report = explore(model, [roots(model)[-1]], instants=2, faults=1, most=5000)
    assert report.violation is not None
    assert report.violation.name == "forgotten"


def test_a_loser_that_quits_is_noticed() -> None:
    model = Quitting()
    report = explore(model, followed_by(model, CUT), instants=6, faults=0, most=5000)
    assert report.violation is not None
    assert report.violation.name == "two-voices"


def test_a_disk_that_is_written_late_is_noticed() -> None:
    model = Hasty()
    begin = [root for root in roots(model) if root.name == "arm/follow"]
    report = explore(model, begin, instants=4, faults=1, most=10_000)
    assert report.violation is not None
    assert report.violation.name == "no-right"


def test_faults_of_one_kind_only() -> None:
    model = Model()
    begin = [roots(model)[-1]]
    cuts = explore(model, begin, instants=0, faults=1, kinds=frozenset({"cut"}))
    none = explore(model, begin, instants=0, faults=0)
    every = explore(model, begin, instants=0, faults=1)
    assert cuts.complete
    assert none.states < cuts.states < every.states


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
