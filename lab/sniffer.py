"""Records which frames a machine sent, where, and when the kernel saw them.

    python -m lab.sniffer --mac 52:54:00:00:00:01 --interface up-alpha --interface up-beta FILE

Hears what comes *in* through the named interfaces of its namespace from the given source address:
at a switch port that is what the host behind it says, at a tap it is what the guest says, before
anything holds it back. Interfaces may come and go. Writes one JSON object per frame, and at the end
(SIGTERM, --limit frames or --seconds) one that says how many frames the kernel had to drop.
"""

import argparse
import contextlib
import ctypes
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lab.namespace import CHECKOUT, PATIENCE_S, LabError, Namespace, wait_until
from lab.tail import Tail

BEACON_PORT = 7777
BEACON_MAGIC = b"COLOHA"

_ETH_P_ALL = 3
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_BUFFER = 1 << 25
_KINDS = {0x0806: "arp", 0x8035: "rarp", 0x86DD: "ipv6"}
_IP_KINDS = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `t_ns` is the kernel's wall clock when the frame came in (ns of Unix time)."""

    t_ns: int
    interface: str
    kind: str
    """beacon, tcp, udp, icmp, ip, arp, rarp, ipv6 or other."""
    length: int
    number: int | None = None
    """Of a beacon: its sequence number."""


@dataclass(frozen=True, slots=True)
class Capture:
    """All that a sniffer recorded."""

    frames: list[Frame]
    dropped: int | None
    """Frames that the kernel had no room for; None while the sniffer is at work."""

    def beacons(self, interface: str | None = None) -> list[int]:
        """The numbers of the beacons heard, in order; those of one interface if it is given."""
        return [
            frame.number
            for frame in self.frames
            if frame.number is not None and interface in {None, frame.interface}
        ]


def classify(frame: bytes) -> tuple[str, int | None]:
    """The kind of an Ethernet frame and, if it is a beacon, its number."""
    if len(frame) < 14:
        return "other", None
    ethertype = int.from_bytes(frame[12:14])
    if ethertype != 0x0800 or len(frame) < 34:
        return _KINDS.get(ethertype, "other"), None
    packet = frame[14:]
    kind = _IP_KINDS.get(packet[9], "ip")
    datagram = packet[(packet[0] & 15) * 4 :]
    number = beacon_number(datagram[8:]) if kind == "udp" else None
    if number is None or int.from_bytes(datagram[2:4]) != BEACON_PORT:
        return kind, None
    return "beacon", number


def beacon_number(payload: bytes) -> int | None:
    """The sequence number that a beacon's payload carries; None if it is no beacon's."""
    if not payload.startswith(BEACON_MAGIC) or len(payload) < len(BEACON_MAGIC) + 8:
        return None
    return int.from_bytes(payload[len(BEACON_MAGIC) :][:8])


def forgotten(numbers: Iterable[int]) -> list[int]:
    """The beacons that the machine sent although it had sent them, or later ones, before.

    A machine that goes on from a state older than what it has said repeats itself; one that keeps
    the promise of output commit never does, whatever happens to it.
    """
    highest, result = -1, []
    for number in numbers:
        if number <= highest:
            result.append(number)
        highest = max(highest, number)
    return result


def read_capture(source: Path | Tail) -> Capture:
    """What a sniffer has written so far, or since the last time; an unfinished line is left."""
    tail = source if isinstance(source, Tail) else Tail(source)
    frames, dropped = [], None
    for line in tail.lines():
        entry = json.loads(line)
        if "dropped" in entry:
            dropped = entry["dropped"]
        else:
            frames.append(Frame(**entry))
    return Capture(frames, dropped)


class RunningSniffer:
    """A sniffer at work in a namespace, writing to `path`."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self._process, self.path = process, path

    def capture(self) -> Capture:
        """What it has recorded so far."""
        return read_capture(self.path)

    def stop(self) -> Capture:
        """End it and return all that it recorded."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        return self.capture()


def start_sniffer(
    namespace: Namespace,
    interfaces: Sequence[str],
    mac: str,
    path: Path,
    *options: str,
    network: Namespace | None = None,
) -> RunningSniffer:
    """Start a sniffer in a namespace; when this returns, it misses nothing.

    `network`: whose network it hears, if not that of the namespace it lives in. A host's sniffer
    that lives elsewhere is neither stopped nor killed with the host's own processes.
    """
    chosen = [word for name in interfaces for word in ("--interface", name)]
    with (network or namespace).inside(lambda: _open_socket(_bytes(mac)), ("net",)) as packets:
        number = packets.fileno()
        chosen += ["--socket", str(number)]
        argv = [sys.executable, "-m", "lab.sniffer", "--mac", mac, *chosen, *options, str(path)]
        process = namespace.popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, pass_fds=[number])
    assert process.stdout is not None
    with process.stdout:
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        if not ready or process.stdout.readline() != b"ready\n":
            process.kill()
            raise LabError(f"{namespace.name}: the sniffer did not start")
    return RunningSniffer(process, path)


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _open_socket(mac: bytes) -> socket.socket:
    """A packet socket for frames that come in from `mac`, by whatever interface."""
    # ldw [6]; jne high, drop; ldh [10]; jne low, drop; accept; drop
    high, low = struct.unpack("!IH", mac)
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 6),
            (0x15, 0, 3, high),
            (0x28, 0, 0, 10),
            (0x15, 0, 1, low),
            (0x06, 0, 0, 0x40000),
            (0x06, 0, 0, 0),
        )
    )
    held = ctypes.create_string_buffer(program)
    descriptor = struct.pack("HL", len(program) // 8, ctypes.addressof(held))
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
    packets.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    try:
        packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:  # only real root may exceed net.core.rmem_max
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    packets.setblocking(False)
    stamp(packets)
    # What came before the filter was in place, or was not stamped as it came in, is no record; nor
    # is what was lost of it: reading starts the counts anew.
    with contextlib.suppress(BlockingIOError):
        while True:
            packets.recv(1)
    packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
    return packets


def stamp(listener: socket.socket) -> None:
    """Have the kernel stamp what comes in for `listener`, from now on.

    It begins a moment after it is told to, and until then stamps a packet when that is read
    (net/core/dev.c, net_enable_timestamp). So this sends itself datagrams until one carries a time
    from before it was read. Needs `lo`.

    :raises LabError: if that does not happen.
    """
    listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        probe.bind(("127.0.0.1", 0))
        probe.settimeout(PATIENCE_S)

        def stamped() -> bool:
            probe.sendto(b"", probe.getsockname())
            select.select([probe], [], [], PATIENCE_S)
            read_at = time.time_ns()
            return stamp_of(probe.recvmsg(1, 64)[1]) < read_at

        wait_until(stamped, "the kernel's time stamps")


def stamp_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """When the kernel saw what was read with `ancillary`, ns of Unix time."""
    seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
    return int(seconds * 1_000_000_000 + nanoseconds)


class Sniffer:
    """Writes one line per frame until told to stop."""

    def __init__(self, packets: socket.socket, interfaces: set[str], out: TextIO) -> None:
        self._socket, self._interfaces, self._out = packets, interfaces, out
        self._stopped = False
        self.frames = 0

    def stop(self, *_: object) -> None:
        """End soon; what the kernel holds by then is still written."""
        self._stopped = True

    def run(self, limit: int, seconds: float) -> None:
        """Record at most `limit` frames for at most `seconds`."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not self._stopped and self.frames < limit and time.monotonic() < end:
            poll.poll(50)
            self._drain(limit)
        self._drain(limit)
        counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._out.write(json.dumps({"dropped": struct.unpack("II", counts)[1]}) + "\n")
        self._out.flush()

    def _drain(self, limit: int) -> None:
        """Write all that has come in."""
        with contextlib.suppress(BlockingIOError):
            while self.frames < limit:
                data, ancillary, _, (interface, *_rest) = self._socket.recvmsg(65536, 64)
                if interface in self._interfaces:
                    self._write(data, ancillary, interface)
        self._out.flush()

    def _write(self, data: bytes, ancillary: list[tuple[int, int, bytes]], interface: str) -> None:
        kind, number = classify(data)
        entry = {
            "t_ns": stamp_of(ancillary),
            "interface": interface,
            "kind": kind,
            "length": len(data),
        }
        self._out.write(json.dumps(entry if number is None else entry | {"number": number}) + "\n")
        self.frames += 1


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(prog="lab.sniffer", description="Records a machine's frames.")
    parser.add_argument("--mac", required=True, help="the source address of the frames")
    parser.add_argument("--interface", action="append", required=True, help="may be repeated")
    parser.add_argument("--socket", type=int, help="the packet socket that it was given")
    parser.add_argument("--limit", type=int, default=1_000_000, help="frames (1000000)")
    parser.add_argument("--seconds", type=float, default=600, help="time (600)")
    parser.add_argument("output", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.socket is None:
        packets = _open_socket(_bytes(options.mac))
    else:
        packets = socket.socket(fileno=options.socket)
    with options.output.open("w") as out:
        sniffer = Sniffer(packets, set(options.interface), out)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, sniffer.stop)
        print("ready", flush=True)
        sniffer.run(options.limit, options.seconds)


if __name__ == "__main__":
    main()
