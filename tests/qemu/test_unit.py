"""A QEMU that systemd starts: whatever happens in between, it either runs and is known, or never
will. In the place of systemd stands a program that does, or fails to do, what it is told.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloha.errors import LaunchError
from coloha.qemu import launch, unit
from coloha.qemu.launch import ORDER, REASON, TAKEN, OrderRefusedError, make_taps, tap_commands
from coloha.qemu.process import Process
from coloha.qemu.unit import UnitLauncher
from lab.namespace import CHECKOUT
from tests.adapters.support import PATIENCE_S, eventually

LAUNCH = f"""
import sys
sys.path.insert(0, {str(CHECKOUT)!r})
from pathlib import Path
from coloha.qemu import launch
launch.RUNTIME = Path(sys.argv.pop(1))
raise SystemExit(launch.main())
"""
SLEEPS = ["sleep", "1000.5"]


class Systemd:
    """A `systemctl` that does as the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime = folder / "run"
        (self.runtime / "web").mkdir(parents=True)
        self.calls = folder / "calls"
        self._program = folder / "bin" / "systemctl"
        self._program.parent.mkdir()
        self.shim = folder / "shim.py"
        self.shim.write_text(LAUNCH)
        monkeypatch.setenv("PATH", f"{self._program.parent}:{os.environ['PATH']}")
        self.does()

    @property
    def start(self) -> str:
        """What starts the unit: like systemd, it outlives `systemctl`."""
        return (
            f"setsid {sys.executable} {self.shim} {self.runtime} web < /dev/null > /dev/null 2>&1 &"
        )

    def does(self, *lines: str) -> None:
        self._program.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {self.calls}', *lines, ""]))
        self._program.chmod(0o755)

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.runtime / "web").iterdir())

    async def launch(self, argv: list[str] | None = None) -> Process:
        stderr = self.runtime / "web" / "stderr.log"
        return await UnitLauncher(self.runtime).launch("web", argv or SLEEPS, stderr, [])


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path, monkeypatch)
    yield systemd
    for taken in (systemd.runtime / "web").glob(f"{TAKEN}*"):
        pid = int(taken.name.split(".")[1])
        if argv_of(pid) in (SLEEPS, [sys.executable, str(systemd.shim)]):
            os.kill(pid, 9)


def argv_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1][:2]
    except OSError:
        return []


def taken_by(systemd: Systemd) -> int:
    (taken,) = (systemd.runtime / "web").glob(f"{TAKEN}*")
    return int(taken.name.split(".")[1])


def test_it_is_started_and_known(systemd: Systemd) -> None:
    systemd.does(systemd.start, "sleep 0.5")
    process = asyncio.run(systemd.launch(["sh", "-c", "echo said >&2; sleep 1000.5"]))
    assert process.pid == taken_by(systemd)
    deadline = time.monotonic() + PATIENCE_S
    while "said" not in (systemd.runtime / "web/stderr.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert systemd.calls.read_text() == "--no-ask-password start coloha-qemu@web.service\n"
    process.kill()
    process.close()


def test_the_unit_of_the_one_before_is_waited_for(systemd: Systemd) -> None:
    """systemd takes a start of what it believes to run for done."""
    systemd.does(f'[ "$(wc -l < {systemd.calls})" -lt 3 ] || {{', systemd.start, "sleep 0.5", "}")
    process = asyncio.run(systemd.launch())
    assert process.pid == taken_by(systemd)
    assert len(systemd.calls.read_text().splitlines()) >= 3
    process.kill()
    process.close()


def test_a_refusal_is_passed_on(systemd: Systemd) -> None:
    systemd.does("echo Access denied. >&2", "exit 4")
    with pytest.raises(LaunchError, match=r"coloha-qemu@web\.service: Access denied\.$"):
        asyncio.run(systemd.launch())
    assert systemd.left() == []


def test_the_reason_of_the_unit_is_passed_on(systemd: Systemd) -> None:
    systemd.does(f"echo no such bridge > {systemd.runtime}/web/{REASON}", "exit 1")
    with pytest.raises(LaunchError, match="no such bridge"):
        asyncio.run(systemd.launch())


def test_without_systemctl(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match=r"^systemctl: No such file"):
        asyncio.run(systemd.launch())
    assert systemd.left() == []


def test_a_program_that_cannot_be_run(systemd: Systemd) -> None:
    systemd.does(systemd.start, "sleep 1")
    with pytest.raises(LaunchError, match="ended at once"):
        asyncio.run(systemd.launch(["/nowhere/qemu"]))
    assert "cannot start /nowhere/qemu" in (systemd.runtime / "web" / REASON).read_text()


@pytest.mark.parametrize("by", ["cancellation", "timeout"])
def test_what_was_given_up_never_starts(
    systemd: Systemd, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.does("sleep 1000")

    async def give_up() -> None:
        task = asyncio.create_task(systemd.launch())
        await eventually(systemd.calls.exists, "a call")
        if by == "cancellation":
            task.cancel()
        with pytest.raises(asyncio.CancelledError if by == "cancellation" else LaunchError):
            await task

    monkeypatch.setattr(unit, "START_S", 1.0 if by == "timeout" else PATIENCE_S)
    asyncio.run(give_up())
    assert systemd.left() == []
    late = [sys.executable, str(systemd.shim), str(systemd.runtime), "web"]
    done = subprocess.run(late, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "did not ask" in done.stderr


def test_what_is_given_up_too_late_is_killed(systemd: Systemd) -> None:
    systemd.does(systemd.start, "sleep 1000")

    async def give_up() -> int:
        task = asyncio.create_task(systemd.launch())
        folder = systemd.runtime / "web"
        await eventually(lambda: list(folder.glob(f"{TAKEN}*")), "a process")
        pid = taken_by(systemd)
        assert Path(f"/proc/{pid}").exists()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    pid = asyncio.run(give_up())
    deadline = time.monotonic() + PATIENCE_S
    while argv_of(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_order_is_taken_once(systemd: Systemd) -> None:
    with pytest.raises(OrderRefusedError, match="did not ask"):
        launch.launch(systemd.runtime / "web")


@pytest.mark.parametrize(
    "tap",
    [["eth0", "br0"], ["co0123456789n0", "br0"], ["co01234567n0", "br0\nlink del br0"]],
)
def test_taps_are_made_for_coloha_alone(systemd: Systemd, tap: list[str]) -> None:
    """The order comes from a user; root carries it out."""
    (systemd.runtime / "web" / ORDER).write_text(
        f'{{"taps": [{str(tap).replace(chr(39), chr(34))}]}}'
    )
    with pytest.raises(OrderRefusedError):
        make_taps(systemd.runtime / "web")


def test_a_tap_of_somebody_else_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_INTERFACES", tmp_path)
    make = "tuntap add dev tap0 mode tap user 7"
    up = ["link set dev tap0 master br0", "link set dev tap0 up"]
    assert tap_commands("tap0", "br0", 7) == [make, *up]
    (tmp_path / "tap0").mkdir()
    (tmp_path / "tap0/owner").write_text("7\n")
    assert tap_commands("tap0", "br0", 7) == up
    (tmp_path / "tap0/owner").write_text("-1\n")
    assert tap_commands("tap0", "br0", 7) == ["tuntap del dev tap0 mode tap", make, *up]
    assert tap_commands("tap0", "br0") == up
