"""A record of any history replays as it was decided, and any change of a decision is noticed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from coloha.core.events import Timer
from coloha.core.machine import PairMachine
from coloha.core.phases import Phase
from coloha.errors import FlightError
from coloha.flight.record import Begins, Raised, read, step_line
from coloha.flight.replay import Began, DivergenceError, Replay, Step
from tests.flight.recording import RecordedWorld, live, replayed


@pytest.fixture(scope="module")
def world() -> RecordedWorld:
    """Two failovers and a restart."""
    made = RecordedWorld(5)
    for _ in range(2):
        made.run_until(made.protected, 20)
        made.run(0.3)
        made.kill_qemu(made.in_phase(Phase.PROTECTED).name)
        made.run(0.1)
    made.run_until(made.protected, 20)
    made.kill_daemon("beta")
    made.run(0.1)
    made.start_daemon("beta")
    made.run_until(made.protected, 20)
    return made


@pytest.mark.parametrize("first", range(1000, 1100, 25))
def test_any_history_replays_identically(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 25):
        world = live(RecordedWorld, seed)
        for name, node in world.nodes.items():
            assert node.machine is not None
            items = replayed(world.save(name, tmp_path / name))
            assert len(items) == len(world.lines[name])
            assert items[-1].after == node.machine.snapshot(), f"seed {seed}"


def test_every_changed_action_is_noticed(world: RecordedWorld, tmp_path: Path) -> None:
    """Each action of a record, changed in one field, left out, or said twice."""
    lines = world.lines["alpha"]
    noticed = 0
    places = [place for place, line in enumerate(lines) if line.startswith(b"[")]
    choose = random.Random(1)
    for place in choose.sample(places, 60):
        step = json.loads(lines[place])
        for altered in alterations(step[3], choose):
            step[3] = altered
            changed = [*lines[:place], json.dumps(step).encode() + b"\n", *lines[place + 1 :]]
            path = tmp_path / "record"
            path.write_bytes(b"".join(changed))
            with pytest.raises(DivergenceError) as caught:
                replayed(path)
            assert caught.value.line == place + 1
            noticed += 1
    assert noticed > 100


def alterations(actions: list[Any], choose: random.Random) -> list[list[Any]]:
    beat: dict[str, Any] = {"Beat": {}}
    made = [[*actions, beat], {"raised": "InvariantError: x"}]
    if actions:
        made.append(actions[1:])
    for action in actions:
        ((name, fields),) = action.items()
        for field, value in fields.items():
            if type(value) in (int, float):
                changed = {name: {**fields, field: value + 1}}
                made.append([changed if other is action else other for other in actions])
    return choose.sample(made, min(3, len(made)))  # type: ignore[arg-type]


def test_a_changed_event_is_noticed(world: RecordedWorld, tmp_path: Path) -> None:
    """What the machine was told decides what it does: here, that a checkpoint never ended."""
    lines = [*world.lines["alpha"]]
    place = next(place for place, line in enumerate(lines) if b'{"Committed"' in line)
    step = json.loads(lines[place])
    step[2]["ScriptDone"]["number"] += 1000
    lines[place] = json.dumps(step).encode() + b"\n"
    path = tmp_path / "record"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DivergenceError):
        replayed(path)


def test_a_dropped_event_is_noticed(world: RecordedWorld, tmp_path: Path) -> None:
    path = tmp_path / "record"
    lines = world.lines["alpha"]
    for place in random.Random(2).sample(range(1, len(lines) - 1), 40):
        path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
        with pytest.raises(FlightError, match=f":{place + 1}: "):
            replayed(path)


def test_a_changed_state_is_noticed(world: RecordedWorld, tmp_path: Path) -> None:
    lines = [*world.lines["alpha"]]
    head = json.loads(lines[0])
    head["state"]["context"]["s"]["incarnation"] += 1
    path = tmp_path / "record"
    path.write_bytes(b"".join([json.dumps(head).encode() + b"\n", *lines[1:]]))
    with pytest.raises(DivergenceError):
        replayed(path)


def test_a_divergence_says_where_and_what(world: RecordedWorld, tmp_path: Path) -> None:
    lines = [*world.lines["alpha"]]
    place = next(place for place, line in enumerate(lines) if b'"RunScript"' in line)
    step = json.loads(lines[place])
    step[3] = []
    lines[place] = json.dumps(step).encode() + b"\n"
    path = tmp_path / "record"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DivergenceError) as caught:
        replayed(path)
    said = str(caught.value)
    assert said.startswith(f"step {step[0]}, ")
    assert "recorded: nothing\ndecided:  " in said
    assert "RunScript(" in said
    assert "the record was altered, or this is a bug" in said


def test_a_divergence_from_another_version_says_so(world: RecordedWorld, tmp_path: Path) -> None:
    lines = [line.replace(b'"coloha":"', b'"coloha":"99.', 1) for line in world.lines["alpha"]]
    lines = [line.replace(b'"core":"', b'"core":"x', 1) for line in lines]
    place = next(place for place, line in enumerate(lines) if b'"RunScript"' in line)
    step = json.loads(lines[place])
    lines[place] = json.dumps([*step[:3], []]).encode() + b"\n"
    path = tmp_path / "record"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DivergenceError, match=r"recorded by another coloha \(99\..*; this is "):
        replayed(path)


def test_a_machine_that_broke_breaks_again(world: RecordedWorld, tmp_path: Path) -> None:
    """The step that broke the machine is the one an author wants to see."""
    made = RecordedWorld(5)
    made.run(1.0)
    node = made.nodes["alpha"]
    assert node.machine is not None
    made.head(node, Begins.GAP)
    context = node.machine.state().context
    head = json.loads(made.lines["alpha"][-1])
    head["state"]["context"].update(phase="sync", record=None)  # which no machine would do
    event = Timer()
    broke = Raised("InvariantError: sync under None")
    lines = [json.dumps(head).encode() + b"\n", step_line(1, context.now, event, broke)]
    path = tmp_path / "record"
    path.write_bytes(b"".join(lines))
    (_, step) = replayed(path)
    assert isinstance(step, Step)
    assert step.outcome == broke
    path.write_bytes(lines[0] + step_line(1, context.now, event, []))
    with pytest.raises(DivergenceError, match="it broke: InvariantError"):
        replayed(path)


def parted(folder: Path) -> list[Path]:
    """The same history, in two files."""
    made = RecordedWorld(7)
    made.run(1.0)
    first = made.save("alpha", folder / "00000001-a.jsonl.gz")
    made.lines["alpha"] = []
    made.head(made.nodes["alpha"], Begins.CONTINUED)
    made.run(1.0)
    return [first, made.save("alpha", folder / "00000002-b.jsonl.gz")]


def test_a_file_that_goes_on_must_begin_where_the_one_before_ended(
    world: RecordedWorld, tmp_path: Path
) -> None:
    """So a state that is not recorded whole is noticed in every long record."""
    first, second = parted(tmp_path)
    replay = Replay()
    items = [*replay.run(read(first)), *replay.run(read(second), follows=True)]
    assert replay.steps == sum(isinstance(item, Step) for item in items) > 50
    changed = second.read_bytes().replace(b'"sessions":', b'"sessions":1', 1)
    second.write_bytes(changed)
    list(Replay().run(read(second)))  # by itself nothing is wrong with it
    replay = Replay()
    list(replay.run(read(first)))
    with pytest.raises(DivergenceError, match=r"begins with: context\.sessions: 2, and 12"):
        list(replay.run(read(second), follows=True))
    replay = Replay()
    list(replay.run(read(first)))
    list(replay.run(read(second)))


def test_times_are_those_of_the_wall_clock(world: RecordedWorld, tmp_path: Path) -> None:
    lines = [*world.lines["alpha"]]
    head = json.loads(lines[0])
    head.update(time="2026-11-01T03:12:07.250000+00:00", now=0.0)
    lines[0] = json.dumps(head).encode() + b"\n"
    path = tmp_path / "record"
    path.write_bytes(b"".join(lines))
    began, *steps = replayed(path)
    assert isinstance(began, Began)
    assert began.at == pytest.approx(1793502727.25)
    for step in steps[:20]:
        assert isinstance(step, Step)
        assert step.at - began.at == pytest.approx(step.now, abs=1e-5)


def test_the_state_of_a_machine_is_all_of_it() -> None:
    """A machine has nothing beside its state that `resume` would not take over."""
    machine = live(RecordedWorld, 0).nodes["alpha"].machine
    assert machine is not None
    assert vars(PairMachine.resume(machine.state())) == vars(machine)
