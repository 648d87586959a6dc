"""A planned restart under a service manager: what listens is kept, what is sent meanwhile waits."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from coloha.adapters.control import ControlClient
from lab.manager import Manager
from lab.namespace import CHECKOUT, wait_until
from tests.adapters.support import PATIENCE_S
from tests.runtime.daemon_support import COLOHA, Daemon, free_ports
from tests.runtime.test_metrics import fetch

NAMES = {"heartbeat", "channel", "control", "metrics"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def managed(daemon: Daemon, manager: Manager) -> None:
    """Start a daemon as the service manager does; return when it says that it is ready."""
    told = len(manager.told)
    argv = [*COLOHA, "run", "--config", str(daemon.host_file), "--event-loop", daemon.loop]
    command, options = manager.launch(argv)
    with (daemon.folder / "log").open("a") as log:
        daemon.process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            **options,
        )
    daemon.wait(lambda: any("READY=1" in text for text in manager.told[told:]), "READY")


def inodes(pid: int) -> set[str]:
    """The sockets that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return {link for link in found if link.startswith("socket:")}


def kept(manager: Manager) -> dict[str, str]:
    """The sockets that the manager holds, by name."""
    return {name: str(Path(f"/proc/self/fd/{number}").readlink()) for name, number in manager.store}


def pid(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def test_a_planned_restart_goes_on_with_the_same_sockets(alpha: Daemon, manager: Manager) -> None:
    managed(alpha, manager)
    assert not manager.store, "a daemon that is killed must be seen to be gone"
    before = inodes(pid(alpha))
    assert alpha.stop() == 0
    assert any("STOPPING=1" in text for text in manager.told)
    held = kept(manager)
    assert set(held) == NAMES
    assert set(held.values()) <= before
    managed(alpha, manager)
    assert set(held.values()) <= inodes(pid(alpha))
    assert not manager.store
    assert alpha.status()["phase"]
    assert "coloha_build_info" in fetch(alpha.ports[2])
    assert alpha.stop() == 0
    assert kept(manager) == held


def test_what_is_sent_meanwhile_waits(alpha: Daemon, manager: Manager) -> None:
    managed(alpha, manager)
    assert alpha.stop() == 0
    channel, heartbeat, metrics = alpha.ports
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as control,
        socket.create_connection(("127.0.0.1", channel), PATIENCE_S) as invitation,
        socket.create_connection(("127.0.0.1", metrics), PATIENCE_S) as scrape,
    ):
        udp.connect(("127.0.0.1", heartbeat))
        for _ in range(3):
            udp.send(b"not a heartbeat, but it came" * 2)  # an earlier answer would be raised here
        control.settimeout(PATIENCE_S)
        control.connect(str(alpha.control))
        control.sendall(b'{"verb": "status"}\n')
        scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        managed(alpha, manager)
        assert invitation.recv(4096), "its challenge"
        assert b"200 OK" in scrape.recv(4096)
        assert b'"node": "alpha"' in control.makefile("rb").readline()
        alpha.wait(lambda: rejected(alpha) == 3, "what was sent to the heartbeats")


def rejected(daemon: Daemon) -> int:
    """How many datagrams it dropped."""
    client = ControlClient(daemon.control)
    try:
        found = client.ask("status")["ok"]["heartbeats_rejected"]
    finally:
        client.close()
    return sum(found.values())


def is_free(port: int) -> bool:
    """Whether the kernel refuses a datagram, as nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", port))
        udp.settimeout(0.2)
        udp.send(b"anybody?")
        try:
            udp.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def test_without_a_store_the_port_is_free(alpha: Daemon, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "plain", keeps=False)
    try:
        for _ in range(2):
            managed(alpha, manager)
            assert alpha.stop() == 0
            assert not manager.store
            assert is_free(alpha.ports[1])
    finally:
        manager.close()


def test_a_daemon_that_is_killed_keeps_nothing(alpha: Daemon, manager: Manager) -> None:
    managed(alpha, manager)
    assert alpha.stop() == 0
    managed(alpha, manager)
    alpha.stop(signal.SIGKILL)
    assert not manager.store
    # A child that was just being started has the sockets until it is another program.
    wait_until(partial(is_free, alpha.ports[1]), "a free port")


def test_another_address_drops_the_old_sockets(alpha: Daemon, manager: Manager) -> None:
    managed(alpha, manager)
    assert alpha.stop() == 0
    held = kept(manager)
    old = alpha.ports[:]
    channel, heartbeat, metrics = free_ports(3)
    alpha.host["listen"] = {
        "channel": f"127.0.0.1:{channel}",
        "heartbeat": f"127.0.0.1:{heartbeat}",
    }
    alpha.host["metrics"] = f"127.0.0.1:{metrics}"
    nodes = alpha.pair["nodes"]["alpha"]
    nodes |= alpha.host["listen"]
    alpha.write()
    managed(alpha, manager)
    assert not manager.store
    mine = inodes(pid(alpha))
    assert held["control"] in mine
    assert not {held[name] for name in NAMES - {"control"}} & mine
    for port in old:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def test_sockets_that_are_not_what_their_names_say(alpha: Daemon, manager: Manager) -> None:
    """A datagram socket as the channel, one that does not listen, a pipe, and a stranger."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket() as silent,
    ):
        datagrams.bind(("127.0.0.1", free_ports(1)[0]))
        silent.bind(("127.0.0.1", free_ports(1)[0]))
        reading, writing = os.pipe()
        manager.store = [
            ("channel", os.dup(datagrams.fileno())),
            ("metrics", os.dup(silent.fileno())),
            ("heartbeat", reading),
            ("control", writing),
            ("stranger", os.dup(silent.fileno())),
        ]
        strange = set(kept(manager).values())
        managed(alpha, manager)
        assert not manager.store
        assert not strange & inodes(pid(alpha))
    assert alpha.status()["phase"]


@pytest.mark.parametrize(
    "odd",
    [
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "many"},
        {"LISTEN_FDS": "1000000"},
        {"LISTEN_FDS": "5", "LISTEN_FDNAMES": "heartbeat"},
        {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "heartbeat:channel"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "heartbeat"},
        {"LISTEN_PID": "", "LISTEN_FDS": "", "LISTEN_FDNAMES": ""},
        {"NOTIFY_SOCKET": "nowhere"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
    ],
)
def test_an_environment_that_makes_no_sense(alpha: Daemon, odd: dict[str, str]) -> None:
    """LISTEN_PID is right where it matters: else nothing would be looked at."""
    argv = [*COLOHA, "run", "--config", str(alpha.host_file), "--event-loop", alpha.loop]
    right = "import os, sys; os.environ.setdefault('LISTEN_PID', str(os.getpid())); "
    right += "os.execvp(sys.argv[1], sys.argv[1:])"
    with (alpha.folder / "log").open("a") as log:
        alpha.process = subprocess.Popen(
            [argv[0], "-ISc", right, *argv],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            env={**os.environ, **odd},
        )
    alpha.wait(lambda: alpha.events("daemon-started"), "the start")
    assert alpha.status()["phase"]
    assert alpha.stop() == 0


def test_a_reload_is_told(alpha: Daemon, manager: Manager) -> None:
    managed(alpha, manager)
    before = time.monotonic_ns() // 1000
    told = len(manager.told)
    alpha.pair["checkpoint"]["period"] = "40ms"
    alpha.write()
    alpha.reload()
    alpha.wait(lambda: len(manager.told) >= told + 2, "the end of the reload")
    begun, ended = manager.told[told:]
    first, _, stamp = begun.partition("\nMONOTONIC_USEC=")
    assert first == "RELOADING=1"
    assert before <= int(stamp) <= time.monotonic_ns() // 1000
    assert ended == "READY=1\nSTATUS=looks after vm"


def test_no_child_inherits_what_was_kept(alpha: Daemon, manager: Manager) -> None:
    """QEMU would keep a port alive, and an environment that is not its own."""
    script = alpha.folder / "qemu"
    seen = alpha.folder / "seen"
    script.write_text(
        f"#!/bin/sh\n(ls -l /proc/self/fd; env) > {seen}.new; mv {seen}.new {seen}; exit 1\n"
    )
    script.chmod(0o755)
    managed(alpha, manager)
    assert alpha.stop() == 0
    held = kept(manager)
    alpha.pair["vm"]["qemu"] = str(script)
    alpha.write()
    managed(alpha, manager)
    alpha.wait(seen.exists, "the start of a QEMU")
    text = seen.read_text()
    assert not [link for link in held.values() if link in text]
    assert "NOTIFY_SOCKET" not in text
    assert "LISTEN_" not in text
