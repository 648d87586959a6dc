"""QEMU processes: started so that they outlive the daemon, found again, watched, killed."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from coloha.errors import LaunchError

_NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID")


_PIDFD_THREAD = os.O_EXCL
"""Flag of pidfd_open, Linux 6.9: watch one thread."""

_PF_EXITING, _PF_SIGNALED = 0x4, 0x400
"""Flags of a task (field 9 of /proc/PID/stat; Linux, include/linux/sched.h)."""

LOOK_S = 0.02
"""How often to look whether a process is dying, on kernels that cannot watch threads."""


class Process:
    """A process held by its pidfd: it cannot be mistaken for another one with the same number.

    A killed process is `gone` at once and `dead` later: the kernel first frees its memory, and that
    of a large guest takes seconds. When one of its threads ends, and its main thread is past the
    point from which no process returns, nothing of it will run again; failover need not wait for
    the rest.
    """

    def __init__(self, pid: int, pidfd: int, *, whose: str | None = None) -> None:
        """:param whose: why its exit status cannot be known; None if it is this process's child."""
        self.pid = pid
        self._pidfd = pidfd
        self._whose = whose
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[int] = []
        self._look: asyncio.TimerHandle | None = None
        self._on_gone: Callable[[], None] | None = None

    def watch(self, on_gone: Callable[[], None], on_dead: Callable[[str], None]) -> None:
        """Call `on_gone` once when the process will never run again, then `on_dead` once with its
        exit status in words when nothing is left of it.
        """
        self._loop = asyncio.get_running_loop()
        self._on_gone = on_gone

        def dead() -> None:
            status = self._status()
            self._gone()
            self.close()
            on_dead(status)

        self._loop.add_reader(self._pidfd, dead)

    def watch_threads(self) -> None:
        """Watch the threads there are now, so that `on_gone` comes as early as can be."""
        assert self._loop is not None
        if self._pidfd < 0:
            return  # its number may belong to another process by now
        try:
            for entry in Path(f"/proc/{self.pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    thread = os.pidfd_open(int(entry.name), _PIDFD_THREAD)
                    self._threads.append(thread)
                    self._loop.add_reader(thread, self._thread_ended, thread)
        except OSError:  # an older kernel, or the process is gone already
            self._look_again()

    def _thread_ended(self, thread: int) -> None:
        """QEMU's threads come and go; the end of one is only a reason to look."""
        assert self._loop is not None
        self._loop.remove_reader(thread)
        self._threads.remove(thread)
        os.close(thread)
        self._gone_if_dying()
        if self._on_gone is not None:
            # The others take their signal within microseconds.
            self._loop.call_later(0.001, self._gone_if_dying)

    def _gone_if_dying(self) -> None:
        if _dying(self.pid):
            self._gone()

    def _look_again(self) -> None:
        if self._loop is None or self._pidfd < 0:
            return
        self._gone_if_dying()
        if self._on_gone is not None:
            self._look = self._loop.call_later(LOOK_S, self._look_again)

    def _gone(self) -> None:
        if self._on_gone is not None:
            on_gone, self._on_gone = self._on_gone, None
            on_gone()

    def _status(self) -> str:
        if self._whose is not None:
            return f"exit status unknown ({self._whose})"
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:  # the kernel collects it where SIGCHLD is ignored
            result = None
        if result is None:
            return "exit status unknown"
        if result.si_code == os.CLD_EXITED:
            return f"exit status {result.si_status}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(result.si_status).name}"
        return f"killed by signal {result.si_status}"  # a real-time one, which has no name

    def close(self) -> None:
        """Watch no more; the process lives on if it does."""
        if self._look is not None:
            self._look.cancel()
        for descriptor in (*self._threads, self._pidfd):
            if descriptor >= 0:
                if self._loop is not None:
                    self._loop.remove_reader(descriptor)
                os.close(descriptor)
        self._threads = []
        self._pidfd = -1
        self._on_gone = None

    def kill(self) -> None:
        """Send SIGKILL. Never `quit`: deleting a filter-buffer flushes it, and so does leaving."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def _dying(pid: int) -> bool:
    """Whether the main thread of a process has taken a fatal signal, or is exiting."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return bool(int(fields[6]) & (_PF_EXITING | _PF_SIGNALED))


class Launcher(Protocol):
    """How QEMUs come to be and are found again."""

    @property
    def makes_taps(self) -> bool:
        """Whether it makes the taps that a QEMU needs; else they must be there before."""
        ...

    async def launch(
        self, pair: str, argv: Sequence[str], stderr: Path, taps: Sequence[tuple[str, str]]
    ) -> Process:
        """Start a pair's QEMU; what it writes to stdout and stderr is appended to `stderr`.

        :param taps: those that it needs, each with its bridge.
        :raises LaunchError: if it cannot be started. Then, or if cancelled, it does not run.
        """
        ...

    def find(self, prefix: str) -> list[tuple[Process, list[str]]]:
        """Return the live processes with an argument that starts so, and their arguments."""
        ...


class ChildLauncher:
    """Starts QEMU as a child in a session of its own: it lives on when the daemon dies."""

    makes_taps = False

    async def launch(
        self, pair: str, argv: Sequence[str], stderr: Path, taps: Sequence[tuple[str, str]]
    ) -> Process:
        """See `Launcher.launch`."""
        del pair, taps
        return self.start(argv, stderr)

    def start(self, argv: Sequence[str], stderr: Path, descriptor: int | None = None) -> Process:
        """Start a process; what it writes to stdout and stderr is appended to `stderr`. It gets
        `descriptor` as its descriptor 3.

        :raises LaunchError: if it cannot be started.
        """
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_CHILDREN}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(stderr), flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    *([] if descriptor is None else [(os.POSIX_SPAWN_DUP2, descriptor, 3)]),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE],
            )
        except OSError as error:
            raise LaunchError(f"cannot start {argv[0]}: {error.strerror}") from error
        with contextlib.suppress(OSError):
            # The daemon's own protection from the OOM killer is not for QEMU, which is the biggest.
            Path(f"/proc/{pid}/oom_score_adj").write_text("0")
        return Process(pid, os.pidfd_open(pid))

    def find(self, prefix: str) -> list[tuple[Process, list[str]]]:
        """See `Launcher.find`."""
        return find(prefix)


def find(prefix: str) -> list[tuple[Process, list[str]]]:
    """Return the live processes with an argument that starts so, and their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        argv = _command_line(entry)
        if not any(argument.startswith(prefix) for argument in argv):
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(int(entry.name))
            # The number may have gone to another process before it was pinned down.
            if _command_line(entry) == argv:
                whose = "it was started by an earlier daemon"
                found.append((Process(int(entry.name), pidfd, whose=whose), argv))
            else:
                os.close(pidfd)
    return found


def _command_line(entry: Path) -> list[str]:
    """Return a process's arguments; none for a zombie or one that is gone."""
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
