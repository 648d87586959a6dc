"""Strict output commit: what left the host is never newer than what the secondary holds.

The guest sends numbered beacons. Those that leave the primary's host are stamped by the kernel on
the cable; those of the secondary's guest, which nobody must hear, are diverted from its sink to a
socket and stamped too. Each beacon names the one before it, so the secondary's show which state it
loaded. If the secondary still speaks from a state older than number n after n has left the
primary's host, n was let go before its commit.
"""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab.assets import load_assets
from lab.cluster import MAC, Timing
from lab.namespace import Namespace
from lab.sniffer import forgotten, stamp, stamp_of, start_sniffer
from tests.e2e.support import Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

EPOCHS = 200
PORT = 9999
# Long enough for the secondary's guest to speak between two loads.
TIMING = Timing(period="30ms", interval="200ms", misses=20, stall_timeout="10s")


@dataclass(frozen=True)
class Heard:
    """A beacon: kernel time in ns of the wall clock, its number, whom it follows, its own mark."""

    t_ns: int
    number: int
    before: int = 0
    mark: int = 0


class SinkListener(threading.Thread):
    """Hears what the secondary's guest says into its sink, inside one host."""

    def __init__(self, host: Namespace) -> None:
        super().__init__(daemon=True)
        self.heard: list[Heard] = []
        self._socket = host.inside(self._open, ("net",))
        self._stopped = False

    @staticmethod
    def _open() -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        stamp(listener)
        listener.bind(("127.0.0.1", PORT))
        listener.settimeout(0.2)
        return listener

    def run(self) -> None:
        while not self._stopped:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, 64)
            except TimeoutError:
                continue
            place = data.find(b"COLOHA")
            if place >= 0:
                words = struct.unpack_from("!QQQ", data, place + 6)
                self.heard.append(Heard(stamp_of(ancillary), *words))
        self._socket.close()

    def stop(self) -> list[Heard]:
        self._stopped = True
        self.join()
        return self.heard


def loads(sunk: list[Heard]) -> Iterator[tuple[int, int]]:
    """Yield each state the secondary went on from, and when it last spoke from it."""
    for is_first, heard, following in zip(
        [True, *(b.before != a.mark for a, b in itertools.pairwise(sunk))],
        sunk,
        [*sunk[1:], None],
        strict=True,
    ):
        if is_first:
            state = heard.number - 1
        if following is None or following.before != heard.mark:
            yield state, heard.t_ns


def too_early(left: list[Heard], sunk: list[Heard]) -> list[int]:
    """Return the numbers that left although the secondary went on from an older state after."""
    spoken = list(loads(sunk))
    return [
        frame.number
        for frame in left
        if any(state < frame.number and last_ns > frame.t_ns for state, last_ns in spoken)
    ]


def test_the_judge_can_say_no() -> None:
    """States 10 and then 12 were loaded, the latter at 200."""
    sunk = [
        Heard(100, 11, 1010, 1),
        Heard(150, 12, 1, 2),
        Heard(200, 13, 1012, 3),
        Heard(250, 14, 3, 4),
    ]
    assert list(loads(sunk)) == [(10, 150), (12, 250)]
    assert too_early([Heard(120, 10), Heard(151, 12), Heard(300, 14)], sunk) == []
    assert too_early([Heard(149, 11)], sunk) == [11]
    assert too_early([Heard(149, 12), Heard(210, 13), Heard(251, 14)], sunk) == [12, 13]


def watched_qemu(folder: Path) -> Path:
    """Return a QEMU whose secondary's sink is a socket instead of nothing."""
    script = folder / "qemu"
    script.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        "  shift\n"
        "  case $word in\n"
        f'    null,id=*) word="udp,host=127.0.0.1,port={PORT},${{word#null,}}" ;;\n'
        "  esac\n"
        '  set -- "$@" "$word"\n'
        "done\n"
        f'exec {load_assets().qemu} "$@"\n'
    )
    script.chmod(0o755)
    return script


def epochs(stage: Scene, primary: str) -> int:
    return int(stage.cluster.status(primary).get("epochs", 0))


@pytest.mark.parametrize("delay_ms", [0, 20])
def test_output_commit(tmp_path: Path, delay_ms: int) -> None:
    """Over 200 epochs or more with a daemon that is late by so much at every message of QEMU."""
    program = ["-m", "lab.slow", str(delay_ms)] if delay_ms else None
    qemu = watched_qemu(tmp_path)
    # A late daemon gives it more time.
    timing = TIMING if delay_ms else replace(TIMING, period="50ms")
    words = f"beacon={4000 if delay_ms else 1000}"
    with scene(timing, guest_words=words, program=program, qemu=qemu) as stage:
        primary, secondary = stage.wait_protected()
        hosts, topology = stage.topology.hosts, stage.topology
        listener = SinkListener(hosts[secondary])
        listener.start()
        first = epochs(stage, primary)
        ports = {name: host.ports["clients"] for name, host in hosts.items()}
        sniffer = start_sniffer(
            topology.world, [*ports.values()], MAC, topology.directory / "frames"
        )
        # A load shows only if the secondary's guest comes to speak before the next one.
        stage.cluster.wait(
            f"{EPOCHS} epochs, and loads that show",
            lambda: (
                epochs(stage, primary) >= first + EPOCHS
                and len([*loads(listener.heard[:])]) > EPOCHS / 2
            ),
            200,
        )
        stage.cluster.kill_qemu(primary)
        stage.wait_promoted(secondary)
        time.sleep(0.2)
        capture = sniffer.stop()
        sunk = listener.stop()
        stage.wait_protected()
        stage.answers_go_on(5)
        stage.finish()

    beacons = [
        (f.interface, Heard(f.t_ns, f.number)) for f in capture.frames if f.number is not None
    ]
    left = [beacon for interface, beacon in beacons if interface == ports[primary]]
    after = [beacon for interface, beacon in beacons if interface == ports[secondary]]
    assert not capture.dropped
    assert len(left) > EPOCHS, "the guest was hardly heard"
    assert not too_early(left, sunk)
    assert after, "the survivor was not heard"
    assert not forgotten([frame.number for frame in [*left, *after]])
