"""What the daemon shows of a pair."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from coloha.core.actions import Action
from coloha.core.events import Event
from coloha.qemu.steps import Progress
from coloha.runtime import pair as pair_module
from coloha.runtime.status import as_dict
from tests.adapters.support import Runner, eventually
from tests.runtime.support import Stage, configuration, staged


def shown(stage: Stage) -> dict[str, object]:
    """The status, as it arrives at the other end of the control socket."""
    status = json.loads(json.dumps(as_dict(stage.pair, time.monotonic())))
    assert isinstance(status, dict)
    return status


def test_a_pair_that_has_not_begun(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(configuration(tmp_path), tmp_path)
        assert shown(stage) == {
            "pair": "web",
            "phase": "failed",
            "protected": False,
            "why_not": "it is starting",
        }
        await stage.end()

    run(main())


def test_a_pair_that_runs_and_one_that_failed(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(event: Event) -> list[Action]:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await eventually(lambda: stage.pair.snapshot, "a snapshot")
            status = shown(stage)
            assert (status["pair"], status["peer"], status["phase"]) == ("web", "beta", "init")
            assert (status["protected"], status["epochs"]) == (False, 1)
            assert status["heartbeat_age_s"] is None
            assert isinstance(status["phase_age_s"], float)
            assert status["qemu"] == {"run": None, "pid": None, "answered_age_s": None}
            monkeypatch.setattr(pair_module, "START_OVER_S", 3600.0)
            stage.reply = fail
            stage.pair.post(stage.events[0])
            await eventually(lambda: stage.pair.trouble, "the failure")
            failed = shown(stage)
            assert failed["phase"] == "failed"
            assert failed["why_not"] == "ZeroDivisionError: a bug"
            assert failed["protected"] is False
            assert failed["record"] == status["record"]

    run(main())


def test_how_far_the_disks_are(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with staged(monkeypatch, tmp_path) as stage:
            await stage.begun()
            await eventually(lambda: stage.pair.snapshot, "a snapshot")
            assert (shown(stage)["disks"], shown(stage)["disks_torn"]) == (None, None)
            vm = {"pid": 1, "answered_at": None, "loaded": 0}
            since, progress = time.monotonic() - 10, Progress(copied=250, total=1000)
            stage.keeper.vm = SimpleNamespace(
                **vm, progress=progress, copying_since=since, demanded=None
            )
            stage.keeper.storage.torn = "half a copy"
            status = shown(stage)
            assert status["disks"] == {
                "copied_bytes": 250,
                "total_bytes": 1000,
                "bytes_per_s": 25,
                "left_s": pytest.approx(30, abs=3),
            }
            assert status["disks_torn"] == "half a copy"
            stage.keeper.vm.progress = Progress(copied=0, total=1000)
            disks = shown(stage)["disks"]
            assert isinstance(disks, dict)
            assert disks["left_s"] is None

    run(main())
