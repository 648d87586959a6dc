"""A small etcd cluster: started, hurt and watched from here."""

import contextlib
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.namespace import PATIENCE_S, LabError, wait_until
from lab.topology import Topology

START_S = 60.0
"""How long a cluster may take to elect its first leader on a machine that is busy."""

_LOOK_S = 2.0
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True, slots=True)
class Member:
    """Where one member listens: to its clients, to its peers, and for its metrics."""

    ip: str
    client: int = 2379
    peer: int = 2380
    metrics: int = 2381


def _popen_here(argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen([*_DIES_WITH_US, *argv], **options)


def _stands(pid: int) -> bool:
    """Whether all threads of a process have stopped."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            states.append((task / "stat").read_text().rpartition(") ")[2][0])
    return set(states) == {"T"}


class EtcdCluster:
    """Members of one cluster, numbered from 0; a context manager.

    `arguments` are added to every member's command line, `scheme` is how clients reach it, `popen`
    starts a process where it belongs, and `inside` runs a function there.
    """

    def __init__(
        self,
        program: Path,
        directory: Path,
        members: Sequence[Member],
        *,
        scheme: str = "http",
        arguments: Sequence[str] = (),
        popen: Callable[..., subprocess.Popen[Any]] = _popen_here,
        inside: Callable[[Callable[[], str]], str] = lambda work: work(),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.members = list(members)
        self.endpoints = [f"{scheme}://{member.ip}:{member.client}" for member in members]
        self._program, self.arguments = program, list(arguments)
        self._popen, self._inside = popen, inside
        self._processes: dict[int, subprocess.Popen[Any]] = {}

    def __enter__(self) -> Self:
        try:
            for number in range(len(self.members)):
                self.start(number)
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _argv(self, number: int) -> list[str | Path]:
        member, client = self.members[number], self.endpoints[number]
        peers = [f"http://{other.ip}:{other.peer}" for other in self.members]
        names = ",".join(f"m{index}={peer}" for index, peer in enumerate(peers))
        return [
            *(self._program, "--name", f"m{number}", "--data-dir", self.directory / f"m{number}"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peers[number]),
            *("--initial-advertise-peer-urls", peers[number], "--initial-cluster", names),
            *("--initial-cluster-token", self.directory.name),
            *("--listen-metrics-urls", f"http://{member.ip}:{member.metrics}"),
            *self.arguments,
        ]

    def log_file(self, number: int) -> Path:
        """What a member logged."""
        return self.directory / f"m{number}.log"

    def start(self, number: int) -> None:
        """Start a member, for the first time or again."""
        with self.log_file(number).open("a") as log:
            self._processes[number] = self._popen(
                self._argv(number),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )

    def kill(self, number: int) -> None:
        """SIGKILL a member, and see it dead."""
        process = self._processes.pop(number)
        process.kill()
        process.wait(PATIENCE_S)

    def freeze(self, number: int) -> None:
        """SIGSTOP a member, and see it stand: connections are accepted, and nobody answers."""
        process = self._processes[number]
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _stands(process.pid), f"the stop of etcd's member {number}")

    def thaw(self, number: int) -> None:
        """SIGCONT a member."""
        self._processes[number].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End every member."""
        for number in list(self._processes):
            self.kill(number)

    def running(self) -> list[int]:
        """The members that run."""
        return sorted(self._processes)

    def leader(self) -> int:
        """The member that leads; waits for one."""
        found: list[int] = []

        def look() -> bool:
            found.extend(n for n in self.running() if "\netcd_server_is_leader 1" in self._get(n))
            return bool(found)

        wait_until(look, "a leader of etcd", START_S)
        return found[0]

    def wait_ready(self) -> None:
        """Return once every running member serves reads and writes."""
        for number in self.running():
            wait_until(
                lambda number=number: '"true"' in self._get(number, "health"),  # type: ignore[misc]
                f"etcd's member {number} (see {self.log_file(number)})",
                START_S,
            )

    def _get(self, number: int, page: str = "metrics") -> str:
        """Return a page of a member; an empty text if it does not answer."""
        process = self._processes[number]
        if process.poll() is not None:
            raise LabError(f"etcd's member {number} ended: see {self.log_file(number)}")
        member = self.members[number]
        url = f"http://{member.ip}:{member.metrics}/{page}"

        def get() -> str:
            with contextlib.suppress(urllib.error.URLError, OSError):
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(url, timeout=_LOOK_S) as answer:
                    return str(answer.read().decode())
            return ""

        return self._inside(get)


def etcd_between(topology: Topology, program: Path, count: int = 3) -> EtcdCluster:
    """Return a cluster on the hosts' private network, outside of all hosts; it is not started."""
    members = [Member(f"10.9.0.{101 + number}") for number in range(count)]
    topology.world.ip("".join(f"addr add {member.ip}/24 dev direct\n" for member in members))
    return EtcdCluster(
        program,
        topology.directory / "etcd",
        members,
        popen=topology.world.popen,
        inside=lambda work: topology.world.inside(work, ("net",)),
    )
