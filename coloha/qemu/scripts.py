"""The sequences of QMP commands that drive COLO, as pure generators.

What they are made of is in `steps.py`, what has to do with disks in `disks.py`.

Facts about QEMU that the sequences rest on are in docs/qemu.md; the numbers in brackets are its
sections.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from coloha.core.actions import Script
from coloha.core.commit import Message, why_not
from coloha.core.events import Adopted, ColoMode, Committed, Failure, Kept
from coloha.qemu import compare, disks
from coloha.qemu.compare import Limits
from coloha.qemu.steps import (
    POLL_S,
    Call,
    Command,
    Give,
    Look,
    Op,
    Pause,
    ScriptError,
    Steps,
    Tape,
    allow,
    call,
    do,
    objects,
    poll,
    query,
    until,
)

DEADMAN_MS = 5_000
"""x-checkpoint-delay: if the daemon dies after `stop`, QEMU's own checkpoint resumes the guest."""

TRIGGER = Command("migrate-set-parameters", {"x-checkpoint-delay": DEADMAN_MS})
"""Asks for a checkpoint, and puts off QEMU's own (0.1)."""

HOLD_US = 4_000_000_000
"""A filter-buffer flushes by itself after this much guest time, and 0 is refused. Each epoch starts
the time afresh (4.1)."""

SETTLE_S = 2.0
"""How long a secondary that is cut off may take to say COLO_EXIT, its main loop answering."""

UNLIMITED_BYTES_PER_S = 1 << 40
INTERMEDIATE = frozenset({"setup", "active", "device", "cancelling", "wait-unplug"})
"""States of a migration that pass by themselves."""

OVER = frozenset({"failed", "completed", "cancelled"})
"""States of a migration that did not end in COLO."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What scripts need to know of a VM: its netdevs whose output is held, and QEMU's ways."""

    netdevs: tuple[str, ...]
    return_path: bool = False
    open_netdevs: tuple[str, ...] = ()
    """Those whose output is not held; the secondary's is swallowed all the same."""
    disks: tuple[str, ...] = ()
    """The numbers of the replicated disks."""
    exports: str = ""
    """Secondary: path of the socket where the images are written to."""
    sync_rate: int | None = None
    """Bytes per second at which each disk is copied; None: as fast as can be."""
    limits: Limits | None = None
    """Mode `compare`: how the output of `netdevs` is compared. None: it waits in buffers."""


def buffer_id(letter: str, netdev: str) -> str:
    """Return the id of filter-buffer `a` or `b` of a netdev."""
    return f"hold-{letter}-{netdev}"


def sink_id(netdev: str) -> str:
    """Return the id of the filter that swallows the secondary's output."""
    return f"sink-{netdev}"


def _switch(letter: str, netdev: str, on: bool) -> Command:
    path = f"/objects/{buffer_id(letter, netdev)}"
    value = "on" if on else "off"
    return Command("qom-set", {"path": path, "property": "status", "value": value})


def _cycle(letter: str, plan: Plan) -> list[Command]:
    """Empty a buffer of every netdev and hold on: off lets everything go, on holds what follows."""
    return [_switch(letter, netdev, on) for netdev in plan.netdevs for on in (False, True)]


def _capabilities(plan: Plan) -> Command:
    wanted = {"x-colo": True, "events": True}
    if plan.return_path:
        wanted["return-path"] = True
    listed = [{"capability": name, "state": state} for name, state in wanted.items()]
    return Command("migrate-set-capabilities", {"capabilities": listed})


def cut(block_nodes: Iterable[str] = (), chardevs: Iterable[str] = ()) -> Steps:
    """Cut the migration's connection, then those of block nodes and character devices, out of band:
    works while QEMU's main loop is blocked.

    In this order: else a write that fails for it ends well for the guest, and the checkpoint under
    way may take it along although the secondary's disk lacks it (3.4). The instances exist only
    while their connections do, and an unknown one is an error (6.3).
    """
    listed = yield from do("query-yank", oob=True)
    assert isinstance(listed, list)
    wanted = [{"type": "migration"}]
    wanted += [{"type": "block-node", "node-name": name} for name in block_nodes]
    wanted += [{"type": "chardev", "id": name} for name in chardevs]
    for instance in wanted:
        if instance in listed:
            yank = Command("yank", {"instances": [instance]}, oob=True)
            yield from allow("nstance not found", yank)  # it may have closed a moment ago
    return None


def adopt(plan: Plan) -> Steps:
    """Find out whether a running QEMU is in COLO; if as primary, see that its output is held.

    The daemon before may have died while it switched the buffers, or made them.
    """
    mode = yield from query("query-colo-status", "mode")
    if mode == ColoMode.PRIMARY:
        yield from arm(plan)
    return Adopted(ColoMode(mode))


def check(plan: Plan, timeout_s: float) -> Steps:
    """See whether QEMU's main loop answers."""
    command = Command("query-status")
    if plan.limits is None:
        yield from call(command, timeout_s=timeout_s)
        return None
    try:
        yield from compare.unblocked(plan.netdevs, command, timeout_s / 2)
    except ScriptError as error:
        if error.failure is not Failure.BROKEN:
            raise  # else it answered when it did not wait for the other node any more
    return None


def enter_colo(plan: Plan, timeout_s: float) -> Steps:
    """Copy the VM to the secondary, its disks first, until COLO runs: RESUME after MIGRATION colo
    (1.1).

    From MIGRATION colo to that RESUME, x-checkpoint-delay must not be set: QEMU aborts (0.8).
    """
    parameters = {
        "x-checkpoint-delay": DEADMAN_MS,
        "max-bandwidth": UNLIMITED_BYTES_PER_S,
        "downtime-limit": 1000,
    }
    yield from call(_capabilities(plan), Command("migrate-set-parameters", parameters))
    if plan.limits is not None:
        yield from compare.connect(plan.netdevs)
    yield from disks.copy_all(plan.disks, plan.sync_rate, timeout_s)
    yield Give("colo")
    yield from do("migrate", {"uri": "fd:colo"})
    yield from _await_colo("the first copy of the VM", timeout_s)
    return None


def _await_colo(
    what: str, timeout_s: float, *, entered: bool = False
) -> Generator[Op, object, None]:
    """Wait for MIGRATION colo (unless it came: `entered`), then RESUME; any way out of the
    migration breaks it.
    """
    while True:
        event = yield from until(what, timeout_s, "MIGRATION", "RESUME", "COLO_EXIT", "SHUTDOWN")
        status = event.data.get("status") if isinstance(event.data, dict) else None
        if event.name == "RESUME" and entered:
            return
        if event.name in ("COLO_EXIT", "SHUTDOWN") or status in OVER:
            raise ScriptError(Failure.BROKEN, f"{what}: {event.name} {status or ''}".rstrip())
        entered = entered or status == "colo"


def arm(plan: Plan) -> Steps:
    """Hold the guest's output from now on, or compare it.

    Guest output meets the filter created last first (4.1), so B comes before A: what A lets go
    waits in B. An A without B is what a `leave_colo` left that was cut short.
    """
    if plan.limits is not None:
        yield from compare.insert(plan.netdevs, plan.limits)
        return None
    present = yield from objects()
    for netdev in plan.netdevs:
        a, b = buffer_id("a", netdev), buffer_id("b", netdev)
        if a in present and b not in present:
            yield from do("object-del", {"id": a})
            present -= {a}
        for letter, name in (("b", b), ("a", a)):
            if name in present:
                yield from call(_switch(letter, netdev, True))
                continue
            properties = {
                "qom-type": "filter-buffer",
                "id": name,
                "netdev": netdev,
                "queue": "rx",
                "interval": HOLD_US,
                "status": "on",
            }
            yield from do("object-add", properties)
    return None


def epoch(plan: Plan, timeout_s: float, tape: Tape) -> Steps:
    """One checkpoint, stop first (4.4): what the guest has sent waits in B until the commit.

    The commands are written back to back, so nothing of the daemon's slowness gets between them.
    """
    if plan.limits is not None:
        return (yield from _compared_epoch(plan, timeout_s, tape))
    commands = [Command("stop"), *_cycle("a", plan)]
    empties = range(1, len(commands), 2)
    commands.append(TRIGGER)
    # They need nothing of the other side: a main loop that is slow with them hangs.
    replies = yield Call(tuple(commands), timeout_s / 2)
    assert isinstance(replies, list)
    resumed = yield from _resume(timeout_s)
    lost = disks.lost_write(tape.messages, plan.disks)
    if lost is not None:
        # The guest believes in it (3.4): what the secondary holds now must never be the VM.
        raise ScriptError(Failure.BROKEN, lost)
    problem = why_not(tape.messages[: tape.place], len(commands), empties)
    if problem is not None:
        # What ended before the trigger was another checkpoint: the one asked for here comes after
        # it (2.1). It would spoil the next epoch, that one's the next but one, and so on.
        while replies[-1].error is None and tape.replies() < len(commands):
            yield from _resume(timeout_s)
        return Kept(problem)
    stopped = next(m for m in tape.messages if m.name == "STOP" and not m.reply)
    return Committed(pause_s=resumed.at - stopped.at)


def _compared_epoch(plan: Plan, timeout_s: float, tape: Tape) -> Steps:
    """One checkpoint, whoever asked for it: the trigger, or meanwhile a difference (5.2)."""
    result: Committed | Kept = Kept("")
    for _ in range(compare.ROUNDS):
        start = len(tape.messages)
        yield from compare.unblocked(plan.netdevs, TRIGGER, timeout_s / 2)
        yield from _resume(timeout_s)
        lost = disks.lost_write(tape.messages, plan.disks)
        if lost is not None:
            raise ScriptError(Failure.BROKEN, lost)
        result = compare.end_of_round(compare.window(tape, start))
        if isinstance(result, Committed):
            break
    return result


def _resume(timeout_s: float) -> Generator[Op, object, Message]:
    """Wait for the end of a checkpoint."""
    ends = ("RESUME", "COLO_EXIT", "SHUTDOWN")
    event = yield from until("the secondary's acknowledgement", timeout_s, *ends)
    if event.name != "RESUME":
        raise ScriptError(Failure.BROKEN, f"{event.name} during a checkpoint")
    return event


def release(plan: Plan) -> Steps:
    """Let go what B holds. The guest runs, but all that it sends now waits in A."""
    if plan.limits is None:  # else what both answered alike is out already
        yield from call(*_cycle("b", plan))
    return None


def leave_colo(plan: Plan, timeout_s: float) -> Steps:
    """End COLO or an unfinished migration as primary; let go B, then A; the guest runs.

    Every part may have been done before: the daemon that began it may have died.
    """
    compared = plan.netdevs if plan.limits is not None else ()
    yield from cut(map(disks.peer, plan.disks), compare.to_cut(compared))
    yield from disks.detach(plan.disks)
    if (yield from query("query-colo-status", "mode")) == ColoMode.PRIMARY:
        yield from allow("already", Command("x-colo-lost-heartbeat"), timeout_s)
    present = yield from objects()
    for letter in ("b", "a"):
        ids = [buffer_id(letter, netdev) for netdev in plan.netdevs]
        # Deleting a filter-buffer lets its packets go: the older ones first.
        commands = [Command("object-del", {"id": name}) for name in ids if name in present]
        if commands:
            yield from call(*commands)
    yield from poll("the migration to end", timeout_s, _migration_over)
    if plan.limits is not None:
        yield from compare.withdraw(plan.netdevs)
    if plan.disks:
        yield from poll("the overlays to be merged", timeout_s, lambda: disks.merged(plan.disks))
    status = yield from query("query-status", "status")
    if status == "paused":
        yield from do("cont")  # stopped by an epoch that never got as far as its checkpoint
    yield from poll("the guest to run", timeout_s, _running)
    return None


def _migration_over() -> Generator[Op, object, bool]:
    status = yield from query("query-migrate", "status")
    return status != "colo" and status not in INTERMEDIATE


def _running() -> Generator[Op, object, bool]:
    return (yield from query("query-status", "status")) == "running"


def accept_colo(plan: Plan) -> Steps:
    """Secondary: take the channel as the incoming migration, and serve the images."""
    yield from call(_capabilities(plan))
    if plan.disks:
        yield from disks.serve(plan.disks, plan.exports)
    yield Give("colo")
    yield from do("migrate-incoming", {"uri": "fd:colo"})
    return None


def await_colo(timeout_s: float) -> Steps:
    """Secondary: until the first copy is loaded and COLO runs."""
    entered = (yield from query("query-migrate", "status")) == "colo"
    if entered and (yield from _running()):
        return None  # it was quicker than this script
    yield from _await_colo("the first copy of the VM", timeout_s, entered=entered)
    return None


def promote(plan: Plan, timeout_s: float) -> Steps:
    """Secondary: cut the old primary off, see that the copy is whole, end COLO, open the output,
    tell the network.

    At the failover QEMU itself switches every filter of the secondary off (4.6), so the output is
    open as soon as the guest runs; removing the sinks makes it last.
    """
    # No word of this copy may count for the old primary any more, nor be heard yet: a device that
    # is cut swallows what it is given.
    yield from cut(chardevs=compare.theirs(plan.netdevs) if plan.limits is not None else ())
    if plan.disks:
        yield from disks.serve_no_more()
    in_colo = (yield from query("query-colo-status", "mode")) == ColoMode.SECONDARY
    if in_colo:
        yield from _loads_no_more()
    yield Look()
    if in_colo:
        yield from allow("already", Command("x-colo-lost-heartbeat"), timeout_s)
    elif not ((yield from _failed_over()) or (yield from _running())):
        raise ScriptError(Failure.REFUSED, "the secondary is not in COLO: it has no VM to become")
    yield from poll("COLO to end", timeout_s, _colo_over)
    yield from poll("the guest to run", timeout_s, _running)
    if plan.limits is not None:
        yield from compare.promoted(plan.netdevs)
    present = yield from objects()
    sinks = map(sink_id, (*plan.netdevs, *plan.open_netdevs))
    commands = [Command("object-del", {"id": name}) for name in sinks if name in present]
    announce = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
    yield from call(*commands, Command("announce-self", announce))
    if plan.disks:
        yield from poll("the overlays to be merged", timeout_s, lambda: disks.merged(plan.disks))
    return None


def _loads_no_more() -> Generator[Op, object, None]:
    """Secondary that is cut off: wait until it can load no checkpoint any more.

    One that has arrived completely is still loaded. While its guest runs there is none, and the
    next would begin with an answer to the primary, which can no longer be sent (6.5). If it stands
    still COLO_EXIT is the end of it; that may have come before this daemon listened.
    """
    for _ in range(round(SETTLE_S / POLL_S)):
        if (yield Look()) or (yield from _running()):
            return
        yield Pause(POLL_S)


def _failed_over() -> Generator[Op, object, bool]:
    return (yield from query("query-migrate", "status")) == "completed"


def _colo_over() -> Generator[Op, object, bool]:
    return (yield from query("query-colo-status", "mode")) == ColoMode.NONE


def power_down() -> Steps:
    """Press the guest's power button."""
    yield from do("system_powerdown")
    return None


def write(script: Script, plan: Plan, timeout_s: float, tape: Tape) -> Steps:
    """Return the steps of a script."""
    match script:
        case Script.ADOPT:
            return adopt(plan)
        case Script.CHECK:
            return check(plan, timeout_s)
        case Script.ENTER_COLO:
            return enter_colo(plan, timeout_s)
        case Script.ARM:
            return arm(plan)
        case Script.EPOCH:
            return epoch(plan, timeout_s, tape)
        case Script.RELEASE:
            return release(plan)
        case Script.LEAVE_COLO:
            return leave_colo(plan, timeout_s)
        case Script.ACCEPT_COLO:
            return accept_colo(plan)
        case Script.AWAIT_COLO:
            return await_colo(timeout_s)
        case Script.POWER_DOWN:
            return power_down()
        case Script.PROMOTE:
            return promote(plan, timeout_s)
