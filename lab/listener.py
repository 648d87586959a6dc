"""Hears the guest on both hosts' taps and reads the witness's record, to check for one voice."""

import contextlib
import json
import os
import threading
import time
from collections import deque
from pathlib import Path

from coloha.config.nic import Nic
from coloha.qemu.command_line import tap_name
from lab.cluster import MAC, PAIR
from lab.namespace import LabError
from lab.sniffer import RunningSniffer, read_capture, start_sniffer
from lab.tail import Tail
from lab.topology import Host, Topology
from lab.voices import Said, VoiceChecker

TAP = tap_name(PAIR, 0, Nic(mac=MAC, bridge="br0"))
LOOK_S = 0.01
"""How often the record is read. Between two owners it is protected, which takes a copy of the VM,
some 100 ms: no owner is missed.
"""
SETTLED_NS = 500_000_000
"""Frames younger than this may not all have been written by the sniffers yet."""
AFTERWARDS_NS = 1_000_000_000
"""For how long after a stop what was under way may be late: a QEMU that goes on first of all does
what its socket holds, on a machine that is busy with much else.
"""
_NO_END = ("--limit", str(10**12), "--seconds", str(10**9))


class Listener:
    """A sniffer at each tap, before the bridge, and a thread that watches the record."""

    def __init__(self, topology: Topology) -> None:
        self.voices = VoiceChecker()
        self.dropped = 0
        """Frames that the kernel had no room for: they were not judged."""
        self._topology = topology
        self._sniffers: dict[str, RunningSniffer] = {}
        self._tails: list[tuple[str, Tail]] = []
        self._young: list[Said] = []
        self._lives: deque[int] = deque()
        self._owners: deque[tuple[int, str, int]] = deque()
        self._seen_ns = -1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Miss nothing from now on."""
        for host in self._topology.hosts.values():
            self.listen(host)
        self._thread.start()

    def listen(self, host: Host) -> None:
        """Hear a host's tap; again if the host lost power, since it then has a new network."""
        path = self._topology.directory / f"frames-{len(self._tails)}.jsonl"
        world, before = self._topology.world, self._sniffers.get(host.name)
        self._sniffers[host.name] = start_sniffer(world, [TAP], MAC, path, *_NO_END, network=host)
        self._tails.append((host.name, Tail(path)))
        if before is not None:
            self._end(before)

    def new_life(self, at_ns: int) -> None:
        """The VM boots anew: what it says after `at_ns` (Unix time) belongs to another life."""
        self._lives.append(at_ns)

    def stood_still(self, side: str, start_ns: int, end_ns: int) -> None:
        """See `VoiceChecker`; `end_ns` is when the processes were told to go on."""
        self.voices.stood_still(side, start_ns, end_ns + AFTERWARDS_NS)

    def judge(self) -> None:
        """Judge all that was said up to now, which takes a moment to come in.

        :raises LabError: if a sniffer was too late to know the order, or the record went back.
        """
        until_ns = time.time_ns()
        time.sleep(SETTLED_NS / 1e9)
        self._look()
        self._take_in()
        old = [said for said in self._young if said.t_ns <= until_ns]
        self._young = [said for said in self._young if said.t_ns > until_ns]
        self._hear(sorted(old, key=lambda said: said.t_ns))

    def account(self) -> str:
        """What was heard up to now and what the record said, in words, whatever went wrong."""
        voices, lines = self.voices, []
        try:
            self.judge()
        except LabError as error:
            lines.append(str(error))
        lines.append(f"frames: {voices.counts}, forgotten {voices.forgotten}")
        lines += [f"heard: {example}" for example in voices.examples]
        lines += [f"record: {turn}" for turn in voices.turns[-6:]]
        return "\n".join(lines)

    def stop(self) -> None:
        """Judge what is left, and end."""
        self._stop.set()
        self._thread.join()
        self.judge()
        for sniffer in self._sniffers.values():
            self._end(sniffer)

    def _end(self, sniffer: RunningSniffer) -> None:
        # What it still held is read by the tail, or is younger than all that is judged.
        self.dropped += sniffer.stop().dropped or 0

    def _take_in(self) -> None:
        for side, tail in self._tails:
            self._young += [
                Said(frame.t_ns, side, frame.number) for frame in read_capture(tail).frames
            ]

    def _hear(self, frames: list[Said]) -> None:
        try:
            while self._owners:
                self.voices.owner(*self._owners.popleft())
            for said in frames:
                while self._lives and said.t_ns > self._lives[0]:
                    self._lives.popleft()
                    self.voices.new_life()
                self.voices.hear(said)
        except ValueError as error:
            raise LabError(f"the guest's frames cannot be judged: {error}") from error

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        """Note the record if it was replaced since the last look."""
        path = self._topology.witness / f"{PAIR}.json"
        with self._lock, contextlib.suppress(FileNotFoundError):
            changed_ns, text = _read(path)
            if changed_ns != self._seen_ns:
                self._seen_ns = changed_ns
                record = json.loads(text)
                # The file was written before it took the old one's place: no later than the swap.
                self._owners.append((changed_ns, record["primary"], record["generation"]))


def _read(path: Path) -> tuple[int, str]:
    """When a file was written (ns of Unix time), and what it says."""
    with path.open() as file:
        return os.fstat(file.fileno()).st_mtime_ns, file.read()
