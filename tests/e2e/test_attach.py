"""A VM that somebody else started, with clients, is protected while it runs."""

import subprocess
from dataclasses import replace

import pytest

from coloha import config
from coloha.core.events import Role, Run
from coloha.qemu import command_line
from lab.assets import load_assets
from lab.client import start_client
from lab.cluster import PAIR, Cluster
from lab.strike import BOOT_S
from lab.topology import GUEST_IP, Topology
from tests.e2e.support import PATIENT, Scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

TIMING = replace(PATIENT, restart_hold="20s")
"""A daemon is restarted, which takes its time on a busy machine."""


def start_by_hand(cluster: Cluster, name: str) -> "subprocess.Popen[bytes]":
    """Start the VM as somebody would who knows coloha's command line, on a tap of its own."""
    host = cluster.topology.hosts[name]
    spec = config.load(cluster.host_file(name)).pairs[0].vm
    assert spec.attach is not None
    folder = host.directory / "by-hand"
    folder.mkdir()
    tap = command_line.tap_name(PAIR, 0, spec.nics[0])
    host.ip(f"tuntap add dev {tap} mode tap\nlink set {tap} master br0\nlink set {tap} up\n")
    files = command_line.Files(folder, (spec.attach.monitor, spec.attach.second_monitor))
    argv = command_line.build(PAIR, spec, Run("p-0", Role.PRIMARY), files)
    return host.popen(argv, stdin=subprocess.DEVNULL)


def test_a_running_vm_is_protected() -> None:
    with Topology() as topology:
        folder = topology.directory
        attach = {
            "node": "alpha",
            "monitor": f"{folder}/m1",
            "second_monitor": f"{folder}/m2",
        }
        cluster = Cluster(topology, load_assets(), TIMING, vm={"attach": attach})
        cluster.start("alpha")
        cluster.wait("the first look", lambda: cluster.events("alpha"))
        qemu = start_by_hand(cluster, "alpha")
        report = topology.directory / "client.jsonl"
        words = ("--think-ms", "2", "--connect-s", str(BOOT_S))
        client = start_client(topology.client, f"{GUEST_IP}:7", report, *words)
        client.wait_for_answers(10, BOOT_S)
        cluster.start("beta")
        stage = Scene(topology, cluster, client)
        assert stage.wait_protected() == ("alpha", "beta")
        # Its daemon's next life finds it again.
        cluster.kill_daemon("alpha")
        cluster.start("alpha")
        assert stage.wait_protected() == ("alpha", "beta")
        assert stage.kinds("alpha").count("adopted") == 1
        stage.answers_go_on(5)
        qemu.kill()
        stage.wait_promoted("beta")
        stage.answers_go_on(5)
        assert stage.wait_protected() == ("beta", "alpha"), "coloha starts the next ones"
        stage.finish()
