"""The heartbeat datagram: layout, authentication, and what makes a repeated one worthless.

    offset  size
         0     4  magic "CoHA"
         4     1  version
         5     1  key id (the first byte of SHA-256 of the key)
         6     1  number of pairs
         7     1  zero
         8     8  sender: the first 8 bytes of SHA-256 of its name
        16     8  receiver, likewise
        24     8  nonce: random, new with each start of the sender
        32     8  sequence: grows by one with each datagram of this nonce
        40    16  echo: the receiver's nonce that the sender has proof of, and the newest sequence
                  accepted of it, else 0
        56    16  candidate: a receiver's nonce seen, but not proven, and its newest sequence,
                  else 0
        72    83  per pair: name hash, generation, session, gave up, commits, pulse, echo (8
                  each); the record's lineage and session, without a witness, else 0 (8 each);
                  pauses 4, partings 4, flags 2, phase 1
       end    32  HMAC-SHA256 over all that precedes, under the shared key

A datagram counts only if it carries this node's own nonce in `echo` or `candidate`: it was then
made after this node started, by someone who holds the key, in answer to a datagram of this node.
A new life of the peer counts once it answers a datagram that this node made after noticing it: a
life that is over cannot, even if its datagrams were held back and nobody has seen them before.
Replays of the sender's present life fail by their sequence, datagrams from before this node started
by the echo, and datagrams sent back to their sender by the names. The first exchange takes two
datagrams each way.

An attacker who replays old datagrams can fill the candidate slot, and so delay a node that has just
started; a proven nonce it cannot displace. The last thousand lives that were once proven cannot
fill the slot either.
"""

import hashlib
import hmac
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from coloha.core.events import PeerState
from coloha.core.phases import Phase
from coloha.core.record import Record

MAX_PAIRS = 16
"""Pairs a datagram carries: with more it would not fit an Ethernet frame."""

_MAGIC = b"CoHA"
_VERSION = 2
_HEADER = struct.Struct("!4sBBBx8s8sQQQQQQ")
_PAIR = struct.Struct("!8sQQQQQQQQIIHB")
_MAC_BYTES = 32
_PHASES = tuple(Phase)
_OWNER, _FOLLOWING, _COLO_EXITED = 1, 2, 4
_HAS_SESSION, _HAS_GIVEN_UP, _RESTARTING = 8, 16, 32
_HAS_RECORD, _PROTECTED, _LIVING, _CLAIMS = 64, 128, 256, 512
_OFFERS = 1024


class Reject(StrEnum):
    """Why a datagram was dropped."""

    MALFORMED = "malformed"
    VERSION = "version"
    KEY = "key"
    MAC = "mac"
    NAMES = "names"
    REPLAY = "replay"
    UNPROVEN = "unproven"


class RejectedError(Exception):
    """The datagram was dropped; `reason` counts it."""

    def __init__(self, reason: Reject) -> None:
        super().__init__(reason.value)
        self.reason = reason


def name_hash(name: str) -> bytes:
    """Return the 8 bytes that stand for a node or a pair."""
    return hashlib.sha256(name.encode()).digest()[:8]


@dataclass(slots=True)
class Link:
    """One end of the exchange of heartbeats between two nodes.

    `nonce` must be random, not 0, and new with each start of the daemon.
    """

    me: str
    peer: str
    key: bytes
    nonce: int
    sequence: int = 0
    proven: int = 0
    """The peer's nonce whose datagrams count."""
    highest: int = 0
    """The highest sequence accepted from `proven`."""
    candidate: int = 0
    candidate_highest: int = 0
    candidate_since: int = 0
    """Our own sequence when `candidate` was noticed."""
    others: tuple[bytes, ...] = ()
    """Keys that the peer may use as well, while keys are changed."""
    heard_with: bytes | None = None
    """The key of the last datagram that was accepted."""
    retired: deque[int] = field(default_factory=lambda: deque(maxlen=1000))
    """Nonces of the peer's earlier lives."""

    def pack(self, pairs: Mapping[str, PeerState]) -> bytes:
        """Return the next datagram to the peer, with the state of `pairs` by name."""
        if len(pairs) > MAX_PAIRS:
            raise ValueError(f"{len(pairs)} pairs do not fit: at most {MAX_PAIRS} per peer")
        self.sequence += 1
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            _key_id(self.key),
            len(pairs),
            name_hash(self.me),
            name_hash(self.peer),
            self.nonce,
            self.sequence,
            self.proven,
            self.highest,
            self.candidate,
            self.candidate_highest,
        )
        body = header + b"".join(_pack_pair(name, state) for name, state in pairs.items())
        return body + hmac.digest(self.key, body, "sha256")

    def unpack(self, datagram: bytes) -> dict[bytes, PeerState]:
        """Return the states in a datagram of the peer, by name hash.

        :raises RejectedError: and nothing is to be made of the datagram.
        """
        key, count, nonce, sequence, answered = self._verified(datagram)
        if nonce in self.retired or (nonce == self.proven and sequence <= self.highest):
            raise RejectedError(Reject.REPLAY)
        if nonce != self.proven:
            self._notice(nonce, sequence, answered)
        elif self.nonce not in answered:
            raise RejectedError(Reject.UNPROVEN)
        self.highest = sequence
        self.heard_with = key
        body = datagram[_HEADER.size : -_MAC_BYTES]
        return dict(self._unpack_pair(body, k * _PAIR.size) for k in range(count))

    def _unpack_pair(self, body: bytes, offset: int) -> tuple[bytes, PeerState]:
        name, *numbers, lineage, protects, pauses, partings, flags, phase = _PAIR.unpack_from(
            body, offset
        )
        generation, session, gave_up, committed, pulse, echo = numbers
        if phase >= len(_PHASES):
            raise RejectedError(Reject.MALFORMED)
        record = None
        if flags & _HAS_RECORD:
            primary, other = self.peer, self.me
            if not flags & _OWNER:
                primary, other = other, primary
            record = Record(f"{lineage:x}", generation, primary)
            if flags & _PROTECTED:
                record = record.protect(other, protects)
        return name, PeerState(
            phase=_PHASES[phase],
            generation=generation,
            owner=bool(flags & _OWNER),
            session=session if flags & _HAS_SESSION else None,
            gave_up=gave_up if flags & _HAS_GIVEN_UP else None,
            following=bool(flags & _FOLLOWING),
            colo_exited=bool(flags & _COLO_EXITED),
            committed=committed,
            pulse=pulse,
            echo=echo,
            restarting=bool(flags & _RESTARTING),
            pauses=pauses,
            partings=partings,
            record=record,
            living=bool(flags & _LIVING),
            claims=bool(flags & _CLAIMS),
            offers=bool(flags & _OFFERS),
        )

    def _notice(self, nonce: int, sequence: int, answered: Mapping[int, int]) -> None:
        """Make `nonce` the proven one, or the candidate if it did not answer since it is that.

        :raises RejectedError: in the latter case.
        """
        if nonce != self.candidate:
            self.candidate, self.candidate_highest = nonce, sequence
            self.candidate_since = self.sequence
        self.candidate_highest = max(self.candidate_highest, sequence)
        if answered.get(self.nonce, 0) <= self.candidate_since:
            raise RejectedError(Reject.UNPROVEN)
        self.retired.append(self.proven)
        self.proven, self.candidate, self.candidate_highest = nonce, 0, 0

    def _verified(self, datagram: bytes) -> tuple[bytes, int, int, int, dict[int, int]]:
        """Return the key, the number of pairs, the sender's nonce and sequence, and what it
        answers: by nonce of ours, the newest sequence seen.

        :raises RejectedError: if the peer did not make the datagram for this node.
        """
        if len(datagram) < _HEADER.size + _MAC_BYTES:
            raise RejectedError(Reject.MALFORMED)
        magic, version, key_id, count, sender, receiver, *rest = _HEADER.unpack_from(datagram)
        if magic != _MAGIC:
            raise RejectedError(Reject.MALFORMED)
        if version != _VERSION:
            raise RejectedError(Reject.VERSION)
        if len(datagram) != _HEADER.size + count * _PAIR.size + _MAC_BYTES:
            raise RejectedError(Reject.MALFORMED)
        keys = [key for key in (self.key, *self.others) if _key_id(key) == key_id]
        if not keys:
            raise RejectedError(Reject.KEY)
        body, mac = datagram[:-_MAC_BYTES], datagram[-_MAC_BYTES:]
        good = [k for k in keys if hmac.compare_digest(mac, hmac.digest(k, body, "sha256"))]
        if not good:
            raise RejectedError(Reject.MAC)
        if sender != name_hash(self.peer) or receiver != name_hash(self.me):
            raise RejectedError(Reject.NAMES)
        nonce, sequence, echo, echo_highest, candidate, candidate_highest = rest
        return good[0], count, nonce, sequence, {candidate: candidate_highest, echo: echo_highest}


def _key_id(key: bytes) -> int:
    return hashlib.sha256(key).digest()[0]


def _pack_pair(name: str, state: PeerState) -> bytes:
    record = state.record
    flags = (
        _OWNER * state.owner
        | _FOLLOWING * state.following
        | _COLO_EXITED * state.colo_exited
        | _HAS_SESSION * (state.session is not None)
        | _HAS_GIVEN_UP * (state.gave_up is not None)
        | _RESTARTING * state.restarting
        | _HAS_RECORD * (record is not None)
        | _PROTECTED * (record is not None and record.protected)
        | _LIVING * state.living
        | _CLAIMS * state.claims
        | _OFFERS * state.offers
    )
    return _PAIR.pack(
        name_hash(name),
        state.generation,
        state.session or 0,
        state.gave_up or 0,
        state.committed,
        state.pulse,
        state.echo,
        int(record.lineage, 16) if record is not None else 0,
        (record.session if record is not None else None) or 0,
        state.pauses,
        state.partings,
        flags,
        _PHASES.index(state.phase),
    )
