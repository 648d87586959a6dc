"""QEMUs in units of systemd: each has a cgroup of its own, and none is the daemon's child."""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from coloha.ask import Answer, ask
from coloha.errors import LaunchError
from coloha.qemu.guard import started
from coloha.qemu.launch import ORDER, REASON, TAKEN
from coloha.qemu.process import Process, find

START_S = 20.0
"""How long a unit may take to start."""
AGAIN_S = 0.05
"""Time between two attempts while the unit of the QEMU before is not quite gone."""


def unit_of(pair: str) -> str:
    """Return the name of the unit of a pair's QEMU."""
    return f"coloha-qemu@{pair}.service"


class UnitLauncher:
    """Has systemd start QEMU as unit `coloha-qemu@PAIR.service` (see `coloha.qemu.launch`)."""

    makes_taps = True

    def __init__(self, runtime_directory: Path) -> None:
        self._directory = runtime_directory

    async def launch(
        self, pair: str, argv: Sequence[str], stderr: Path, taps: Sequence[tuple[str, str]]
    ) -> Process:
        """See `coloha.qemu.process.Launcher.launch`.

        Whatever happens, cancellation included: if no process is returned, none will come.
        """
        folder = self._directory / pair
        for old in (*folder.glob(f"{TAKEN}*"), *folder.glob(REASON)):
            old.unlink()
        new = folder / f"{ORDER}.new"
        new.write_text(json.dumps({"argv": list(argv), "stderr": str(stderr), "taps": list(taps)}))
        new.replace(folder / ORDER)
        try:
            async with asyncio.timeout(START_S):
                return await self._started(pair, folder)
        except TimeoutError:
            _revoke(folder)
            raise LaunchError(
                f"systemd did not start {unit_of(pair)} within {START_S:g} s: see"
                f" `systemctl status {unit_of(pair)}`"
            ) from None
        except BaseException:
            _revoke(folder)
            raise

    async def _started(self, pair: str, folder: Path) -> Process:
        unit = unit_of(pair)
        while True:
            try:
                answer = await ask(("systemctl", "--no-ask-password", "start", unit), "", START_S)
            except OSError as error:
                raise LaunchError(f"systemctl: {error.strerror}") from error
            taken = _taken(folder)
            if taken is not None:
                return taken
            if answer.code:
                raise LaunchError(f"systemd does not start {unit}: {_reason(folder, answer)}")
            await asyncio.sleep(AGAIN_S)  # the one before is being buried

    def find(self, prefix: str) -> list[tuple[Process, list[str]]]:
        """See `coloha.qemu.process.Launcher.find`."""
        return find(prefix)


def _reason(folder: Path, answer: Answer) -> str:
    """Return what `coloha-launch` said, or else systemctl."""
    try:
        return (folder / REASON).read_text()
    except OSError:
        return " ".join(answer.complaint.decode(errors="replace").split())


def _taken(folder: Path) -> Process | None:
    """Return the process that has taken the order; None if none has.

    :raises LaunchError: if it has ended already.
    """
    for taken in folder.glob(f"{TAKEN}*"):
        _, pid, ticks = taken.name.split(".")
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(int(pid))
            # The number may have gone to another process before it was pinned down.
            if started(int(pid)) == int(ticks):
                return Process(int(pid), pidfd, whose="it is systemd's child: see its journal")
            os.close(pidfd)
        raise LaunchError("QEMU ended at once: see the journal of its unit")
    return None


def _revoke(folder: Path) -> None:
    """Take the order back; kill who has taken it."""
    try:
        (folder / ORDER).unlink()
    except FileNotFoundError:
        with suppress(LaunchError):
            process = _taken(folder)
            if process is not None:
                process.kill()
                process.close()
