"""The heartbeat datagram: what is accepted, and what no attacker can make of what was sent."""

import contextlib
import dataclasses
import hmac
import itertools
import struct
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coloha.core.events import PeerState
from coloha.core.phases import Phase
from coloha.core.record import Record
from coloha.core.wire import MAX_PAIRS, Link, Reject, RejectedError, name_hash
from tests.adapters.support import KEY, OTHER_KEY, state

UNSIGNED = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    Record,
    lineage=UNSIGNED.map("{:x}".format),
    generation=UNSIGNED,
    primary=st.sampled_from(["alpha", "beta"]),
)


def with_record(state: PeerState, record: Record, session: int | None) -> PeerState:
    """What alpha says when it has a copy of the record."""
    owner = record.primary == "alpha"
    if session is not None:
        record = record.protect("beta" if owner else "alpha", session)
    return dataclasses.replace(state, generation=record.generation, owner=owner, record=record)


PLAIN = st.builds(
    PeerState,
    phase=st.sampled_from(Phase),
    generation=UNSIGNED,
    owner=st.booleans(),
    session=st.none() | UNSIGNED,
    gave_up=st.none() | UNSIGNED,
    following=st.booleans(),
    colo_exited=st.booleans(),
    committed=UNSIGNED,
    pulse=UNSIGNED,
    echo=UNSIGNED,
    living=st.booleans(),
    claims=st.booleans(),
)
STATES = PLAIN | st.builds(with_record, PLAIN, RECORDS, st.none() | UNSIGNED)
PAIRS = st.dictionaries(st.text("abc-019", min_size=1, max_size=8), STATES, max_size=MAX_PAIRS)


def links(key: bytes = KEY) -> tuple[Link, Link]:
    """Two ends that have not yet heard of each other."""
    return Link("alpha", "beta", KEY, nonce=1001), Link("beta", "alpha", key, nonce=2002)


def proven_links() -> tuple[Link, Link]:
    """Two ends that have proven themselves to each other."""
    alpha, beta = links()
    for sender, receiver in ((alpha, beta), (beta, alpha)) * 2:
        rejection(receiver, sender.pack({}))
    return alpha, beta


def rejection(link: Link, datagram: bytes) -> Reject | None:
    """Why a datagram is dropped, None if it counts."""
    try:
        link.unpack(datagram)
    except RejectedError as error:
        return error.reason
    return None


def signed(body: bytes) -> bytes:
    return body + hmac.digest(KEY, body, "sha256")


@given(PAIRS)
def test_what_is_packed_is_unpacked(pairs: dict[str, PeerState]) -> None:
    alpha, beta = proven_links()
    unpacked = beta.unpack(alpha.pack(pairs))
    assert unpacked == {name_hash(name): state for name, state in pairs.items()}


def test_a_full_datagram_fits_an_ethernet_frame() -> None:
    alpha, _ = links()
    datagram = alpha.pack({f"pair-{k}": state() for k in range(MAX_PAIRS)})
    assert len(datagram) <= 1500 - 40 - 8  # IPv6 and UDP headers


def test_more_pairs_than_fit_are_an_error_of_the_caller() -> None:
    alpha, _ = links()
    with pytest.raises(ValueError, match=f"at most {MAX_PAIRS}"):
        alpha.pack({f"pair-{k}": state() for k in range(MAX_PAIRS + 1)})


@given(PAIRS, st.data())
def test_any_flipped_bit_is_noticed(pairs: dict[str, PeerState], data: st.DataObject) -> None:
    alpha, beta = proven_links()
    datagram = bytearray(alpha.pack(pairs))
    bit = data.draw(st.integers(0, 8 * len(datagram) - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    assert rejection(beta, bytes(datagram)) in {
        Reject.MALFORMED,
        Reject.VERSION,
        Reject.KEY,
        Reject.MAC,
    }


def test_every_flipped_bit_of_one_datagram_is_noticed() -> None:
    alpha, beta = proven_links()
    original = alpha.pack({"vm": state()})
    for bit in range(8 * len(original)):
        datagram = bytearray(original)
        datagram[bit // 8] ^= 1 << bit % 8
        assert rejection(beta, bytes(datagram)) is not None, f"bit {bit}"
    assert rejection(beta, original) is None


@given(st.binary(max_size=200))
def test_garbage_is_malformed(garbage: bytes) -> None:
    _, beta = proven_links()
    assert rejection(beta, garbage) is Reject.MALFORMED


@pytest.mark.parametrize("change", [-1, 1])
def test_a_datagram_of_another_length_is_malformed(change: int) -> None:
    alpha, beta = proven_links()
    datagram = alpha.pack({"vm": state()})
    changed = datagram[:-1] if change < 0 else datagram + b"\0"
    assert rejection(beta, changed) is Reject.MALFORMED


def test_each_reason_has_its_cause() -> None:
    alpha, beta = proven_links()
    stranger = Link("gamma", "beta", KEY, nonce=3003)
    elsewhere = Link("alpha", "gamma", KEY, nonce=3003)
    other_key = Link("alpha", "beta", OTHER_KEY, nonce=3003)
    good = alpha.pack({"vm": state()})
    assert rejection(beta, good[:4] + b"\x01" + good[5:]) is Reject.VERSION
    assert rejection(beta, other_key.pack({})) is Reject.KEY
    assert rejection(beta, good[:-1] + bytes([good[-1] ^ 1])) is Reject.MAC
    assert rejection(beta, stranger.pack({})) is Reject.NAMES
    assert rejection(beta, elsewhere.pack({})) is Reject.NAMES
    assert rejection(beta, beta.pack({})) is Reject.NAMES
    assert rejection(beta, Link("alpha", "beta", KEY, nonce=4004).pack({})) is Reject.UNPROVEN
    assert rejection(beta, good) is None
    assert rejection(beta, good) is Reject.REPLAY


def test_a_wrong_key_with_the_right_key_id_fails_by_its_mac() -> None:
    alpha, beta = proven_links()
    for number in count():
        key = struct.pack("32xI", number)
        datagram = Link("alpha", "beta", key, nonce=1001, sequence=99).pack({})
        if datagram[5] == alpha.pack({})[5]:
            break
    assert rejection(beta, datagram) is Reject.MAC


def test_a_phase_that_this_version_does_not_know_is_malformed() -> None:
    alpha, beta = proven_links()
    body = alpha.pack({"vm": state()})[:-32]
    phase_at = len(body) - 1
    assert body[phase_at] == tuple(Phase).index(Phase.SOLO)
    unknown = signed(body[:phase_at] + bytes([len(Phase)]) + body[phase_at + 1 :])
    assert rejection(beta, unknown) is Reject.MALFORMED


def test_the_first_exchange_takes_two_datagrams_each_way() -> None:
    alpha, beta = links()
    assert rejection(beta, alpha.pack({})) is Reject.UNPROVEN
    assert rejection(alpha, beta.pack({})) is Reject.UNPROVEN
    assert rejection(beta, alpha.pack({})) is None
    assert rejection(alpha, beta.pack({})) is None


def test_a_restarted_node_is_heard_at_its_second_datagram() -> None:
    alpha, _ = proven_links()
    again = Link("beta", "alpha", KEY, nonce=2003)
    assert rejection(alpha, again.pack({})) is Reject.UNPROVEN
    assert rejection(again, alpha.pack({})) is Reject.UNPROVEN
    assert rejection(alpha, again.pack({})) is None
    assert rejection(again, alpha.pack({})) is None


def test_a_datagram_from_before_this_node_started_is_worth_nothing() -> None:
    alpha, _ = proven_links()
    old = [alpha.pack({"vm": state()}) for _ in range(3)]
    again = Link("beta", "alpha", KEY, nonce=2003)
    assert {rejection(again, datagram) for datagram in old} == {Reject.UNPROVEN}


def test_a_life_that_is_over_stays_over() -> None:
    """Datagrams of it that the network (or an attacker) held back come late: worth nothing, and
    the present life goes on being heard.
    """
    alpha, _ = links()
    first = Link("beta", "alpha", KEY, nonce=2001)
    rejection(first, alpha.pack({}))
    rejection(first, alpha.pack({}))
    held_back = [first.pack({"vm": state()}) for _ in range(3)]  # alpha never saw this life
    beta = Link("beta", "alpha", KEY, nonce=2002)
    for sender, receiver in ((beta, alpha), (alpha, beta)) * 2:
        rejection(receiver, sender.pack({}))
    for datagram in held_back * 2:
        assert rejection(alpha, datagram) is Reject.UNPROVEN
        assert rejection(alpha, beta.pack({})) is None
        assert rejection(beta, alpha.pack({})) is None


def test_the_last_life_cannot_become_a_candidate_again() -> None:
    alpha, beta = proven_links()
    rejection(alpha, beta.pack({}))
    first = [beta.pack({"vm": state()}) for _ in range(3)]
    again = Link("beta", "alpha", KEY, nonce=2003)
    rejection(alpha, again.pack({}))
    rejection(again, alpha.pack({}))
    assert rejection(alpha, again.pack({})) is None
    assert {rejection(alpha, datagram) for datagram in first} == {Reject.REPLAY}
    assert alpha.candidate == 0


@dataclasses.dataclass(frozen=True)
class Sent:
    """A datagram, and what only its maker knows."""

    data: bytes
    sender: str
    life: int
    number: int


class Network(RuleBasedStateMachine):
    """Two nodes that send and restart, and a network that belongs to an attacker: it keeps every
    datagram and delivers any of them to either node, in any order, as often as it likes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nonces = count(1)
        self.numbers = count(1)
        self.lives = {"alpha": 0, "beta": 0}
        self.links: dict[str, Link] = {}
        self.accepted: dict[str, list[Sent]] = {"alpha": [], "beta": []}
        """Since the receiver started."""
        self.ever: set[bytes] = set()
        self.sent: list[Sent] = []
        self.pending: dict[str, list[Sent]] = {"alpha": [], "beta": []}
        for name in ("alpha", "beta"):
            self._restart(name)

    def _other(self, name: str) -> str:
        return "beta" if name == "alpha" else "alpha"

    def _restart(self, name: str) -> None:
        self.lives[name] += 1
        self.links[name] = Link(name, self._other(name), KEY, nonce=next(self.nonces))
        self.accepted[name] = []

    def _send(self, name: str) -> Sent:
        number = next(self.numbers)
        data = self.links[name].pack({"vm": state(pulse=number)})
        sent = Sent(data, name, self.lives[name], number)
        self.sent.append(sent)
        self.pending[self._other(name)].append(sent)
        return sent

    def _deliver(self, sent: Sent, to: str) -> bool:
        try:
            states = self.links[to].unpack(sent.data)
        except RejectedError:
            return False
        assert sent.sender != to, "a node took its own datagram for its peer's"
        assert states[name_hash("vm")].pulse == sent.number
        assert sent.data not in self.ever, "accepted twice"
        self.ever.add(sent.data)
        before = self.accepted[to]
        if before:
            newest = before[-1]
            assert (sent.life, sent.number) > (newest.life, newest.number), "older than the newest"
        before.append(sent)
        return True

    @rule(name=st.sampled_from(("alpha", "beta")))
    def send(self, name: str) -> None:
        self._send(name)

    @rule(name=st.sampled_from(("alpha", "beta")))
    def restart(self, name: str) -> None:
        self._restart(name)

    @precondition(lambda self: any(self.pending.values()))
    @rule(name=st.sampled_from(("alpha", "beta")), newest=st.booleans())
    def deliver(self, name: str, newest: bool) -> None:
        """In order or not: what is passed over may come later, by `replay`."""
        waiting = self.pending[name]
        if waiting:
            self._deliver(waiting.pop(-1 if newest else 0), name)

    @precondition(lambda self: self.sent)
    @rule(name=st.sampled_from(("alpha", "beta")), data=st.data())
    def replay(self, name: str, data: st.DataObject) -> None:
        """Anything ever sent, to anyone, its sender included."""
        self._deliver(data.draw(st.sampled_from(self.sent)), name)

    @precondition(lambda self: self.sent)
    @rule(name=st.sampled_from(("alpha", "beta")))
    def flood(self, name: str) -> None:
        """All that was ever sent, in order."""
        for sent in self.sent[-40:]:
            self._deliver(sent, name)

    @rule()
    def calm(self) -> None:
        """While the attacker looks away, three fresh datagrams each way always suffice."""
        heard = {"alpha": False, "beta": False}
        for _ in range(3):
            for name in ("alpha", "beta"):
                heard[self._other(name)] = self._deliver(self._send(name), self._other(name))
        assert heard == {"alpha": True, "beta": True}, "a node that is there is not heard"

    @invariant()
    def bounded(self) -> None:
        for link in self.links.values():
            assert len(link.retired) <= 1000

    def teardown(self) -> None:
        self.calm()


TestNetwork = Network.TestCase
TestNetwork.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)


def test_keys_are_changed_step_by_step() -> None:
    """Each step is taken by one end before the other, in either order."""
    steps = ((KEY, ()), (KEY, (OTHER_KEY,)), (OTHER_KEY, (KEY,)), (OTHER_KEY, ()))
    alpha, beta = links()
    for before, after in itertools.pairwise(steps):
        for first, second in ((alpha, beta), (beta, alpha)):
            for end, (key, others) in ((first, after), (second, before)):
                end.key, end.others = key, others
            for _ in range(3):
                for sender, receiver in ((first, second), (second, first)):
                    with contextlib.suppress(RejectedError):
                        receiver.unpack(sender.pack({}))
            assert first.unpack(second.pack({})) == second.unpack(first.pack({})) == {}
            assert first.heard_with == second.key
            assert second.heard_with == first.key
    alpha.key, alpha.others = beta.key, beta.others = OTHER_KEY, ()
    dropped = Link("alpha", "beta", KEY, nonce=1001, sequence=10**6).pack({})
    assert rejection(beta, dropped) in (Reject.KEY, Reject.MAC)


def test_what_was_said_under_the_old_key_is_not_heard_again() -> None:
    alpha, beta = links()
    beta.others = alpha.others = (OTHER_KEY,)
    for _ in range(3):
        for sender, receiver in ((alpha, beta), (beta, alpha)):
            old = sender.pack({})
            with contextlib.suppress(RejectedError):
                receiver.unpack(old)
    old = alpha.pack({})
    beta.unpack(old)
    alpha.key, alpha.others = OTHER_KEY, (KEY,)
    beta.unpack(alpha.pack({}))
    assert rejection(beta, old) is Reject.REPLAY
