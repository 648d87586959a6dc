"""The daemon's side of a run's guard (`coloha.qemu.guard`): starts it, shows it signs of life."""

import asyncio
import logging
import os
import sys
import time

from coloha.core.events import Failure
from coloha.errors import LaunchError
from coloha.qemu.command_line import Files
from coloha.qemu.guard import is_guarded, started
from coloha.qemu.process import ChildLauncher, Process
from coloha.qemu.steps import ScriptError

log = logging.getLogger(__name__)

READY_S = 2.0
"""How long a guard may take to start."""
POLL_S = 0.02
TEND_S = 1.0
"""How often the guard sees that somebody looks after its QEMU."""


class Guard:
    """One run's guard. It lives as long as QEMU does, over restarts of the daemon."""

    def __init__(self, files: Files, pid: int, after_s: float, launcher: ChildLauncher) -> None:
        """:param after_s: how long output may be held with nobody looking, seconds."""
        self._files = files
        self._pid = pid
        self._started = started(pid)
        self._after_s = after_s
        self._launcher = launcher
        self._process: Process | None = None
        self._tended_at = float("-inf")

    def start(self) -> None:
        """Start the guard if none is there; it says itself if one has come meanwhile."""
        directory = str(self._files.directory)
        argv = [sys.executable, "-I", "-m", "coloha.qemu.guard"]
        try:
            if is_guarded(self._files.guard_lock):
                return
            self._process = self._launcher.start(
                [*argv, directory, str(self._pid), str(self._started), f"{self._after_s:g}"],
                self._files.stderr,
            )
            self._process.watch(lambda: None, lambda _: None)
        except (LaunchError, OSError) as error:
            log.error("no guard for QEMU %d: %s", self._pid, error)

    async def hold(self) -> None:
        """Have the guard watch from now on, before QEMU holds output.

        :raises ScriptError: if there is no guard.
        """
        self.start()
        try:
            async with asyncio.timeout(READY_S):
                while not is_guarded(self._files.guard_lock):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
            self.mark()
        except TimeoutError:
            raise ScriptError(Failure.REFUSED, "the guard of this QEMU does not start") from None
        except OSError as error:
            raise ScriptError(Failure.REFUSED, f"no guard for this QEMU: {error}") from error

    def mark(self) -> None:
        """Say that QEMU holds output, and that somebody looks after it.

        The time of its buffers is noted if none is: buffers found running go on with theirs.
        """
        if not self._files.switched.exists():
            self.switched(time.monotonic())
        self._files.held.touch(mode=0o600)

    def switched(self, at: float) -> None:
        """Say that no buffer has been on for longer than since `at`, monotonic seconds."""
        new = self._files.switched.with_suffix(".new")
        new.touch(mode=0o600)  # whose time no guard must see
        os.utime(new, (at, at))
        new.replace(self._files.switched)

    def release(self) -> None:
        """Say that QEMU holds nothing: the guard leaves it alone."""
        self._files.held.unlink(missing_ok=True)
        self._files.switched.unlink(missing_ok=True)

    def tend(self, now: float) -> None:
        """Show the guard that somebody looks after its QEMU; see that there is a guard."""
        if now < self._tended_at + TEND_S:
            return
        self._tended_at = now
        try:
            os.utime(self._files.held)
            self.start()
        except FileNotFoundError:
            pass  # nothing is held
        except OSError as error:
            log.error("QEMU %d cannot be shown that it is looked after: %s", self._pid, error)

    def close(self) -> None:
        """Watch the guard no more; it goes on."""
        if self._process is not None:
            self._process.close()
