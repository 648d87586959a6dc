"""A pump that fails, or that is behind: held, told, and started over."""

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from coloha.core.actions import (
    Action,
    Kill,
    Launch,
    Persist,
    ReadRecord,
)
from coloha.core.context import InvariantError
from coloha.core.events import (
    Durable,
    Event,
    Heard,
    PeriodChanged,
    QemuExited,
    Role,
    Run,
    ScriptDone,
    Started,
    StartRequested,
)
from coloha.core.record import first_record
from coloha.runtime import pair as pair_module
from coloha.runtime.pair import INBOX
from tests.adapters.support import Runner, eventually, state
from tests.runtime.support import SlowDisk, staged

RUN = Run("p-1", Role.PRIMARY)
SOLO = first_record("life", "alpha")
PROTECTED = SOLO.protect("beta", 7)
NEW = Durable("life", generation=5, gave_up=9)
ODD = ScriptDone(99)
"""An event that means nothing by itself."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvariantError("two voices\nand more"), "InvariantError: two voices"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
    ],
)
def test_a_machine_that_fails_is_held_told_and_started_over(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            monkeypatch.setattr(pair_module, "START_OVER_S", 0.3)
            await stage.begun()
            await stage.take(ODD, [Persist(NEW), ReadRecord()])
            await eventually(lambda: "read" in stage.done, "the witness is asked")
            stage.done.clear()

            def fail(event: Event) -> list[Action]:
                raise error

            stage.reply = fail
            stage.pair.post(QemuExited(RUN, "killed"))
            await eventually(lambda: stage.pair.trouble, "the failure")
            assert stage.pair.trouble == said
            assert stage.pair.wire is None  # heartbeats do not speak for it
            assert stage.pair.unready(time.monotonic(), 60.0) == said
            assert stage.told() == [f"held, and starting over: {said}"]
            await eventually(lambda: stage.done == ["let go"], "QEMU is left as it is")
            stage.reply = lambda event: []
            await stage.begun(times=2)
            assert stage.pair.trouble is None
            assert stage.pair.unready(time.monotonic(), 60.0) is None
            assert stage.events[0] == Started(NEW, None)
            # What the witness answers to the machine that failed is not for the new one.
            await stage.witness.answers.put(SOLO)
            await asyncio.sleep(0.05)
            assert stage.events == [Started(NEW, None)]
            first, second = (machine.settings for machine in stage.machines)
            assert first.incarnation != second.incarnation
            assert dataclasses.replace(second, incarnation=first.incarnation) == first

    run(main())


def test_an_action_that_fails_is_held_told_and_started_over(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a bug in the shell")

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            monkeypatch.setattr(stage.keeper, "kill", fail, raising=False)
            await stage.take(ODD, [Kill(RUN), Launch(RUN)])
            await stage.begun(times=2)
            assert "launch" not in stage.done
            assert "a bug in the shell" in stage.told()[0]

    run(main())


def test_a_damaged_state_is_told_and_tried_again(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "web.json"
    path.parent.mkdir()
    path.write_text("{")

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await eventually(lambda: len(stage.told()) > 2, "told again and again")
            assert stage.machines == []
            assert f"{path} is damaged" in str(stage.pair.trouble)
            assert stage.pair.wire is None
            path.unlink()
            await stage.begun()
            assert stage.events[0] == Started(Durable(), None)

    run(main())


def test_a_pump_that_is_behind_drops_heartbeats_and_nothing_else(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [Persist(NEW)])
            await eventually(disk.writing.is_set, "the disk is asked")
            for number in range(INBOX):
                stage.pair.heard(state(pulse=number))
            stage.pair.post(QemuExited(RUN, "killed"))
            assert stage.pair.dropped == INBOX - INBOX // 2
            disk.go_on.set()
            await eventually(lambda: QemuExited(RUN, "killed") in stage.events, "the death")
            heard = [event.peer.pulse for event in stage.events if isinstance(event, Heard)]
            assert heard == list(range(INBOX // 2))
            assert len(stage.machines) == 1  # no reason to start over

    run(main())


def test_a_pump_that_missed_anything_else_starts_over(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: SlowDisk
) -> None:
    """Going on would wait for ever for the death that was lost."""

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [Persist(NEW)])
            await eventually(disk.writing.is_set, "the disk is asked")
            for _ in range(INBOX):
                stage.pair.post(StartRequested())
            stage.pair.post(QemuExited(RUN, "killed"))
            stage.reply = lambda event: []
            disk.go_on.set()
            await stage.begun(times=2)
            assert stage.events == [Started(NEW, None)]
            assert any("lost" in text for text in stage.told())
            # It is as good as new.
            stage.pair.post(QemuExited(RUN, "killed"))
            await eventually(lambda: len(stage.events) == 2, "it goes on")

    run(main())


def test_a_witness_that_fails_as_nobody_foresaw_does_not_leave_the_machine_waiting(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await stage.take(ODD, [ReadRecord()])
            stage.reply = lambda event: []
            await stage.witness.answers.put(ZeroDivisionError("a bug"))
            await stage.begun(times=2)
            assert "ZeroDivisionError: a bug" in stage.told()[0]

    run(main())


def test_a_new_period_is_told_and_outlives_a_fresh_start(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only the period: what needs a restart has to wait for one."""

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            old = stage.pair.config
            new = old.model_copy(
                update={
                    "checkpoint": old.checkpoint.model_copy(
                        update={"period": 0.25, "stall_timeout": 9.0}
                    ),
                    "heartbeat": old.heartbeat.model_copy(update={"misses": 50}),
                }
            )
            stage.pair.reconfigure(new)
            await eventually(lambda: PeriodChanged(0.25) in stage.events, "it is told")

            def fail(event: Event) -> list[Action]:
                raise InvariantError("start over")

            stage.reply = fail
            stage.pair.post(ODD)
            await eventually(lambda: stage.pair.trouble, "the failure")
            stage.reply = lambda event: []
            await stage.begun(times=2)
            first, second = (machine.settings for machine in stage.machines)
            assert second.period_s == 0.25
            assert (second.stall_timeout_s, second.misses) == (first.stall_timeout_s, first.misses)

    run(main())
