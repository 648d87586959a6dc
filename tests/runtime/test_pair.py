"""The pump of a pair: what is done when, and what the machine is told."""

import asyncio
import dataclasses
import itertools
import math
import time
from pathlib import Path

import pytest

from coloha.adapters.fence import Report
from coloha.adapters.witness import WitnessError
from coloha.core.actions import (
    Action,
    Admit,
    Beat,
    DropChannel,
    Fence,
    Invite,
    Kill,
    Launch,
    Persist,
    ReadRecord,
    RunScript,
    Script,
    Severity,
    SwapRecord,
    Tell,
)
from coloha.core.events import (
    Committed,
    Durable,
    Event,
    Fenced,
    FenceDone,
    GuestShutdown,
    QemuExited,
    RecordRead,
    Role,
    Run,
    ScriptDone,
    Started,
    StartRequested,
    SwapDone,
    Timer,
    WitnessFailed,
)
from coloha.core.record import first_record
from tests.adapters.support import Runner, eventually, state
from tests.runtime.support import FAR_S, SlowDisk, saved, staged

RUN = Run("p-1", Role.PRIMARY)
SOLO = first_record("life", "alpha")
PROTECTED = SOLO.protect("beta", 7)
NEW = Durable("life", generation=5, gave_up=9)
ODD = ScriptDone(99)
"""An event that means nothing by itself."""


def test_each_action_is_carried_out_in_order(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            actions: list[Action] = [
                Tell("news", Severity.INFO, "it begins", 1),
                DropChannel(1, "old"),
                Invite(2, 3),
                Persist(NEW),
                Admit(3),
                Launch(RUN),
                RunScript(1, Script.CHECK, 1.0),
                Beat(),
                Kill(RUN),
            ]
            await stage.take(ODD, actions)
            expected = ["drop", "invite", "admit", "launch", "run_script", "beat", "kill"]
            await eventually(lambda: stage.done == expected, "all is done, in order")
            assert stage.told() == ["it begins"]
            assert saved(tmp_path) == NEW

    run(main())


def test_nothing_happens_before_what_it_rests_on_is_on_the_disk(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            after: list[Action] = [
                Kill(RUN),
                SwapRecord(SOLO, PROTECTED, "alpha"),
                ReadRecord(),
                Beat(),
                Launch(RUN),
                RunScript(1, Script.RELEASE, 1.0),
                Admit(1),
                Tell("news", Severity.INFO, "done", 1),
            ]
            await stage.take(ODD, [Persist(NEW), *after])
            await eventually(disk.writing.is_set, "the disk is asked")
            stage.pair.post(GuestShutdown())
            await asyncio.sleep(0.1)
            assert stage.done == []
            assert stage.told() == []
            assert GuestShutdown() not in stage.events  # nor is anything else decided
            disk.go_on.set()
            await eventually(lambda: len(stage.done) == 7, "all else is done")
            assert stage.done[0] == "kill"
            await eventually(lambda: GuestShutdown() in stage.events, "the next event")

    run(main())


def test_two_states_in_one_batch_are_both_written_in_their_order(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            first, second = Durable("life", 1), Durable("life", 2)
            await stage.take(ODD, [Persist(first), Kill(RUN), Persist(second), Admit(1)])
            await eventually(lambda: stage.done == ["kill", "admit"], "all is done")
            assert saved(tmp_path) == second

    run(main())


def test_a_heartbeat_does_not_say_what_a_crash_could_still_take_back(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    """A node says that it gave up its copy only once it cannot forget it (R6)."""

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await eventually(lambda: stage.pair.wire is not None, "the first snapshot")
            before = stage.pair.wire
            assert before is not None
            await stage.take(ODD, [Beat(), Persist(NEW), Beat()])
            await eventually(disk.writing.is_set, "the disk is asked")
            for _ in range(20):  # as the heartbeats' own timer does
                await asyncio.sleep(0.005)
                stage.say()
            assert set(stage.said) == {before}
            disk.go_on.set()
            await eventually(lambda: stage.said[-1] != before, "the news is told by a beat")
            assert stage.said[-1] == stage.pair.wire == state(pulse=before.pulse + 1)

    run(main())


def test_a_beat_before_the_disk_is_repeated_after_it(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    """Or the news would wait for the next interval."""

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [Beat(), Persist(NEW)])
            await eventually(disk.writing.is_set, "the disk is asked")
            disk.go_on.set()
            await eventually(lambda: stage.said[-1:] == [state(pulse=2)], "the news")

    run(main())


def test_the_machine_is_never_told_a_time_that_has_not_come(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    """A timer that fired while the pump was busy comes to a machine whose next deadline is far.

    Time that runs ahead makes the other node silent too early, and the lease too long.
    """

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            rounds = 0
            while rounds < 3:
                stage.machine.events.clear()
                disk.writing.clear()
                disk.go_on.clear()
                stage.deadline_s = 0.2
                await stage.take(StartRequested(), [])  # arms a timer that is due soon
                stage.deadline_s = FAR_S
                await stage.take(ODD, [Persist(dataclasses.replace(NEW, generation=rounds))])
                await eventually(disk.writing.is_set, "the disk is asked")
                if stage.events == [StartRequested(), ODD]:  # the timer has not come yet
                    await eventually(lambda: stage.pair._inbox.qsize() == 1, "the timer")
                    rounds += 1
                disk.go_on.set()
                await eventually(lambda: Timer() in stage.events, "the timer is taken")
            ahead = max(told - was for told, was in stage.clock)
            assert ahead < 1.0
            assert [told for told, _ in stage.clock] == sorted(told for told, _ in stage.clock)

    run(main())


def test_the_timer_comes_at_the_deadline_and_not_before(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path, deadline_s=0.01) as stage:
            await stage.begun()
            await eventually(lambda: len(stage.events) > 20, "twenty timers")
            assert set(map(type, stage.events)) == {Started, Timer}
            times = [told for told, _ in stage.clock]
            assert all(later >= earlier + 0.01 for earlier, later in itertools.pairwise(times))

    run(main())


def test_a_qemu_that_was_found_is_what_the_machine_starts_with(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            stage.keeper.found = RUN
            await stage.begun()
            assert stage.events == [Started(Durable(), RUN)]

    run(main())


def test_what_the_witness_answers_comes_back_as_an_event(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = PROTECTED.take_over("beta")
    swap = SwapRecord(PROTECTED, PROTECTED.take_over("alpha"), "alpha")
    cases: list[tuple[Action, object, Event]] = [
        (ReadRecord(), None, RecordRead(None)),
        (ReadRecord(), SOLO, RecordRead(SOLO)),
        (ReadRecord(), WitnessError("gone"), WitnessFailed("gone")),
        (swap, swap.new, SwapDone(swap.new)),
        (swap, taken, RecordRead(taken)),
        (swap, None, RecordRead(None)),
        (swap, WitnessError("gone"), WitnessFailed("gone")),
        (swap, WitnessError("slow", unknown=True), WitnessFailed("slow", unknown=True)),
    ]

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            for number, (action, answer, event) in enumerate(cases):
                stage.events.clear()
                await stage.take(ScriptDone(number), [action])
                await stage.witness.answers.put(answer)  # type: ignore[arg-type]
                await eventually(lambda: len(stage.events) == 2, "the answer")
                assert stage.events[1] == event

    run(main())


def test_a_witness_that_hangs_does_not_hold_up_the_pump(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [SwapRecord(SOLO, PROTECTED, "alpha")])
            await stage.take(QemuExited(RUN, "killed"), [Kill(RUN)])
            await eventually(lambda: stage.done == ["swap", "kill"], "it goes on")

    run(main())


def test_a_cancelled_pump_takes_no_further_step(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path, deadline_s=0.01) as stage:
            await stage.begun()
            await stage.take(ODD, [Persist(NEW), Kill(RUN)])
            await eventually(disk.writing.is_set, "the disk is asked")
            assert stage.task is not None
            stage.task.cancel()
            await asyncio.wait({stage.task})
            count = len(stage.events)
            disk.go_on.set()
            await asyncio.sleep(0.05)
            assert len(stage.events) == count
            assert stage.done == ["let go"]
            await eventually(lambda: saved(tmp_path) == NEW, "what was begun is on the disk")

    run(main())


def test_checkpoints_and_occurrences_are_counted(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(
                ScriptDone(1, Committed(0.004)), [Tell("news", Severity.ERROR, "loud", 2)]
            )
            metrics = stage.pair._services.metrics
            names = {"pair": "web"}
            await eventually(
                lambda: metrics._registry.get_sample_value(
                    "coloha_occurrences_total", {**names, "kind": "news"}
                ),
                "the occurrence",
            )
            count = "coloha_checkpoint_pause_seconds_count"
            assert metrics._registry.get_sample_value(count, names) == 1

    run(main())


@pytest.mark.parametrize("outcome", Fenced)
def test_fencing_goes_on_beside_the_pump(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Fenced
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [Fence(7), Beat()])
            await eventually(lambda: stage.done == ["beat", "fence"], "beta's host is fenced")
            await stage.take(GuestShutdown(), [])  # the pump goes on meanwhile
            await stage.fencer.reports.put(Report(outcome, "so it was"))
            done = FenceDone(7, outcome, "so it was")
            await eventually(lambda: done in stage.events, "the machine is told")
            (fencings,) = (m for m in stage.metrics._registry.collect() if m.name == "coloha_fence")
            counted = {s.labels["outcome"]: s.value for s in fencings.samples if s.value == 1}
            assert counted == {outcome: 1}

    run(main())


def test_how_long_the_pump_has_been_at_one_step(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    """The watchdog starves by it: an event loop that lives is not enough."""

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [])
            assert stage.pair.stuck_s(time.monotonic() + 5) == 0.0
            await stage.take(GuestShutdown(), [Persist(NEW)])
            await eventually(disk.writing.is_set, "the disk is asked")
            assert stage.pair.stuck_s(time.monotonic() + 5) >= 5.0
            disk.go_on.set()
            await eventually(lambda: stage.pair.stuck_s(time.monotonic() + 5) == 0.0, "it goes on")
            stage.pair.trouble = "broken"
            assert stage.pair.stuck_s(time.monotonic()) == math.inf

    run(main())
