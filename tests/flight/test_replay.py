"""A record of any history replays as it was decided, and any change of a decision is noticed."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from coloha.core.context import Settings
from coloha.core.events import Heard
from coloha.core.machine import PairMachine
from coloha.errors import FlightError
from coloha.flight.record import Begins, Raised, read, step_line
from coloha.flight.replay import Began, DivergenceError, Replay, Step
from tests.adapters.support import state
from tests.flight.recording import recorded, replayed
from tests.flight.scenes import live, scene


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Two failovers and a restart, as alpha recorded them."""
    with scene(5) as played:
        for name in (played.primary, played.secondary):
            played.kill_qemu(name)
            played.settle()
        played.kill_daemon("beta")
        played.run(0.1)
        played.start_daemon("beta")
        played.settle()
    return played.tapes["alpha"].lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.mark.parametrize("first", range(1000, 1100, 25))
def test_any_history_replays_identically(first: int, path: Path) -> None:
    for seed in range(first, first + 25):
        with recorded() as tapes:
            live(seed)
        for tape in tapes.values():
            items = replayed(tape.save(path))
            assert len(items) == len(tape.lines)
            assert items[-1].after == tape.machine.snapshot(), f"seed {seed}"


def test_every_changed_action_is_noticed(lines: list[bytes], path: Path) -> None:
    """Each action of a record, changed in one field, left out, or said twice."""
    noticed = 0
    places = [place for place, line in enumerate(lines) if line.startswith(b"[")]
    choose = random.Random(1)
    for place in choose.sample(places, 60):
        step = json.loads(lines[place])
        for altered in alterations(step[3], choose):
            step[3] = altered
            changed = [*lines[:place], json.dumps(step).encode() + b"\n", *lines[place + 1 :]]
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


def test_a_changed_event_is_noticed(lines: list[bytes], path: Path) -> None:
    """What the machine was told decides what it does: here, that a checkpoint never ended."""
    lines = [*lines]
    place = next(place for place, line in enumerate(lines) if b'{"Committed"' in line)
    step = json.loads(lines[place])
    step[2]["ScriptDone"]["number"] += 1000
    lines[place] = json.dumps(step).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DivergenceError):
        replayed(path)


def test_a_dropped_event_is_noticed(lines: list[bytes], path: Path) -> None:
    for place in random.Random(2).sample(range(1, len(lines) - 1), 40):
        path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
        with pytest.raises(FlightError, match=f":{place + 1}: "):
            replayed(path)


def test_a_changed_state_is_noticed(lines: list[bytes], path: Path) -> None:
    lines = [*lines]
    head = json.loads(lines[0])
    head["state"]["context"]["s"]["incarnation"] += 1
    path.write_bytes(b"".join([json.dumps(head).encode() + b"\n", *lines[1:]]))
    with pytest.raises(DivergenceError):
        replayed(path)


def test_a_divergence_says_where_and_what(lines: list[bytes], path: Path) -> None:
    lines = [*lines]
    place = next(place for place, line in enumerate(lines) if b'"RunScript"' in line)
    step = json.loads(lines[place])
    step[3] = []
    lines[place] = json.dumps(step).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DivergenceError) as caught:
        replayed(path)
    said = str(caught.value)
    assert said.startswith(f"step {step[0]}, ")
    assert "recorded: nothing\ndecided:  " in said
    assert "RunScript(" in said
    assert "the record was altered, or this is a bug" in said


def test_a_divergence_from_another_version_says_so(lines: list[bytes], path: Path) -> None:
    lines = [line.replace(b'"coloha":"', b'"coloha":"99.', 1) for line in lines]
    lines = [line.replace(b'"core":"', b'"core":"x', 1) for line in lines]
    place = next(place for place, line in enumerate(lines) if b'"RunScript"' in line)
    step = json.loads(lines[place])
    lines[place] = json.dumps([*step[:3], []]).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(DivergenceError, match=r"recorded by another coloha \(99\..*; this is "):
        replayed(path)


def test_a_machine_that_broke_breaks_again(lines: list[bytes], path: Path) -> None:
    """The step that broke the machine is the one an author wants to see."""
    head = json.loads(lines[0])
    head["state"]["context"].update(phase="sync", phase_since=0.0)  # which no machine would do
    broke = Raised("InvariantError: sync under None")
    first = json.dumps(head).encode() + b"\n"
    path.write_bytes(first + step_line(1, 0.5, Heard(state()), broke))
    with pytest.raises(DivergenceError) as caught:
        replayed(path)
    decided = re.search(r"decided:  it broke: (.*)", str(caught.value))
    assert decided is not None
    path.write_bytes(first + step_line(1, 0.5, Heard(state()), Raised(decided[1])))
    (_, step) = replayed(path)
    assert isinstance(step, Step)
    assert step.outcome == Raised(decided[1])
    path.write_bytes(first + step_line(1, 0.5, Heard(state()), []))
    with pytest.raises(DivergenceError, match="recorded: nothing\ndecided:  it broke: "):
        replayed(path)


def test_a_file_that_goes_on_must_begin_where_the_one_before_ended(tmp_path: Path) -> None:
    """So a state that is not recorded whole is noticed in every long record."""
    with scene() as played:
        tape = played.tapes["alpha"]
        first = tape.save(tmp_path / "00000001-a.jsonl.gz")
        tape.lines = []
        tape.head(Begins.CONTINUED)
        played.run(1.0)
        second = tape.save(tmp_path / "00000002-b.jsonl.gz")
    replay = Replay()
    items = [*replay.run(read(first)), *replay.run(read(second), follows=True)]
    assert replay.steps == sum(isinstance(item, Step) for item in items) > 50
    second.write_bytes(second.read_bytes().replace(b'"sessions":', b'"sessions":1', 1))
    list(Replay().run(read(second)))  # by itself nothing is wrong with it
    replay = Replay()
    list(replay.run(read(first)))
    with pytest.raises(DivergenceError, match=r"begins with: context\.sessions: (\d+), and 1\1"):
        list(replay.run(read(second), follows=True))
    replay = Replay()
    list(replay.run(read(first)))
    list(replay.run(read(second)))


def test_times_are_those_of_the_wall_clock(lines: list[bytes], path: Path) -> None:
    lines = [*lines]
    head = json.loads(lines[0])
    head.update(time="2026-11-01T03:12:07.250000+00:00", now=0.0)
    lines[0] = json.dumps(head).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    began, *steps = replayed(path)
    assert isinstance(began, Began)
    assert began.at == pytest.approx(1793502727.25)
    for step in steps[:20]:
        assert isinstance(step, Step)
        assert step.at - began.at == pytest.approx(step.now, abs=1e-5)


def test_the_state_of_a_machine_is_all_of_it() -> None:
    """A machine has nothing beside its state that `resume` would not take over."""
    machine = PairMachine(Settings("vm", "alpha", "beta", first=True, incarnation=1), 0.0)
    assert vars(PairMachine.resume(machine.state())) == vars(machine)
