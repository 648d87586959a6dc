"""The guest under plain QEMU: what it answers, what it sends, what it does when it cannot."""

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lab.client import start_client
from lab.namespace import wait_until
from lab.sniffer import forgotten, start_sniffer
from lab.topology import Topology
from tests.lab.vm import MAC, Vm

pytestmark = pytest.mark.qemu

BUSY, IDLE = "10.77.0.10", "10.77.0.11"
IDLE_MAC = "52:54:00:00:00:02"


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[Topology, Vm, Vm]]:
    """One guest that sends and writes, at the address it has by itself, and one that does not."""
    with Topology() as topology:
        alpha, beta = topology.hosts.values()
        busy = Vm(alpha, "dirty=4000 beacon=5000")
        idle = Vm(beta, f"ip4={IDLE}/24", mac=IDLE_MAC)
        for guest in (busy, idle):
            guest.wait_ready()
        yield topology, busy, idle


def connect(topology: Topology, address: str = BUSY) -> socket.socket:
    return topology.client.inside(
        lambda: socket.create_connection((address, 7), timeout=20), ("net",)
    )


def test_one_client_finds_every_answer_right(guests: tuple[Topology, Vm, Vm]) -> None:
    topology = guests[0]
    client = start_client(topology.client, f"{BUSY}:7", topology.directory / "one")
    early = client.wait_for_answers(20)
    last = client.stop()
    assert last.flawless
    assert last.answers == last.requests > early.answers
    assert client.process.returncode == 0


def test_many_requests_in_one_segment_are_all_answered(guests: tuple[Topology, Vm, Vm]) -> None:
    topology = guests[0]
    path = topology.directory / "window"
    client = start_client(topology.client, f"{BUSY}:7", path, "--window", "500")
    client.wait_for_answers(2000)
    assert client.stop().flawless


def test_clients_share_one_counter(guests: tuple[Topology, Vm, Vm]) -> None:
    topology = guests[0]
    clients = [
        start_client(
            topology.client, f"{IDLE}:7", topology.directory / name, "--shared", "--name", name
        )
        for name in ("c1", "c2", "c3")
    ]
    for client in clients:
        client.wait_for_answers(20)
    assert all(client.stop().flawless for client in clients)
    total = sum(client.reports()[-1].answers for client in clients)
    with connect(topology, IDLE) as last:
        last.sendall(b"x.0\n")
        assert last.recv(64) == b"x.0 %d\n" % (total + 1)


def test_requests_may_come_in_pieces_and_in_heaps(guests: tuple[Topology, Vm, Vm]) -> None:
    with connect(guests[0]) as connection, connection.makefile("rb") as lines:
        for piece in (b"a", b"b\nc", b"d\n\ne", b"f\n"):
            connection.sendall(piece)
        answers = [lines.readline().rpartition(b" ") for _ in range(4)]
        assert [answer[0] for answer in answers] == [b"ab", b"cd", b"", b"ef"]
        first = int(answers[0][2])
        assert [int(answer[2]) - first for answer in answers] == [0, 1, 2, 3]


def test_a_client_that_does_not_read_gets_everything_later(
    guests: tuple[Topology, Vm, Vm],
) -> None:
    count = 20_000
    with connect(guests[0]) as connection, connect(guests[0]) as other:
        connection.setblocking(False)
        requests = b"".join(b"%d\n" % n for n in range(count))
        sent = 0
        while True:  # until neither side's kernel takes more
            try:
                sent += connection.send(requests[sent:])
            except BlockingIOError:
                break
            if sent == len(requests):
                break
        other.sendall(b"other\n")
        assert other.recv(64).startswith(b"other ")  # the guest does not wait for the slow one
        connection.settimeout(20)
        with connection.makefile("rb") as lines:
            for n in range(requests.count(b"\n", 0, sent)):
                assert lines.readline().startswith(b"%d " % n)


def test_a_line_too_long_ends_the_connection_and_harms_no_other(
    guests: tuple[Topology, Vm, Vm],
) -> None:
    with connect(guests[0]) as good, connect(guests[0]) as bad:
        bad.sendall(b"x" * 5000)
        with suppress(ConnectionResetError):  # what it had not read is thrown away
            assert bad.recv(64) == b""
        good.sendall(b"good\n")
        assert good.recv(64).startswith(b"good ")


def test_beacons_grow_by_one_at_the_tap_and_at_the_switch(
    guests: tuple[Topology, Vm, Vm],
) -> None:
    topology, busy, _ = guests
    files = (topology.directory / "world.frames", topology.directory / "tap.frames")
    world = start_sniffer(topology.world, ["up-alpha", "up-beta"], MAC, files[0])
    tap = start_sniffer(busy.host, ["vm0"], MAC, files[1])
    wait_until(lambda: len(tap.capture().beacons()) > 100, "beacons", 60)
    at_switch, at_tap = world.stop(), tap.stop()
    for capture in (at_switch, at_tap):
        numbers = capture.beacons()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert (len(numbers) > 90, forgotten(numbers), capture.dropped) == (True, [], 0)
        times = [frame.t_ns for frame in capture.frames]
        assert times == sorted(times)
    assert at_switch.beacons("up-beta") == []
    # The same frame met the tap before the switch.
    seen = {frame.number: frame.t_ns for frame in at_tap.frames if frame.number}
    both = [frame for frame in at_switch.frames if frame.number in seen]
    assert len(both) > 80
    assert all(seen[frame.number] <= frame.t_ns for frame in both if frame.number)


def test_a_beacon_is_heard_by_any_client(guests: tuple[Topology, Vm, Vm]) -> None:
    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("10.77.0.255", 7777))
        return opened

    with guests[0].client.inside(listen, ("net",)) as receiver:
        receiver.settimeout(20)
        datagrams = [receiver.recvfrom(100) for _ in range(3)]
    assert {address for _, (address, _) in datagrams} == {BUSY}
    beacons = [struct.unpack("!6sQQQ", data) for data, _ in datagrams]
    assert {magic for magic, *_ in beacons} == {b"COLOHA"}
    assert [number for _, number, _, _ in beacons] == [beacons[0][1] + k for k in range(3)]
    for (_, _, _, mark), (_, _, before, _) in itertools.pairwise(beacons):
        assert before == mark


def test_only_the_guest_that_was_asked_to_sends_and_writes(
    guests: tuple[Topology, Vm, Vm],
) -> None:
    topology, busy, idle = guests
    sniffer = start_sniffer(topology.world, ["up-beta"], IDLE_MAC, topology.directory / "idle")
    with connect(topology, IDLE) as connection:
        connection.sendall(b"a\n")
        assert connection.recv(64).startswith(b"a ")
    capture = sniffer.stop()
    assert capture.beacons() == []
    assert {"tcp"} <= {frame.kind for frame in capture.frames} <= {"tcp", "arp"}
    # 4000 pages of 4 KiB are 15.6 MiB/s, in a second in which the machine is not too busy.
    wait_until(lambda: busy.dirty_rate_mb_s() > idle.dirty_rate_mb_s() + 5, "its writes", 60)


def test_a_guest_without_a_network_says_so_and_powers_off() -> None:
    with Topology(["alpha"]) as topology:
        guest = Vm(topology.hosts["alpha"], network=False)
        assert guest.process.wait(60) == 0
        assert "lab guest: FAILED: no eth0 within 3 s" in guest.said()


def test_a_guest_with_a_wrong_address_says_so_and_powers_off() -> None:
    with Topology(["alpha"]) as topology:
        guest = Vm(topology.hosts["alpha"], "ip4=10.77.0.10")
        assert guest.process.wait(60) == 0
        assert "lab guest: FAILED: ip4= must be ADDRESS/PREFIX" in guest.said()
