"""The sniffer: what it makes of frames, and what it hears in a namespace."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.namespace import wait_until
from lab.sniffer import (
    Frame,
    RunningSniffer,
    beacon_number,
    classify,
    forgotten,
    read_capture,
    start_sniffer,
)
from lab.topology import Host, Topology

MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"


def ethernet(ethertype: int, payload: bytes, mac: str = MAC) -> bytes:
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + ethertype.to_bytes(2) + payload


def ip4(protocol: int, payload: bytes, options: bytes = b"") -> bytes:
    header = bytes([0x45 + len(options) // 4]) + bytes(8) + bytes([protocol]) + bytes(10)
    return header + options + payload


def beacon(number: int, mac: str = MAC, port: int = 7777) -> bytes:
    payload = b"COLOHA" + number.to_bytes(8)
    datagram = (4444).to_bytes(2) + port.to_bytes(2) + bytes(4) + payload
    return ethernet(0x0800, ip4(17, datagram), mac)


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (beacon(2**40), ("beacon", 2**40)),
        (beacon(7) + bytes(4), ("beacon", 7)),
        (beacon(7, port=7778), ("udp", None)),
        (ethernet(0x0800, ip4(6, b"COLOHA" + bytes(20))), ("tcp", None)),
        (ethernet(0x0800, ip4(1, bytes(8))), ("icmp", None)),
        (ethernet(0x0800, ip4(47, bytes(8))), ("ip", None)),
        (ethernet(0x0806, bytes(28)), ("arp", None)),
        (ethernet(0x8035, bytes(28)), ("rarp", None)),
        (ethernet(0x86DD, bytes(40)), ("ipv6", None)),
        (ethernet(0x88CC, bytes(9)), ("other", None)),
        (ethernet(0x0800, b"E"), ("other", None)),
        (b"", ("other", None)),
    ],
)
def test_frames_are_told_apart(frame: bytes, found: tuple[str, int | None]) -> None:
    assert classify(frame) == found


def test_a_beacon_behind_ip_options_is_a_beacon() -> None:
    datagram = beacon(9)[34:]
    assert classify(ethernet(0x0800, ip4(17, datagram, bytes(8)))) == ("beacon", 9)


@given(st.binary(max_size=100))
def test_no_frame_is_too_strange(frame: bytes) -> None:
    for data in (frame, ethernet(0x0800, frame), ethernet(0x0800, ip4(17, frame))):
        assert (classify(data)[1] is None) or b"COLOHA" in data


def test_a_beacon_cut_short_has_no_number() -> None:
    assert beacon_number(b"COLOHA" + bytes(7)) is None
    assert beacon_number(b"COLOHO" + bytes(8)) is None
    assert beacon_number(b"COLOHA" + (258).to_bytes(8) + b"more") == 258


def test_forgotten_is_what_was_said_before() -> None:
    assert forgotten([]) == []
    assert forgotten([5, 6, 9, 10]) == []
    assert forgotten([5, 6, 7, 6, 7, 8]) == [6, 7]
    assert forgotten([5, 5]) == [5]
    assert forgotten([5, 1, 6]) == [1]


def test_an_unfinished_line_is_left(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    line = json.dumps({"t_ns": 1, "interface": "a", "kind": "tcp", "length": 60})
    path.write_text(line + "\n" + line[:9])
    capture = read_capture(path)
    assert (capture.frames, capture.dropped) == ([Frame(1, "a", "tcp", 60)], None)
    path.write_text(line + '\n{"dropped": 3}\n')
    assert read_capture(path).dropped == 3


def send(host: Host, *frames: bytes) -> None:
    """Send frames out of the host's uplink."""
    with uplink(host) as out:
        for frame in frames:
            out.send(frame)


def uplink(host: Host) -> socket.socket:
    out = host.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), ("net",))
    out.bind(("uplink", 0))
    return out


def heard(sniffer: RunningSniffer, count: int) -> None:
    wait_until(lambda: len(sniffer.capture().frames) >= count, f"{count} frames")


@pytest.mark.qemu
def test_only_the_chosen_machine_is_heard_and_where_it_speaks(
    topology: Topology, alpha: Host, beta: Host, tmp_path: Path
) -> None:
    sniffer = start_sniffer(topology.world, ["up-alpha", "up-beta"], MAC, tmp_path / "frames")
    send(alpha, beacon(1), beacon(99, OTHER_MAC), ethernet(0x88B5, bytes(46)))
    heard(sniffer, 2)
    send(beta, beacon(2))
    heard(sniffer, 3)
    capture = sniffer.stop()
    assert [(frame.interface, frame.kind, frame.number) for frame in capture.frames] == [
        ("up-alpha", "beacon", 1),
        ("up-alpha", "other", None),
        ("up-beta", "beacon", 2),
    ]
    assert (capture.beacons(), capture.beacons("up-beta"), capture.dropped) == ([1, 2], [2], 0)
    times = [frame.t_ns for frame in capture.frames]
    assert times == sorted(times)


@pytest.mark.qemu
def test_frames_are_stamped_from_the_first_one_on(
    topology: Topology, alpha: Host, tmp_path: Path
) -> None:
    """Many come while the sniffer starts: one that is stamped when it is read seems the latest."""
    done = threading.Event()

    def speak() -> None:
        with uplink(alpha) as out:
            while not done.is_set():
                out.send(beacon(1))
                time.sleep(0.0001)

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        for turn in range(5):
            sniffer = start_sniffer(topology.world, ["up-alpha"], MAC, tmp_path / f"{turn}")
            heard(sniffer, 10)
            times = [frame.t_ns for frame in sniffer.stop().frames]
            assert times == sorted(times)
    finally:
        done.set()
        speaker.join()


@pytest.mark.qemu
def test_an_interface_may_go_and_come_back(topology: Topology, alpha: Host, tmp_path: Path) -> None:
    sniffer = start_sniffer(topology.world, ["up-alpha"], MAC, tmp_path / "frames")
    send(alpha, beacon(1))
    heard(sniffer, 1)
    alpha.power_off()
    alpha.power_on()
    send(alpha, beacon(2))
    heard(sniffer, 2)
    assert sniffer.stop().beacons() == [1, 2]


@pytest.mark.qemu
def test_a_sniffer_that_lives_elsewhere_outlives_the_host_it_hears(
    topology: Topology, alpha: Host, beta: Host, tmp_path: Path
) -> None:
    sniffer = start_sniffer(topology.world, ["uplink"], MAC, tmp_path / "frames", network=alpha)
    alpha.freeze()
    send(beta, ethernet(0x88B5, bytes(46)))
    heard(sniffer, 1)
    alpha.thaw()
    alpha.power_off()
    capture = sniffer.stop()
    assert [(frame.interface, frame.kind) for frame in capture.frames] == [("uplink", "other")]
    assert capture.dropped == 0


@pytest.mark.qemu
def test_a_sniffer_ends_at_its_limit(topology: Topology, alpha: Host, tmp_path: Path) -> None:
    sniffer = start_sniffer(topology.world, ["up-alpha"], MAC, tmp_path / "frames", "--limit", "10")
    send(alpha, *(beacon(number) for number in range(1000)))
    wait_until(lambda: sniffer.capture().dropped is not None, "the sniffer's end")
    assert sniffer.capture().beacons() == list(range(10))


@pytest.mark.qemu
def test_what_a_burst_cost_is_counted(topology: Topology, alpha: Host, tmp_path: Path) -> None:
    sniffer = start_sniffer(topology.world, ["up-alpha"], MAC, tmp_path / "frames")
    for start in range(0, 20_000, 200):  # more at a time may be lost before the sniffer's socket
        send(alpha, *(beacon(number) for number in range(start, start + 200)))

    def caught_up() -> bool:
        send(alpha, ethernet(0x88B5, bytes(46)))
        return any(frame.kind == "other" for frame in sniffer.capture().frames)

    wait_until(caught_up, "the frame after the burst")
    capture = sniffer.stop()
    assert capture.dropped is not None
    assert 20_000 - capture.dropped <= len(capture.beacons()) <= 20_000
    assert capture.beacons()[:100] == list(range(100))
    assert forgotten(capture.beacons()) == []
