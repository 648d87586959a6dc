"""Real daemons as processes of their own, on loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from coloha.adapters.control import ControlClient
from lab.namespace import CHECKOUT
from tests.adapters.support import LOOPS, PATIENCE_S

COLOHA = (sys.executable, "-W", "error", "-m", "coloha")
NODES = ("alpha", "beta")
KEY = "0123456789abcdef" * 4


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, neither for TCP nor for UDP."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            tcp = stack.enter_context(socket.socket())
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


class Daemon:
    """A node's configuration, and the daemon that runs it."""

    def __init__(self, node: str, folder: Path, ports: dict[str, list[int]], loop: str) -> None:
        self.node = node
        self.folder = folder / node
        self.ports = ports[node]
        self.loop = loop
        self.process: subprocess.Popen[str] | None = None
        (self.folder / "pairs.d").mkdir(parents=True)
        (folder / "witness").mkdir(exist_ok=True)
        key = self.folder / "key"
        key.write_text(KEY)
        key.chmod(0o600)
        channel, heartbeat, metrics = self.ports
        self.host: dict[str, Any] = {
            "node": node,
            "listen": {
                "channel": f"127.0.0.1:{channel}",
                "heartbeat": f"127.0.0.1:{heartbeat}",
            },
            "key_file": str(key),
            "metrics": f"127.0.0.1:{metrics}",
            "runtime_directory": str(self.folder / "run"),
            "state_directory": str(self.folder / "state"),
        }
        self.pair: dict[str, Any] = {
            "pair": "vm",
            "nodes": {
                name: {
                    "channel": f"127.0.0.1:{ports[name][0]}",
                    "heartbeat": f"127.0.0.1:{ports[name][1]}",
                }
                for name in NODES
            },
            "vm": {"qemu": "/nowhere/qemu", "memory": "16MiB"},
            "checkpoint": {"period": "50ms"},
            "heartbeat": {"interval": "50ms", "misses": 10},
            "witness": {"type": "file", "directory": str(folder / "witness")},
        }
        self.write()

    @property
    def host_file(self) -> Path:
        return self.folder / "coloha.yaml"

    @property
    def pair_file(self) -> Path:
        return self.folder / "pairs.d" / "vm.yaml"

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return (self.folder / "log").read_text()

    @property
    def control(self) -> Path:
        return self.folder / "run" / "control.sock"

    def write(self) -> None:
        """Write both files as they are in memory."""
        self.host_file.write_text(yaml.safe_dump(self.host))
        self.pair_file.write_text(yaml.safe_dump(self.pair, sort_keys=False))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        lives = len(self.events("daemon-started"))
        self.process = self.launch()
        self.wait(lambda: len(self.events("daemon-started")) > lives, "the start")

    def launch(self) -> subprocess.Popen[str]:
        argv = [*COLOHA, "run", "--config", str(self.host_file), "--event-loop", self.loop]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                argv,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )

    def refused(self) -> str:
        """Launch what must not start: exit status 1, and what it says."""
        before = len(self.log) if (self.folder / "log").exists() else 0
        with self.launch() as process:
            assert process.wait(PATIENCE_S) == 1, self.log
        said = self.log[before:]
        assert "Traceback" not in said
        return said

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def reload(self, text: str = "") -> list[str]:
        """Have it read its configuration; return what it tells about that."""
        assert self.process is not None
        before = len(self.events("reload"))
        self.process.send_signal(signal.SIGHUP)
        self.wait(lambda: len(self.events("reload")) > before, "news of the reload")
        if text:
            self.wait(lambda: text in str(self.events("reload")[before:]), text)
        return self.events("reload")[before:]

    def cli(self, *words: str, status: int) -> str:
        """Run a verb; return what it prints."""
        verb, *rest = words
        done = subprocess.run(
            [*COLOHA, verb, "--config", str(self.host_file), *rest],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def events(self, kind: str = "") -> list[str]:
        """What its file of events says of the kinds that begin so, by all its lives."""
        path = self.folder / "state" / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["kind"].startswith(kind):
                    found.append(event["text"])
        return found

    def status(self) -> dict[str, Any]:
        """The pair's status, as the daemon's own client gets it."""
        client = ControlClient(self.control)
        try:
            (pair,) = client.ask("status")["ok"]["pairs"]
        finally:
            client.close()
        assert isinstance(pair, dict)
        return pair

    def wait(self, reached: Callable[[], object], what: str) -> None:
        """Return once that is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            ended = self.process is not None and self.process.poll() is not None
            assert not ended, f"it ended before {what}:\n{self.log}"
            assert time.monotonic() < deadline, f"never: {what}\n{self.log}"
            time.sleep(0.02)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(params=LOOPS)
def daemons(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Daemon]]:
    """Alpha and beta, configured and not started; on each event loop in turn."""
    numbers = iter(free_ports(6))
    ports = {node: [next(numbers) for _ in range(3)] for node in NODES}
    made = {node: Daemon(node, tmp_path, ports, request.param) for node in NODES}
    yield made
    for daemon in made.values():
        daemon.end()
        log = daemon.folder / "log"
        said = log.read_text() if log.exists() else ""
        assert "Traceback" not in said, said
        assert "Warning" not in said, said


@pytest.fixture
def alpha(daemons: dict[str, Daemon]) -> Daemon:
    return daemons["alpha"]


@pytest.fixture
def beta(daemons: dict[str, Daemon]) -> Daemon:
    return daemons["beta"]


def children(pid: int) -> list[int]:
    """The live processes whose parent is `pid`."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def exists(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
