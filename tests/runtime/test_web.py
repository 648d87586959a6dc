"""What is served while the event loop is stuck, and what the pulse makes of it."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coloha.runtime import pulse
from coloha.runtime.pulse import Pulse
from lab.namespace import CHECKOUT
from tests.adapters.support import PATIENCE_S
from tests.runtime.daemon_support import Daemon
from tests.runtime.test_page import fetched

STUCK = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(8))
from coloha.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""
"""A daemon whose event loop stands still for 8 s when it is told to; its threads go on."""


@pytest.mark.parametrize("daemons", ["uvloop"], indirect=True)
def test_a_stuck_event_loop_is_told(alpha: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch() -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", STUCK, "run", "--config", str(alpha.host_file)]
        argv += ["--event-loop", alpha.loop]
        with (alpha.folder / "log").open("a") as log:
            return subprocess.Popen(argv, cwd=CHECKOUT, stdout=log, stderr=log, text=True)

    monkeypatch.setattr(alpha, "launch", launch)
    alpha.start()
    web = f"http://{alpha.host['metrics']}"
    alpha.wait(lambda: fetched(f"{web}/-/ready")[0] == 200, "readiness")
    assert fetched(f"{web}/-/healthy") == (200, "healthy\n")
    assert alpha.process is not None
    alpha.process.send_signal(signal.SIGUSR1)
    alpha.wait(lambda: fetched(f"{web}/-/healthy")[0] == 503, "the verdict")
    assert "the event loop has been stuck for" in fetched(f"{web}/-/ready")[1]
    code, metrics = fetched(f"{web}/metrics")
    assert code == 200
    assert "coloha_pair_phase" in metrics
    assert fetched(f"{web}/")[0] == 200
    alpha.wait(lambda: fetched(f"{web}/-/healthy")[0] == 200, "the recovery")
    shown = fetched(f"{web}/metrics")[1].splitlines()
    late = 'coloha_loop_lag_seconds_bucket{le="5.0"}'
    (within,) = [float(line.split()[1]) for line in shown if line.startswith(late)]
    (count,) = [float(line.split()[1]) for line in shown if "lag_seconds_count" in line]
    assert within == count - 1, "one beat was later than 5 s"


def test_a_pair_that_failed_is_not_ready(alpha: Daemon) -> None:
    alpha.start()
    web = f"http://{alpha.host['metrics']}"
    alpha.wait(lambda: fetched(f"{web}/-/ready")[0] == 200, "readiness")
    alpha.stop()
    for file in Path(alpha.host["state_directory"]).glob("*.json"):
        file.write_text("{")
    alpha.start()
    alpha.wait(lambda: fetched(f"{web}/-/ready")[0] == 503, "the verdict")
    assert fetched(f"{web}/-/ready")[1].startswith("vm: ")
    assert fetched(f"{web}/-/healthy")[0] == 200, "a restart would not help"


def test_the_pulse_tells_how_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.02)
    late: list[float] = []
    one = Pulse(late.append)
    assert one.stuck_s == 0.0

    async def live() -> None:
        task = asyncio.create_task(one.beat())
        end = time.monotonic() + PATIENCE_S
        while len(late) < 3 and time.monotonic() < end:
            await asyncio.sleep(0.01)
        time.sleep(0.3)
        assert one.stuck_s > 0.2
        before = len(late)
        while len(late) == before and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert max(late) > 0.2
        task.cancel()

    asyncio.run(live())
