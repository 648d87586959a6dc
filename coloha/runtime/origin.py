"""Where a run's QEMU comes from: coloha starts it, or somebody else did."""

import contextlib
from pathlib import Path

from coloha.adapters import network
from coloha.config.model import HostConfig, PairConfig
from coloha.core.events import Role, Run
from coloha.errors import LaunchError
from coloha.qemu import attach, command_line
from coloha.qemu.command_line import Files
from coloha.qemu.process import Launcher, Process
from coloha.qemu.vm import Vm

KEPT_RUNS = 5


class Origin:
    """Starts, attaches and finds the pair's QEMUs on this node."""

    def __init__(self, config: PairConfig, host: HostConfig, launcher: Launcher) -> None:
        self._config = config
        self._host = host
        self._launcher = launcher
        self._directory = host.runtime_directory / config.name
        self._taps: list[tuple[str, str]] = []
        wanted = config.vm.attach
        self._attach = wanted if wanted is not None and wanted.node == host.node else None

    def files(self, run: Run) -> Files:
        """Return where a run keeps its sockets and logs."""
        directory = command_line.directory_of(self._directory, run)
        if self._attach is None or not self._is_attached(run, directory):
            return Files(directory)
        return Files(directory, (self._attach.monitor, self._attach.second_monitor))

    def _is_attached(self, run: Run, directory: Path) -> bool:
        if directory.exists():
            return attach.is_attached(directory)
        return run.role is Role.PRIMARY  # it is about to be

    def find(self) -> list[tuple[Process, Run]]:
        """Return what an earlier daemon started or attached, and still lives."""
        found = list(attach.found(self._directory)) if self._attach is not None else []
        for process, argv in self._launcher.find(command_line.mark(self._directory)):
            run = command_line.run_of(argv, self._directory)
            if run is None:  # something else that names our folder
                process.close()
            else:
                found.append((process, run))
        return found

    def prepare(self, run: Run, files: Files) -> None:
        """Make the run's folder, remove those of old runs.

        :raises LaunchError: if an interface is missing, or this VM runs here already.
        """
        if files.monitors is None:
            self._see_alone(run)
            self._taps = network.wanted(self._config.name, self._config.vm)
        files.directory.mkdir(parents=True, mode=0o700)
        runs = sorted(
            filter(Path.is_dir, self._directory.iterdir()), key=lambda path: path.stat().st_mtime
        )
        for old in runs[:-KEPT_RUNS]:
            _remove(old)

    def _see_alone(self, run: Run) -> None:
        """A QEMU that was started anew by somebody would be a second voice."""
        if self._attach is None:
            return
        pid = attach.listener(self._attach.monitor)
        if pid is not None:
            raise LaunchError(
                f"somebody started this VM on {self._host.node} (pid {pid}), while"
                f" {self._config.name}'s other node has it: end that QEMU, or clients hear two VMs"
                if run.role is Role.SECONDARY
                else f"somebody else's QEMU (pid {pid}) listens on {self._attach.monitor}"
            )

    async def start(self, run: Run, files: Files) -> Process:
        """Start the run's QEMU, or take the one that is there.

        :raises LaunchError: if that cannot be.
        """
        if files.monitors is not None and self._attach is not None:
            return attach.take(self._attach, files.directory)
        overlays = self._host.overlay_directory
        compared = self._config.checkpoint.mode == "compare"
        argv = command_line.build(
            self._config.name, self._config.vm, run, files, overlays, compared=compared
        )
        if not self._launcher.makes_taps:
            await network.make_taps(self._taps)
        return await self._launcher.launch(self._config.name, argv, files.stderr, self._taps)

    async def look(self, vm: Vm) -> None:
        """See that a QEMU which somebody else started has all that it needs.

        :raises LaunchError: if it lacks something.
        """
        if vm.files.monitors is None:
            return
        problems = await attach.problems(vm.ask, self._config.vm)
        if problems:
            raise LaunchError("; ".join(problems))

    @staticmethod
    def forget(files: Files) -> None:
        """Let a QEMU that was taken be somebody else's again."""
        (files.directory / attach.NOTE).unlink(missing_ok=True)


def _remove(directory: Path) -> None:
    """Remove the folder of an old run; what resists stays."""
    with contextlib.suppress(OSError):
        for entry in directory.iterdir():
            entry.unlink()
        directory.rmdir()
