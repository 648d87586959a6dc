"""The steps of the scripts that compare output: mode `compare` (docs/qemu.md, 5).

What a NIC's packets pass through, by the names of QEMU's objects and character devices:

    primary     mirror-<netdev>     copies what comes in to the other node, by `to-peer`
                divert-<netdev>     takes what the guest sends, by `said-in` and `said-out`, to
                compare-<netdev>    which sets it against what comes `from-peer`, and lets go what
                                    is alike, by `agreed-in` and `agreed-out`, to
                agreed-<netdev>     which sends it
    secondary   deaf-<netdev>       swallows what comes in by this node's own tap
                input-<netdev>      gives the guest what the primary's got
                sink-<netdev>       takes what it answers to the primary
                rewrite-<netdev>    gives its new TCP connections the primary's numbers; stays on
                                    after a promotion, for as long as there are such connections

All of the primary's character devices are connected sockets that were passed by `getfd`: those of
the session (see `streams`), and pairs of sockets that both of their ends are QEMU's.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass

from coloha.core.commit import ENDS_COLO, Message
from coloha.core.events import Committed, Failure, Kept
from coloha.qemu.steps import (
    ANSWER_S,
    Call,
    Command,
    Give,
    Op,
    ScriptError,
    Tape,
    allow,
    do,
    objects,
)

ROUNDS = 3
"""Checkpoints that an epoch waits for at most until it sees one from its beginning to its end."""

IOTHREAD = "compare"
"""Object of the thread that compares, for all NICs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How packets are compared; times in milliseconds, see the pair file's `checkpoint`."""

    timeout_ms: int
    scan_ms: int
    queue: int


def number(netdev: str) -> str:
    """Return the number of a netdev's NIC."""
    return netdev.removeprefix("net")


def streams(netdev: str) -> dict[str, str]:
    """Return the connections to the other node that a NIC needs: the primary's character devices,
    and by what name of a stream the secondary knows their other ends.
    """
    return {
        f"to-peer-{netdev}": f"in{number(netdev)}",
        f"from-peer-{netdev}": f"re{number(netdev)}",
    }


def pairs(netdev: str) -> tuple[tuple[str, str], ...]:
    """Return the character devices of a primary that are each other's ends."""
    return tuple((f"{name}-in-{netdev}", f"{name}-out-{netdev}") for name in ("said", "agreed"))


def to_cut(netdevs: Iterable[str]) -> list[str]:
    """Return a primary's character devices that may keep QEMU's main loop waiting."""
    return [name for dev in netdevs for name in (*streams(dev), f"agreed-in-{dev}")]


def theirs(netdevs: Iterable[str]) -> list[str]:
    """Return a secondary's character devices to the primary."""
    return [name for dev in netdevs for name in (f"answers-{dev}", f"input-{dev}")]


def _chardevs(netdev: str) -> list[str]:
    ends = [end for pair in pairs(netdev) for end in pair]
    return [*streams(netdev), *ends, *theirs((netdev,))]


def connect(netdevs: tuple[str, ...]) -> Generator[Op, object, None]:
    """Primary: take the connections; nothing passes through them yet."""
    yield from withdraw(netdevs)
    for netdev in netdevs:
        for name in (*streams(netdev), *(end for pair in pairs(netdev) for end in pair)):
            yield Give(name)
            address = {"type": "fd", "data": {"str": name}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            yield from do("chardev-add", {"id": name, "backend": backend})


def insert(netdevs: tuple[str, ...], limits: Limits) -> Generator[Op, object, None]:
    """Primary: have the guest's output compared from now on. What is there already stays.

    Output meets the filter created last first (4.1): the one that diverts it comes last. A promoted
    secondary's rewriter must meet it before them all, and input after them all: they go before it.
    """
    present = yield from objects()
    if IOTHREAD not in present:
        yield from do("object-add", {"qom-type": "iothread", "id": IOTHREAD})
    for netdev in netdevs:
        rewriter = f"rewrite-{netdev}"
        place = {"insert": "before", "position": f"id={rewriter}"} if rewriter in present else {}
        for properties in (
            _filter("mirror", netdev, place, queue="tx", outdev=f"to-peer-{netdev}"),
            _filter("agreed", netdev, place, queue="rx", indev=f"agreed-out-{netdev}"),
            _comparer(netdev, limits),
            _filter("divert", netdev, place, queue="rx", outdev=f"said-in-{netdev}"),
        ):
            if properties["id"] not in present:
                yield from do("object-add", properties)


def _filter(
    name: str, netdev: str, place: Mapping[str, str], **properties: str
) -> dict[str, object]:
    kind = "filter-mirror" if name == "mirror" else "filter-redirector"
    common = {"qom-type": kind, "id": f"{name}-{netdev}", "netdev": netdev}
    return {**common, "vnet_hdr_support": True, **properties, **place}


def _comparer(netdev: str, limits: Limits) -> dict[str, object]:
    return {
        "qom-type": "colo-compare",
        "id": f"compare-{netdev}",
        "primary_in": f"said-out-{netdev}",
        "secondary_in": f"from-peer-{netdev}",
        "outdev": f"agreed-in-{netdev}",
        "iothread": IOTHREAD,
        "vnet_hdr_support": True,
        "compare_timeout": limits.timeout_ms,
        "expired_scan_cycle": limits.scan_ms,
        "max_queue_size": limits.queue,
    }


def withdraw(netdevs: tuple[str, ...]) -> Generator[Op, object, None]:
    """Let output pass uncompared; whatever was done before is left out.

    What still waits is lost, as on the network (5.4): guest and client send it again. The devices
    were cut before: else to remove a comparer could wait for ever for one that nobody reads (5.5).
    """
    present = yield from objects()
    for netdev in netdevs:
        for kind in ("divert", "compare", "agreed", "mirror"):
            if f"{kind}-{netdev}" in present:
                yield from do("object-del", {"id": f"{kind}-{netdev}"})
    if IOTHREAD in present:
        yield from do("object-del", {"id": IOTHREAD})
    yield from _remove(name for netdev in netdevs for name in _chardevs(netdev))


def _remove(names: Iterable[str]) -> Generator[Op, object, None]:
    listed = yield from do("query-chardev")
    assert isinstance(listed, list)
    there = {str(device.get("label")) for device in listed}
    for name in names:
        if name in there:
            yield from allow("not found", Command("chardev-remove", {"id": name}))


def promoted(netdevs: tuple[str, ...]) -> Generator[Op, object, None]:
    """Secondary that has taken over: remove all but the rewriter.

    QEMU switched them off at the failover (4.6).
    """
    present = yield from objects()
    for netdev in netdevs:
        for kind in ("deaf", "input", "sink"):
            if f"{kind}-{netdev}" in present:
                yield from do("object-del", {"id": f"{kind}-{netdev}"})
    yield from _remove(theirs(netdevs))


def cut(names: Iterable[str]) -> Generator[Op, object, None]:
    """Cut character devices, out of band (6.3)."""
    listed = yield from do("query-yank", oob=True)
    assert isinstance(listed, list)
    for name in names:
        instance = {"type": "chardev", "id": name}
        if instance in listed:
            yank = Command("yank", {"instances": [instance]}, oob=True)
            yield from allow("nstance not found", yank)


def unblocked(
    netdevs: tuple[str, ...], command: Command, timeout_s: float
) -> Generator[Op, object, list[Message]]:
    """Execute a command; if QEMU does not answer, see whether the other node is the reason.

    Mirroring to one that takes nothing any more keeps the main loop waiting (5.6). Then to say that
    QEMU hangs would end the better copy.

    :raises ScriptError: `BROKEN` if it was, `SILENT` if QEMU does not answer even so.
    """
    try:
        replies = yield Call((command,), timeout_s)
    except ScriptError as error:
        if error.failure is not Failure.SILENT:
            raise
        yield from cut(to_cut(netdevs))
        yield Call((Command("query-status"),), ANSWER_S)
        raise ScriptError(Failure.BROKEN, "the other node takes no input any more") from error
    assert isinstance(replies, list)
    return replies


def end_of_round(stream: list[Message]) -> Committed | Kept:
    """Judge a round of an epoch by all that came since its trigger was written, up to a RESUME.

    Its checkpoint is one that began in the round: the secondary then has all that the guest had
    sent before. One that was under way swallows the trigger (2.1).

    :raises ScriptError: if COLO has ended.
    """
    events = [message for message in stream if not message.reply]
    ended = next((message.name for message in events if message.name in ENDS_COLO), None)
    if ended is not None:
        raise ScriptError(Failure.BROKEN, f"{ended} during a checkpoint")
    refused = next((message for message in stream if message.error), None)
    if refused is not None:
        return Kept(f"{refused.name}: {refused.error}")
    stop = next((message for message in events if message.name == "STOP"), None)
    if stop is None:
        return Kept("another checkpoint was under way")
    return Committed(pause_s=events[-1].at - stop.at)


def window(tape: Tape, start: int) -> list[Message]:
    """Return what came since `start`, up to what was last waited for."""
    return tape.messages[start : tape.place]
