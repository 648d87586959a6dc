"""What the guest itself does is no failure; and what an operator changes while it runs."""

import signal
import socket
from dataclasses import replace

import pytest

from lab.strike import BOOT_S
from lab.topology import GUEST_IP
from tests.e2e.support import PATIENT, Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


def order(stage: Scene, word: str) -> None:
    """Tell the guest to switch itself off, or to boot."""

    def connect() -> socket.socket:
        connection = socket.create_connection((GUEST_IP, 7), 10)
        connection.sendall(f"{word}\n".encode())
        return connection

    stage.topology.client.inside(connect, ("net",)).close()


def test_guest_switches_itself_off() -> None:
    with scene() as stage:
        primary, secondary = stage.wait_protected()
        stage.client.stop()
        order(stage, "poweroff")
        cluster = stage.cluster
        cluster.wait("off", lambda: cluster.phases() == {primary: "off", secondary: "standby"})
        cluster.wait("the end of QEMU", lambda: cluster.qemu(primary) is None)
        assert cluster.qemu(secondary) is None
        assert "yielded" not in stage.kinds(primary)
        assert "claimed" not in stage.kinds(secondary)
        # It stays off over a restart of the daemon, until somebody says otherwise.
        cluster.kill_daemon(primary)
        cluster.start(primary)
        cluster.wait("off", lambda: cluster.in_phase("off"))
        assert "starting" in cluster.command(primary, "start", "vm")
        assert stage.wait_protected() == (primary, secondary)


def test_guest_boots_again() -> None:
    with scene(replace(PATIENT, period="200ms")) as stage:  # checkpoints slow the boot down
        primary, secondary = stage.wait_protected()
        pid = stage.qemu_pid(primary)
        stage.client.stop()
        order(stage, "reboot")
        stage.cluster.wait(
            "the guest to answer again",
            lambda: console(stage, primary).count("lab guest: ready") == 2,
            BOOT_S,
        )
        # A generation may have passed: TCG may not stop when it was just reset (qemu.md, 2.9).
        assert stage.wait_protected() == (primary, secondary)
        assert stage.qemu_pid(primary) == pid
        assert not {"yielded", "qemu-exited"} & {*stage.kinds(primary)}
        assert not {"claimed", "promoted"} & {*stage.kinds(secondary)}


def console(stage: Scene, name: str) -> str:
    runs = (stage.topology.hosts[name].runtime / "vm").glob("p-*/console.log")
    return "".join(path.read_text(errors="replace") for path in runs)


def test_period_changes_on_reload() -> None:
    with scene() as stage:
        primary, _ = stage.wait_protected()
        cluster = stage.cluster
        for name in stage.topology.hosts:
            path = cluster.pair_file(name)
            path.write_text(path.read_text().replace("period: 50ms", "period: 200ms"))
            stage.topology.hosts[name].signal(cluster.daemon(name).pid, signal.SIGHUP)
        cluster.wait("the new period", lambda: cluster.status(primary)["period_s"] == 0.2)
        epochs = cluster.status(primary)["epochs"]
        stage.answers_go_on(10)
        assert cluster.status(primary)["epochs"] > epochs
        # A broken file changes nothing, and is told.
        path.write_text("pair: [")
        stage.topology.hosts[name].signal(cluster.daemon(name).pid, signal.SIGHUP)
        cluster.wait("the refusal", lambda: "reload-refused" in stage.kinds(name))
        assert cluster.protected()
        stage.finish()
