"""Real processes: started to outlive the daemon, watched, killed, found again."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coloha.errors import LaunchError
from coloha.qemu.process import ChildLauncher, Process
from tests.qemu.children import ENDS, SLEEP, THREADS, bury, patiently, started, state_of
from tests.qemu.loops import PATIENCE_S, Loop, descriptors, eventually


class Watch:
    """What a process says of its end, in order."""

    def __init__(self, process: Process) -> None:
        self.said: list[str] = []
        process.watch(lambda: self.said.append("gone"), self.said.append)

    @property
    def dead(self) -> bool:
        return len(self.said) == 2

    async def end(self) -> list[str]:
        await eventually(lambda: self.dead, "the death")
        await asyncio.sleep(0.01)  # nothing more may come
        return self.said


# Starting


def test_a_process_of_its_own_session(tmp_path: Path) -> None:
    with started(SLEEP, tmp_path) as process:
        assert os.getsid(process.pid) == process.pid
        assert os.getpgid(process.pid) == process.pid


def test_it_survives_the_death_of_its_daemon(run: Loop, tmp_path: Path) -> None:
    daemon = f"""
import pathlib, time
from coloha.qemu.process import ChildLauncher
argv = [{sys.executable!r}, "-c", {SLEEP!r}, "unix:{tmp_path}/p-1/qmp.sock"]
process = ChildLauncher().start(argv, pathlib.Path({str(tmp_path)!r}, "stderr.log"))
pathlib.Path({str(tmp_path)!r}, "pid.new").write_text(str(process.pid))
pathlib.Path({str(tmp_path)!r}, "pid.new").rename(pathlib.Path({str(tmp_path)!r}, "pid"))
time.sleep(3600)
"""

    async def main(found: Process) -> list[str]:
        watch = Watch(found)
        found.watch_threads()
        await asyncio.sleep(0.05)
        assert watch.said == []
        found.kill()
        return await watch.end()

    with subprocess.Popen([sys.executable, "-c", daemon], start_new_session=True) as parent:
        patiently((tmp_path / "pid").exists, "the start")
        pid = int((tmp_path / "pid").read_text())
        os.killpg(parent.pid, signal.SIGKILL)
    try:
        assert parent.returncode == -signal.SIGKILL
        assert state_of(pid) not in ("", "Z")
        ((found, argv),) = ChildLauncher().find(f"unix:{tmp_path}/")
        assert found.pid == pid
        assert argv[-1] == f"unix:{tmp_path}/p-1/qmp.sock"
        gone, status = run(main(found))
        assert gone == "gone"
        assert status == "exit status unknown (it was started by an earlier daemon)"
    finally:
        bury(pid)
        patiently(lambda: state_of(pid) in ("", "Z"), "the end")


def test_what_it_writes_is_kept_and_added_to(run: Loop, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    log.write_text("before\n")
    program = "import sys; print('to stdout', flush=True); print('to stderr', file=sys.stderr)"

    async def main(process: Process) -> None:
        await Watch(process).end()

    with started(program, tmp_path) as process:
        run(main(process))
    assert log.read_text() == "before\nto stdout\nto stderr\n"
    assert log.stat().st_mode & 0o777 & ~0o644 == 0


def test_its_log_is_private(tmp_path: Path) -> None:
    with started(SLEEP, tmp_path):
        assert (tmp_path / "stderr.log").stat().st_mode & 0o777 == 0o600


def test_it_inherits_neither_descriptors_nor_the_daemons_duties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID")
    for name in private:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")
    script = f'env > {tmp_path}/env; x=$(ls -l /proc/$$/fd); echo "$x" > {tmp_path}/new'
    script += f"; mv {tmp_path}/new {tmp_path}/fd"
    near, far = socket.socketpair()
    with near, far, started("", tmp_path, argv=["/bin/sh", "-c", script]):
        patiently((tmp_path / "fd").exists, "its account")
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert not set(private) & set(environment)
    assert environment["KEPT"] == "yes"
    opened = (tmp_path / "fd").read_text()
    assert " 0 -> /dev/null" in opened
    assert f" 1 -> {tmp_path}/stderr.log" in opened
    assert f" 2 -> {tmp_path}/stderr.log" in opened
    assert "socket:" not in opened


def test_a_broken_pipe_ends_it(tmp_path: Path) -> None:
    """Python ignores SIGPIPE, and children inherit that; QEMU expects the default."""
    script = f"grep SigIgn /proc/self/status > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/said"
    with started("", tmp_path, argv=["/bin/sh", "-c", script]):
        patiently((tmp_path / "said").exists, "its account")
    ignored = int((tmp_path / "said").read_text().split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))


@pytest.mark.parametrize(
    ("program", "reason"),
    [("/nowhere/qemu", "No such file or directory"), ("/etc/passwd", "Permission denied")],
)
def test_a_program_that_cannot_be_started(tmp_path: Path, program: str, reason: str) -> None:
    with pytest.raises(LaunchError, match=reason) as caught:
        ChildLauncher().start([program], tmp_path / "stderr.log")
    assert program in str(caught.value)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        ChildLauncher().start([sys.executable, "-c", ENDS], tmp_path / "none" / "stderr.log")


# The end


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (ENDS, "exit status 0"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 37)", "killed by signal 37"),
    ],
)
def test_exit_statuses_in_words(run: Loop, tmp_path: Path, program: str, status: str) -> None:
    async def main(process: Process) -> list[str]:
        return await Watch(process).end()

    with started(program, tmp_path) as process:
        assert run(main(process)) == ["gone", status]


def test_it_ended_before_anyone_watched(run: Loop, tmp_path: Path) -> None:
    async def main(process: Process) -> list[str]:
        patiently(lambda: state_of(process.pid) == "Z", "the end")
        watch = Watch(process)
        process.watch_threads()
        return await watch.end()

    with started("raise SystemExit(9)", tmp_path) as process:
        assert run(main(process)) == ["gone", "exit status 9"]


def test_someone_else_collected_it(run: Loop, tmp_path: Path) -> None:
    """A daemon started with SIGCHLD ignored has its children collected by the kernel."""

    async def main(process: Process) -> list[str]:
        watch = Watch(process)
        process.kill()
        os.waitpid(process.pid, 0)
        return await watch.end()

    with started(SLEEP, tmp_path) as process:
        assert run(main(process)) == ["gone", "exit status unknown"]


def test_killing(run: Loop, tmp_path: Path) -> None:
    async def main(process: Process) -> list[str]:
        watch = Watch(process)
        process.kill()
        said = await watch.end()
        process.kill()  # to kill the dead is nothing
        return said

    with started(SLEEP, tmp_path) as process:
        assert run(main(process)) == ["gone", "killed by SIGKILL"]


def test_killing_one_that_is_stopped(run: Loop, tmp_path: Path) -> None:
    async def main(process: Process) -> list[str]:
        watch = Watch(process)
        process.watch_threads()
        os.kill(process.pid, signal.SIGSTOP)
        await eventually(lambda: state_of(process.pid) == "T", "the stop")
        await asyncio.sleep(0.05)
        assert watch.said == []
        process.kill()
        return await watch.end()

    with started(SLEEP, tmp_path) as process:
        assert run(main(process)) == ["gone", "killed by SIGKILL"]


def test_a_kill_never_meets_another_process(tmp_path: Path) -> None:
    """Once it is collected, its number may belong to anyone: the pidfd does not."""
    with started(ENDS, tmp_path) as process:
        os.waitpid(process.pid, 0)
        with started(SLEEP, tmp_path) as other:
            process.pid = other.pid
            process.kill()
            time.sleep(0.05)
            assert state_of(other.pid) not in ("", "Z")


# Closing


def test_closing_lets_it_live_and_says_nothing_more(run: Loop, tmp_path: Path) -> None:
    async def main(process: Process) -> None:
        watch = Watch(process)
        process.watch_threads()
        before = descriptors()
        process.close()
        assert descriptors() == before - 5, "the pidfds of the process and its four threads"
        process.close()
        process.kill()
        await asyncio.sleep(0.05)
        assert state_of(process.pid) not in ("", "Z")
        os.kill(process.pid, signal.SIGKILL)
        await eventually(lambda: state_of(process.pid) == "Z", "the end")
        assert watch.said == []

    with started(THREADS, tmp_path) as process:
        patiently((tmp_path / "ready").exists, "its threads")
        run(main(process))


def test_the_end_leaves_no_descriptor(run: Loop, tmp_path: Path) -> None:
    async def main() -> None:
        before = descriptors()
        for _ in range(5):
            with started(THREADS, tmp_path) as process:
                patiently((tmp_path / "ready").exists, "its threads")
                watch = Watch(process)
                process.watch_threads()
                process.kill()
                await watch.end()
                assert descriptors() == before

    run(main())


def test_watching_again_after_closing(run: Loop, tmp_path: Path) -> None:
    """The next daemon finds it and watches it; what the first one left is no hindrance."""
    prefix = f"unix:{tmp_path}/"

    async def main(process: Process) -> list[str]:
        first = Watch(process)
        process.watch_threads()
        process.close()
        ((found, _),) = ChildLauncher().find(prefix)
        second = Watch(found)
        found.watch_threads()
        found.kill()
        said = await second.end()
        assert first.said == []
        return said

    with started(SLEEP, tmp_path, f"{prefix}p-1/qmp.sock") as process:
        seen(process)
        assert run(main(process))[0] == "gone"


def test_watching_the_threads_of_one_that_was_closed(run: Loop, tmp_path: Path) -> None:
    async def main(process: Process) -> None:
        Watch(process)
        process.close()
        before = descriptors()
        process.watch_threads()
        assert descriptors() == before

    with started(SLEEP, tmp_path) as process:
        run(main(process))


# Finding


def argument(folder: Path) -> str:
    return f"unix:{folder}/p-1/qmp.sock,server=on,wait=off"


def seen(process: Process) -> None:
    """Wait until the kernel shows its arguments: a moment after it was started."""
    patiently(Path(f"/proc/{process.pid}/cmdline").read_bytes, "the start")


def test_finding(tmp_path: Path) -> None:
    words = ["-qmp", argument(tmp_path), "", "last word"]
    with started(SLEEP, tmp_path, *words) as process, started(SLEEP, tmp_path, "other"):
        seen(process)
        ((found, argv),) = ChildLauncher().find(f"unix:{tmp_path}/")
        assert found.pid == process.pid
        assert argv == [sys.executable, "-c", SLEEP, *words]
        found.close()


def test_finding_several(tmp_path: Path) -> None:
    with (
        started(SLEEP, tmp_path, argument(tmp_path)) as one,
        started(SLEEP, tmp_path, argument(tmp_path)) as two,
    ):
        seen(one)
        seen(two)
        found = ChildLauncher().find(f"unix:{tmp_path}/")
        assert {process.pid for process, _ in found} == {one.pid, two.pid}
        for process, _ in found:
            process.close()


@pytest.mark.parametrize("prefix", ["unix:{folder}-2/", "{folder}/", "x-unix:{folder}/"])
def test_finding_no_other(tmp_path: Path, prefix: str) -> None:
    with started(SLEEP, tmp_path, argument(tmp_path)) as process:
        seen(process)
        assert ChildLauncher().find(prefix.format(folder=tmp_path)) == []


def test_zombies_are_not_found(tmp_path: Path) -> None:
    with started(ENDS, tmp_path, argument(tmp_path)) as process:
        patiently(lambda: state_of(process.pid) == "Z", "the end")
        assert ChildLauncher().find(f"unix:{tmp_path}/") == []


def test_finding_leaves_no_descriptor(tmp_path: Path) -> None:
    with started(SLEEP, tmp_path, argument(tmp_path)) as process:
        seen(process)
        before = descriptors()
        for found, _ in ChildLauncher().find(f"unix:{tmp_path}/"):
            found.close()
        assert descriptors() == before


def test_finding_while_processes_come_and_go(tmp_path: Path) -> None:
    with started(SLEEP, tmp_path, argument(tmp_path)) as process:
        seen(process)
        churn: list[subprocess.Popen[Any]] = []
        try:
            for _ in range(15):
                churn += [subprocess.Popen(["/bin/true"]) for _ in range(10)]
                ((found, _),) = ChildLauncher().find(f"unix:{tmp_path}/")
                assert found.pid == process.pid
                found.close()
        finally:
            for child in churn:
                child.wait(PATIENCE_S)
