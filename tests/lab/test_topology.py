"""Hosts, networks and their faults, on real namespaces."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.namespace import CHECKOUT, LabError, wait_until
from lab.topology import Host, Topology
from tests.lab.support import held, inhabited, reaches, spaces, udp

pytestmark = pytest.mark.qemu

BR0_IP = "10.77.0.20"


@pytest.fixture(autouse=True)
def _address(alpha: Host) -> None:
    alpha.call(["ip", "addr", "add", f"{BR0_IP}/24", "dev", "br0"])


def connected(topology: Topology, replication: bool, clients: bool) -> bool:
    """Whether beta reaches alpha over the replication link, and the client alpha, as expected."""
    alpha, beta = topology.hosts["alpha"], topology.hosts["beta"]
    return (
        reaches(beta, alpha, alpha.replication_ip, 50 if replication else 5) == replication
        and reaches(topology.client, alpha, BR0_IP, 50 if clients else 5) == clients
    )


def entries(host: Host) -> list[str]:
    """What the host sees in its witness folder."""
    return host.call(["ls", host.witness]).split()


def test_hosts_reach_each_other_and_the_client(topology: Topology) -> None:
    assert connected(topology, True, True)
    alpha, beta = topology.hosts.values()
    assert (alpha.replication_ip, beta.replication_ip) == ("10.9.0.1", "10.9.0.2")
    assert alpha.call(["hostname"]) == "alpha\n"
    # The networks are apart: no way leads from the clients to the replication link.
    assert not reaches(topology.client, alpha, alpha.replication_ip, 5)


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({"replication": True, "clients": False}, (False, True)),
        ({"replication": False, "clients": True}, (True, False)),
        ({"replication": True, "clients": True}, (False, False)),
    ],
)
def test_cut_and_mend(
    topology: Topology, alpha: Host, choice: dict[str, bool], left: tuple[bool, bool]
) -> None:
    alpha.cut(**choice, witness=False)
    assert connected(topology, *left)
    alpha.mend(**choice, witness=False)
    assert connected(topology, True, True)


def test_cut_and_mend_twice_are_cut_and_mend_once(topology: Topology, alpha: Host) -> None:
    alpha.cut()
    alpha.cut()
    assert connected(topology, False, False)
    assert entries(alpha) == []
    alpha.mend()
    alpha.mend()
    assert connected(topology, True, True)
    assert alpha.call(["mountpoint", alpha.witness])


def test_a_cut_takes_the_carrier_and_leaves_the_address(alpha: Host) -> None:
    alpha.cut(clients=False, witness=False)
    assert alpha.call(["cat", "/sys/class/net/repl0/carrier"]) == "0\n"
    assert alpha.replication_ip in alpha.call(["ip", "addr", "show", "dev", "repl0"])


def test_a_deaf_host_is_heard(topology: Topology, alpha: Host, beta: Host) -> None:
    alpha.mend()  # nothing to mend
    with udp(alpha, alpha.replication_ip) as sender, udp(beta, beta.replication_ip) as receiver:
        receiver.settimeout(5)
        sender.sendto(b"so that neither has to ask for the other's address", receiver.getsockname())
        receiver.recv(100)
        alpha.cut_one_way(clients=True)
        assert connected(topology, False, False)
        sender.sendto(b"heard", receiver.getsockname())
        assert receiver.recv(100) == b"heard"
    alpha.mend()
    assert connected(topology, True, True)


def test_a_host_may_be_deaf_to_one_thing_only(alpha: Host, beta: Host) -> None:
    with udp(beta, beta.replication_ip) as receiver, udp(beta, beta.replication_ip) as other:
        port = receiver.getsockname()[1]
        beta.cut_one_way(only=f"udp dport {port}")
        receiver.settimeout(0.2)
        other.settimeout(5)
        with udp(alpha, alpha.replication_ip) as sender:
            for each in (receiver, other):
                sender.sendto(b"?", each.getsockname())
        assert other.recv(9) == b"?"
        with pytest.raises(TimeoutError):
            receiver.recv(9)


def test_a_witness_that_is_back_makes_nobody_hear(alpha: Host, beta: Host) -> None:
    """Two faults at a time: the end of one is not the end of the other."""
    alpha.cut_one_way()
    alpha.cut(replication=False, clients=False)
    alpha.mend(replication=False, clients=False)
    assert not reaches(beta, alpha, alpha.replication_ip, 5)
    alpha.mend(clients=False, witness=False)
    assert reaches(beta, alpha, alpha.replication_ip)


def test_one_host_loses_the_witness_and_the_other_keeps_it(
    topology: Topology, alpha: Host, beta: Host
) -> None:
    (topology.witness / "record").write_text("1")
    assert (entries(alpha), entries(beta)) == (["record"], ["record"])
    alpha.cut(replication=False, clients=False)
    assert (entries(alpha), entries(beta)) == ([], ["record"])
    assert alpha.run(["mountpoint", "-q", alpha.witness]).returncode != 0
    alpha.call(["touch", alpha.witness / "stray"])
    assert entries(beta) == ["record"]
    alpha.mend()
    assert entries(alpha) == ["record"]
    alpha.call(["touch", alpha.witness / "shared"])
    assert entries(beta) == ["record", "shared"]


def test_popen_returns_the_process_itself(alpha: Host, beta: Host) -> None:
    process = alpha.popen(["sleep", "1000"])
    wait_until(lambda: bool(alpha.pids()[0].argv), "the command's own arguments")
    [seen] = alpha.pids()
    assert seen.argv == ("sleep", "1000")
    assert (seen.pid, seen.inner_pid != seen.pid) == (process.pid, True)
    assert os.getsid(process.pid) == process.pid  # out of the terminal's reach
    assert beta.pids() == []
    with pytest.raises(ProcessLookupError):
        beta.signal(process.pid, signal.SIGKILL)
    alpha.signal(process.pid, signal.SIGUSR1)
    wait_until(lambda: alpha.pids() == [], "its end, though nobody has asked for its status")
    assert process.wait(10) == -signal.SIGUSR1


def test_orphans_are_seen_and_leave_no_zombies(alpha: Host) -> None:
    alpha.call(["sh", "-c", "sleep 1000 > /dev/null 2>&1 &"])
    [orphan] = alpha.pids()
    alpha.signal(orphan.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{orphan.pid}").exists(), "the end of the orphan")


def test_a_command_that_does_not_end_is_ended(alpha: Host) -> None:
    with pytest.raises(LabError, match=r"alpha: sleep 1000: no end within 0\.2 s"):
        alpha.run(["sleep", "1000"], timeout_s=0.2)
    assert alpha.pids() == []


def test_a_command_that_fails_says_why(alpha: Host) -> None:
    with pytest.raises(LabError, match=r"alpha: ls /nowhere: .*No such file"):
        alpha.call(["ls", "/nowhere"])
    with pytest.raises(LabError, match="alpha: ip: Cannot find device"):
        alpha.ip("link set nothing up\n")


def test_a_frozen_host_does_nothing_until_it_thaws(alpha: Host) -> None:
    ticks = alpha.directory / "ticks"
    # The shell waits inside the kernel for a child that has not got to its exec yet.
    alpha.popen(["sh", "-c", f"while :; do echo >> {ticks}; true | cat; done"])
    wait_until(ticks.exists, "the first tick")
    for _ in range(20):
        alpha.freeze()
        assert {process.state for process in alpha.pids()} <= {"T", "D"}
        size = ticks.stat().st_size
        time.sleep(0.02)
        assert ticks.stat().st_size == size
        alpha.thaw()
        wait_until(lambda: ticks.stat().st_size > size, "a tick after the thaw")  # noqa: B023


def test_power_off_ends_everything_also_what_is_frozen(alpha: Host) -> None:
    processes = [alpha.popen(["sleep", "1000"]) for _ in range(3)]
    alpha.call(["sh", "-c", "sleep 1000 > /dev/null 2>&1 &"])
    assert len(alpha.pids()) == 4
    alpha.freeze()
    with held(alpha.pid) as namespaces:
        assert inhabited(namespaces)
        alpha.power_off()
        assert not inhabited(namespaces)
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 3
    assert (alpha.alive, alpha.pids()) == (False, [])
    with pytest.raises(LabError, match="alpha is off"):
        alpha.run(["true"])
    alpha.power_off()  # there is nothing left to do


def test_power_on_brings_back_a_fresh_host_with_its_folders(
    topology: Topology, alpha: Host
) -> None:
    (topology.witness / "record").touch()
    alpha.call(["touch", alpha.state / "kept"])
    alpha.call(["ip", "link", "add", "vm0", "type", "veth", "peer", "name", "vm1"])
    for _ in range(3):
        with held(alpha.pid) as before:
            alpha.power_off()
            alpha.power_on()
            assert not before & spaces(alpha.pid)
    assert alpha.run(["ip", "link", "show", "vm0"]).returncode != 0
    alpha.call(["ip", "addr", "add", f"{BR0_IP}/24", "dev", "br0"])
    assert connected(topology, True, True)
    assert (alpha.state / "kept").exists()
    assert entries(alpha) == ["record"]
    with pytest.raises(LabError, match="already on"):
        alpha.power_on()


def test_a_cut_outlasts_a_loss_of_power(topology: Topology, alpha: Host) -> None:
    (topology.witness / "record").touch()
    alpha.cut(clients=False)
    alpha.power_off()
    alpha.power_on()
    alpha.call(["ip", "addr", "add", f"{BR0_IP}/24", "dev", "br0"])
    assert connected(topology, False, True)
    assert entries(alpha) == []
    alpha.power_off()
    alpha.mend()
    alpha.power_on()
    alpha.call(["ip", "addr", "add", f"{BR0_IP}/24", "dev", "br0"])
    assert connected(topology, True, True)
    assert entries(alpha) == ["record"]


@pytest.mark.parametrize(
    ("end", "noticed"),
    [
        (lambda host, process: host.signal(process.pid, signal.SIGKILL), True),
        (lambda host, process: host.power_off(), False),
    ],
    ids=["killed process", "power off"],
)
def test_a_dead_process_says_goodbye_and_a_dead_host_does_not(
    alpha: Host, beta: Host, end: Callable[[Host, subprocess.Popen[str]], None], noticed: bool
) -> None:
    def listen() -> socket.socket:
        return socket.create_server((beta.replication_ip, 0))

    script = (
        "import socket, sys, time\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "s.send(b'here')\n"
        "time.sleep(1000)\n"
    )
    with beta.inside(listen, ("net",)) as listener:
        where = [beta.replication_ip, str(listener.getsockname()[1])]
        process = alpha.popen([sys.executable, "-c", script, *where])
        listener.settimeout(10)
        with listener.accept()[0] as connection:
            connection.settimeout(10)
            assert connection.recv(16) == b"here"
            end(alpha, process)
            connection.settimeout(10 if noticed else 0.5)
            with contextlib.nullcontext() if noticed else pytest.raises(TimeoutError):
                assert connection.recv(16) == b""


def test_topologies_side_by_side_do_not_meet(topology: Topology, alpha: Host) -> None:
    with Topology() as other:
        twin = other.hosts["alpha"]
        twin.call(["ip", "addr", "add", f"{BR0_IP}/24", "dev", "br0"])
        assert connected(topology, True, True)
        assert connected(other, True, True)
        assert not reaches(topology.client, twin, BR0_IP, 5)
        twin.power_off()
        assert connected(topology, True, True)
        twin.power_on()
        assert not spaces(twin.pid) & spaces(alpha.pid)
    assert connected(topology, True, True)


def test_a_topology_leaves_nothing_behind() -> None:
    with Topology() as made:
        everything = [made.world, made.client, *made.hosts.values()]
        processes = [space.popen(["sleep", "1000"]) for space in everything]
        place = made.directory
        with held(*(space.pid for space in everything)) as namespaces:
            assert (len(namespaces), inhabited(namespaces)) == (4 * len(everything), True)
            assert str(place) not in Path("/proc/self/mountinfo").read_text()
            made.close()
            assert not inhabited(namespaces)
    assert all(process.returncode == -signal.SIGKILL for process in processes)
    assert not place.exists()


def test_a_folder_that_was_given_is_kept(tmp_path: Path) -> None:
    with Topology(["solo"], directory=tmp_path / "lab") as made:
        made.hosts["solo"].call(["touch", "here"])
    assert (tmp_path / "lab/hosts/solo/here").exists()
    with Topology(["solo"], directory=tmp_path / "lab") as made:
        assert "here" in made.hosts["solo"].call(["ls"])


def test_a_host_name_that_makes_no_interface_name_is_refused() -> None:
    for name in ("", "Alpha", "a_b", "1a", "a" * 13):
        with pytest.raises(LabError, match="host name"):
            Topology([name])


def test_a_killed_run_leaves_no_process_and_no_namespace() -> None:
    script = (
        "import threading, time\n"
        "from lab.topology import Topology\n"
        "made = Topology()\n"
        "starter = threading.Thread(target=made.__enter__)\n"
        "starter.start(); starter.join()\n"  # it must not end with the thread that made it
        "everything = [made.world, made.client, *made.hosts.values()]\n"
        "pids = [space.popen(['sleep', '1000']).pid for space in everything]\n"
        "pids += [space.pid for space in everything]\n"
        "made.hosts['alpha'].freeze()\n"
        "print(made.directory, *pids, flush=True)\n"
        "time.sleep(1000)\n"
    )
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as run:
        assert run.stdout is not None
        place, *pids = run.stdout.readline().split()
        with held(*map(int, pids)) as namespaces:
            assert (len(pids), len(namespaces), inhabited(namespaces)) == (8, 16, True)
            run.kill()
            wait_until(lambda: not inhabited(namespaces), "the end of everything inside")
    assert place not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(place)
