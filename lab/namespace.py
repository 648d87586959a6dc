"""A namespace of the lab: its own processes, network, mounts and host name, and nothing else's.

Each has an init (`lab.holder`). Its death is the death of everything inside, at once and certain:
that is how a host loses power, and how nothing survives the run that made it.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from lab.privileges import NEEDED

T = TypeVar("T")

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages `lab` and `coloha`."""

PATIENCE_S = 60.0
"""How long anything that the kernel usually does at once may take (it took 20 s to take a network
namespace down) before the lab gives up on it."""

_CLONE_FS = 0x200
_NEW_NS, _NEW_UTS, _NEW_PID, _NEW_NET = 0x20000, 0x4000000, 0x20000000, 0x40000000
_SPACES = {"mnt": _NEW_NS, "uts": _NEW_UTS, "pid": _NEW_PID, "net": _NEW_NET}
Space = Literal["mnt", "uts", "pid", "net"]
ALL_SPACES: tuple[Space, ...] = ("mnt", "uts", "pid", "net")

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab could not do what it was asked; the message says what failed."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process inside a namespace: `pid` as seen from here, `inner_pid` as it sees itself."""

    pid: int
    inner_pid: int
    argv: tuple[str, ...]
    state: str
    """The kernel's letter: R running, S and D asleep, T stopped."""


def _system(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends with it: the namespaces it enters are left with it too."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # it is raised again below
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds; raise LabError, naming `what`, if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.005)


class Namespace:
    """One namespace. Made by `start`, ended by `kill`; both may be called again and again."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        """Where processes start, unless told otherwise."""
        self._init: subprocess.Popen[bytes] | None = None
        self._init_fd = -1
        self._started: list[subprocess.Popen[Any]] = []
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the namespace exists."""
        return self._init is not None and self._init.poll() is None

    @property
    def pid(self) -> int:
        """The process id of its init, seen from here."""
        if self._init is None or not self.alive:
            raise LabError(f"{self.name} is off")
        return self._init.pid

    def start(self) -> None:
        """Begin to make the namespace; `wait_ready` ends that, so that several are made at once."""
        if self.alive:
            raise LabError(f"{self.name} is already on")
        lifeline = os.pidfd_open(os.getpid())
        argv = [sys.executable, "-ISu", str(Path(__file__).with_name("holder.py"))]

        def spawn() -> subprocess.Popen[bytes]:
            _system("unshare", _NEW_PID)
            return subprocess.Popen(
                [*argv, str(lifeline), self.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[lifeline],
                start_new_session=True,
            )

        try:
            self._init = _in_thread(spawn)
            self._init_fd = os.pidfd_open(self._init.pid)
        except PermissionError:
            raise LabError(NEEDED) from None
        finally:
            os.close(lifeline)

    def wait_ready(self) -> None:
        """Return once the namespace is complete; raise LabError if it could not be made."""
        if self._init is None or self._init.stdout is None:
            raise LabError(f"{self.name} was not started")
        with self._init.stdout as said:
            ready, _, _ = select.select([said], [], [], PATIENCE_S)
            line = said.readline().decode() if ready else f"not ready within {PATIENCE_S:g} s"
        if line != "ready\n":
            self.kill()
            raise LabError(f"{self.name}: the namespace was not made: {line.strip()}")

    def kill(self) -> None:
        """SIGKILL everything inside at once, and return when nothing of it is left."""
        if self._init is None:
            return
        self._init.kill()
        # An init waits for the last process of its namespace, and those started from here are
        # not its children: they go only when this process has taken their status.
        wait_until(self._reap, f"{self.name}: the end of its processes")
        os.close(self._init_fd)
        if self._init.stdout is not None:
            self._init.stdout.close()
        self._init = None

    def _reap(self) -> bool:
        with self._lock:
            self._started = [process for process in self._started if process.poll() is None]
        return self._init is None or self._init.poll() is not None

    def inside(self, work: Callable[[], T], spaces: Sequence[Space] = ALL_SPACES) -> T:
        """Run `work`, a function of this process, in a thread that has entered `spaces`.

        "pid" counts for the processes that `work` starts.
        """
        if self._init is None or not self.alive:
            raise LabError(f"{self.name} is off")
        flags = sum(_SPACES[space] for space in spaces)

        def enter() -> T:
            _system("unshare", _CLONE_FS)  # threads that share a root may not change it
            _system("setns", self._init_fd, flags)
            return work()

        return _in_thread(enter)

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a process inside; `options` are those of `subprocess.Popen`.

        It is the child of this process and `Popen.pid` is its own: signals, `kill` and `wait`
        reach it and not some helper. It has a session of its own, so the terminal's Ctrl-C does
        not reach it, and starts in `directory`.
        """
        options = {"cwd": self.directory, "start_new_session": True, **options}
        process: subprocess.Popen[Any] = self.inside(lambda: subprocess.Popen(argv, **options))
        with self._lock:
            self._started = [other for other in self._started if other.poll() is None]
            self._started.append(process)
        return process

    def run(
        self, argv: Sequence[str | Path], timeout_s: float = PATIENCE_S, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; raise LabError if it takes longer than `timeout_s`.

        The caller judges the exit status. After a timeout the command is killed.
        """
        pipe = subprocess.PIPE
        process = self.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        with process:
            try:
                out, err = process.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                command = " ".join(map(str, argv))
                raise LabError(f"{self.name}: {command}: no end within {timeout_s:g} s") from None
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def call(self, argv: Sequence[str | Path], timeout_s: float = PATIENCE_S) -> str:
        """Like `run`, for commands that must succeed: the output, or LabError with what it said."""
        done = self.run(argv, timeout_s)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise LabError(f"{self.name}: {' '.join(map(str, argv))}: {said}")
        return done.stdout

    def pids(self) -> list[Process]:
        """The processes inside, except its init and the dead; none if the namespace is off."""
        if self._init is None or not self.alive:
            return []
        init = self._init.pid
        with contextlib.suppress(OSError):
            space = Path(f"/proc/{init}/ns/pid").readlink()
            found = (_process(int(entry.name), space) for entry in Path("/proc").glob("[0-9]*"))
            return [process for process in found if process and process.pid != init]
        return []

    def signal(self, pid: int, number: int) -> None:
        """Signal the process `pid` (seen from here) if it is inside; ProcessLookupError if not."""
        handle = os.pidfd_open(pid)
        try:
            # The number cannot change its owner while the handle is open.
            if pid not in {process.pid for process in self.pids()}:
                raise ProcessLookupError(f"{self.name} has no process {pid}")
            signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)

    def freeze(self) -> None:
        """SIGSTOP every process inside and return when all have stopped. The kernel goes on: it
        acknowledges TCP segments and forwards frames, as that of a host whose programs hang.
        """
        told: set[int] = set()

        def stopped() -> bool:
            # One in state D is inside the kernel, perhaps until a stopped child of a vfork goes
            # on: it will not run a step of its own before it has obeyed.
            running = [
                process
                for process in self.pids()
                if process.state != "T" and not (process.state == "D" and process.pid in told)
            ]
            self._signal_each(running, signal.SIGSTOP)
            told.update(process.pid for process in running)
            return not running

        wait_until(stopped, f"{self.name}: the stop of its processes")

    def thaw(self) -> None:
        """SIGCONT every process inside."""
        self._signal_each(self.pids(), signal.SIGCONT)

    def _signal_each(self, processes: Sequence[Process], number: int) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                self.signal(process.pid, number)

    def ip(self, script: str) -> None:
        """Run a script of `ip` commands in this network. Process ids in it are those seen here."""
        run = lambda: subprocess.run(  # noqa: E731 - one expression, named for the line below
            ["ip", "-batch", "-"],
            input=script,
            text=True,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        done = self.inside(run, ("net",))
        if done.returncode != 0:
            raise LabError(f"{self.name}: ip: {done.stderr.strip()}")

    def bind(self, source: Path, target: Path) -> None:
        """Mount the folder `source` at `target`, inside only."""
        arguments = (os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(0x1000), None)
        self.inside(lambda: _system("mount", *arguments), ("mnt",))

    def unbind(self, target: Path) -> None:
        """Undo `bind`. Files that are open stay open; by its path nobody reaches one any more."""
        self.inside(lambda: _system("umount2", os.fsencode(target), 2), ("mnt",))


def _process(pid: int, space: Path) -> Process | None:
    """The process, if it is in the pid namespace `space` and not dead."""
    place = Path("/proc", str(pid))
    try:
        if (place / "ns/pid").readlink() != space:
            return None
        argv = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        status = dict(
            line.split(":\t", 1)
            for line in (place / "status").read_text().splitlines()
            if ":\t" in line
        )
        state = status["State"][0]
        if state in "ZX":
            return None
        return Process(pid, int(status["NSpid"].split()[-1]), tuple(argv), state)
    except OSError:
        return None
