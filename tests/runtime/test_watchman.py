"""Who feeds the watchdog, and when nobody does."""

import asyncio
import contextlib
import dataclasses
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coloha.adapters.watchdog import Watchdog
from coloha.core.actions import Severity
from coloha.errors import WatchdogError
from coloha.runtime import watchman as module
from coloha.runtime.watchman import Watchman
from tests.adapters.support import Runner, eventually
from tests.adapters.watchdog_support import FakeDriver


@dataclasses.dataclass
class Pair:
    """A pair whose state the test decides."""

    name: str = "web"
    holds: bool = False
    stuck: float = 0.0

    def stuck_s(self, now: float) -> float:
        return self.stuck


class Scene:
    """A watchman, the pairs that it looks at, and what it told."""

    def __init__(self, driver: FakeDriver | None = None, *, required: bool = True) -> None:
        self.driver = driver or FakeDriver()
        self.pairs = [Pair()]
        self.told: list[tuple[str, Severity, str]] = []
        watchdog = Watchdog(Path("/dev/watchdog"), 5, self.driver)
        self.watchman = Watchman(
            watchdog, required, lambda: self.pairs, lambda *said: self.told.append(said)
        )

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.told]

    async def fed(self) -> None:
        """Wait until it has been fed some more."""
        before = self.driver.meals
        await eventually(lambda: self.driver.meals > before + 2, "the watchdog is fed")


@contextlib.asynccontextmanager
async def begun(scene: Scene) -> AsyncIterator[Scene]:
    await scene.watchman.start()
    try:
        yield scene
    finally:
        await scene.watchman.close()


@pytest.fixture(autouse=True)
def _hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEED_S", 0.005)
    monkeypatch.setattr(module, "SLOW_S", 30.0)
    monkeypatch.setattr(module, "HUNG_S", 1.0)
    monkeypatch.setattr(module, "STARVING_S", 0.02)
    monkeypatch.setattr(module, "AGAIN_S", 0.01)


def test_it_counts_only_while_output_is_held(run: Runner) -> None:
    async def main() -> None:
        async with begun(Scene()) as scene:
            assert scene.driver.opened == 1  # it was tried
            assert not scene.driver.counts
            await asyncio.sleep(0.05)
            assert scene.driver.opened == 1
            scene.pairs[0].holds = True
            await eventually(lambda: scene.driver.counts, "it is armed")
            await scene.fed()
            scene.pairs[0].holds = False
            await eventually(lambda: not scene.driver.counts, "it is disarmed")
            assert scene.told == []

    run(main())


def test_a_pump_that_hangs_starves_it_whatever_the_others_do(run: Runner) -> None:
    async def main() -> None:
        async with begun(Scene()) as scene:
            scene.pairs = [Pair("web", holds=True), Pair("db", holds=True)]
            await eventually(lambda: scene.driver.counts, "it is armed")
            await scene.fed()
            scene.pairs[1].stuck = 1.1
            await eventually(lambda: scene.told, "that is told")
            meals = scene.driver.meals
            await asyncio.sleep(0.1)  # the event loop lives, and so does this very task
            assert scene.driver.meals == meals
            assert scene.driver.counts
            ((kind, severity, text),) = scene.told
            assert (kind, severity) == ("watchdog-starves", Severity.ERROR)
            assert text.startswith("db: ")
            scene.pairs[1].stuck = 0.0
            await scene.fed()

    run(main())


def test_a_pump_that_hangs_with_nothing_held_harms_nobody(run: Runner) -> None:
    async def main() -> None:
        async with begun(Scene()) as scene:
            scene.pairs = [Pair("web", holds=True), Pair("db", stuck=float("inf"))]
            await eventually(lambda: scene.driver.counts, "it is armed")
            await scene.fed()
            assert scene.told == []

    run(main())


def test_it_is_armed_before_output_is_held(run: Runner) -> None:
    async def main() -> None:
        async with begun(Scene()) as scene:
            scene.pairs[0].holds = True
            await scene.watchman.hold()
            assert scene.driver.counts

    run(main())


def test_without_a_required_one_no_output_is_held(run: Runner) -> None:
    async def main() -> None:
        async with begun(Scene(FakeDriver(failing=("open", errno.EBUSY)))) as scene:
            with pytest.raises(WatchdogError, match=r"not armed.*RuntimeWatchdogSec"):
                await scene.watchman.hold()
            assert scene.kinds == ["watchdog-not-armed"]
            assert scene.told[0][1] is Severity.ERROR

    run(main())


def test_an_optional_one_that_is_missing_is_told_once(run: Runner) -> None:
    async def main() -> None:
        driver = FakeDriver(failing=("open", errno.EBUSY))
        async with begun(Scene(driver, required=False)) as scene:
            scene.pairs[0].holds = True
            await scene.watchman.hold()
            await asyncio.sleep(0.1)
            assert [(kind, severity) for kind, severity, _ in scene.told] == [
                ("watchdog-not-armed", Severity.WARNING)
            ]
            driver.failing = None
            await eventually(lambda: driver.counts, "it is armed as soon as it can be")

    run(main())


def test_a_planned_end_disarms_it(run: Runner) -> None:
    async def main() -> None:
        scene = Scene()
        async with begun(scene):
            scene.pairs[0].holds = True
            await eventually(lambda: scene.driver.counts, "it is armed")
        assert not scene.driver.counts
        assert scene.told == []

    run(main())


def test_one_that_never_stops_is_fed_all_the_time(run: Runner) -> None:
    async def main() -> None:
        scene = Scene(FakeDriver(nowayout=True))
        async with begun(scene):
            await scene.fed()
            assert scene.told == []
        assert scene.driver.counts
        assert scene.kinds == ["watchdog-counts-on"]

    run(main())


def test_food_that_comes_too_late_is_not_given(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided before a host froze must not count after it."""
    monkeypatch.setattr(module, "SLOW_S", -1.0)

    async def main() -> None:
        async with begun(Scene()) as scene:
            scene.pairs[0].holds = True
            await eventually(lambda: scene.driver.counts, "it is armed")
            meals = scene.driver.meals
            await asyncio.sleep(0.05)
            assert scene.driver.meals == meals

    run(main())


def test_a_device_that_takes_no_food_is_told(run: Runner) -> None:
    async def main() -> None:
        async with begun(Scene()) as scene:
            scene.pairs[0].holds = True
            await eventually(lambda: scene.driver.counts, "it is armed")
            scene.driver.failing = ("write", errno.EIO)
            await eventually(lambda: scene.kinds == ["watchdog-failed"], "that is told")
            await asyncio.sleep(0.05)
            assert scene.kinds == ["watchdog-failed"]

    run(main())


def test_without_a_watchdog_nothing_is_done(run: Runner) -> None:
    async def main() -> None:
        watchman = Watchman(None, required=False, wards=tuple, tell=lambda *_: None)
        await watchman.start()
        await watchman.hold()
        assert not watchman.armed
        await watchman.close()

    run(main())
