"""The service manager is told that all goes on, as long as it does."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from coloha.adapters.systemd import ServiceManager
from coloha.runtime.attest import attest
from lab.manager import Manager
from tests.adapters.support import eventually


@dataclass
class Pump:
    """A pair that is where the test says."""

    name: str = "web"
    trouble: str | None = None
    stuck: float = 0.0

    def stuck_s(self, now: float) -> float:
        return self.stuck


def watched(notify: Path, microseconds: int = 100_000, pid: int | None = None) -> ServiceManager:
    environment = {
        "NOTIFY_SOCKET": str(notify),
        "WATCHDOG_USEC": str(microseconds),
        "WATCHDOG_PID": str(os.getpid() if pid is None else pid),
    }
    service = ServiceManager(environment)
    assert environment == {}
    return service


def alive(manager: Manager) -> int:
    return manager.told.count("WATCHDOG=1")


def test_told_until_a_pump_hangs(tmp_path: Path) -> None:
    manager = Manager(tmp_path / "notify")
    pumps = [Pump("web"), Pump("mail")]

    async def live() -> None:
        task = asyncio.create_task(attest(watched(tmp_path / "notify"), lambda: pumps))
        await eventually(lambda: alive(manager) > 3, "signs of life")
        pumps[1].stuck = 1.0
        await asyncio.sleep(0.1)
        before = alive(manager)
        await asyncio.sleep(0.3)
        assert alive(manager) == before
        pumps[1].trouble = "the disk is full"  # it starts over: a restart is no help
        await eventually(lambda: alive(manager) > before, "signs of life")
        task.cancel()

    asyncio.run(live())
    manager.close()


@pytest.mark.parametrize("microseconds", [0, 100_000])
def test_not_told_if_nobody_asked(tmp_path: Path, microseconds: int) -> None:
    manager = Manager(tmp_path / "notify")
    pid = os.getpid() + 1 if microseconds else None
    asyncio.run(attest(watched(tmp_path / "notify", microseconds, pid), list[Pump]))
    assert alive(manager) == 0
    manager.close()
