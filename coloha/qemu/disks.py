"""The steps of the scripts that have to do with replicated disks (docs/qemu.md, 3).

What a replicated disk is made of, by the names of its block nodes:

    top<n>      quorum of one or two children: what the guest's device writes to
    disk<n>     this node's image
    peer<n>     primary: the other node's image, over NBD, as the second child
    copy<n>     secondary: the replication driver, with active<n> and hidden<n>, the overlays that
                hold what was written since the last checkpoint, by its own guest, and what the
                primary's writes have replaced since
"""

from collections.abc import Generator

from coloha.core.commit import Message
from coloha.core.events import DiskFailed, Failure
from coloha.qemu.steps import (
    Command,
    Give,
    Op,
    Pause,
    Progress,
    Report,
    ScriptError,
    allow,
    do,
)

POLL_S = 0.1
MERGE_POLL_S = 0.005
JOB_END_S = 30.0
"""How long a mirror that is in step, with the guest stopped, may take to end."""

SECOND_CHILD = "children.1"
"""What quorum calls the child that was added to one (block/quorum.c)."""


def top(disk: str) -> str:
    """Return the node that the guest's device writes to. `disk` is the number of a disk."""
    return f"top{disk}"


def image(disk: str) -> str:
    """Return the node of this host's image."""
    return f"disk{disk}"


def peer(disk: str) -> str:
    """Return the node of the other host's image; also the name of the connection to it."""
    return f"peer{disk}"


def copy(disk: str) -> str:
    """Return the node that keeps the secondary's writes apart."""
    return f"copy{disk}"


def active(disk: str) -> str:
    """Return the overlay of the secondary's own writes."""
    return f"active{disk}"


def hidden(disk: str) -> str:
    """Return the overlay of what the primary's writes have replaced."""
    return f"hidden{disk}"


def _job(disk: str) -> str:
    return f"sync{disk}"


def nodes() -> Generator[Op, object, frozenset[str]]:
    """Return the names of all block nodes."""
    listed = yield from do("query-named-block-nodes", {"flat": True})
    assert isinstance(listed, list)
    return frozenset(str(node.get("node-name")) for node in listed)


def serve(disks: tuple[str, ...], socket_path: str) -> Generator[Op, object, None]:
    """Secondary: let the images be written to, on a socket of the file system."""
    address = {"type": "unix", "data": {"path": socket_path}}
    yield from do("nbd-server-start", {"addr": address})
    for disk in disks:
        export = {
            "type": "nbd",
            "id": f"export{disk}",
            "node-name": image(disk),
            "name": image(disk),
            "writable": True,
        }
        yield from do("block-export-add", export)


def serve_no_more() -> Generator[Op, object, None]:
    """Secondary: the primary, if it still lives, must not write any more."""
    yield from allow("server not running", Command("nbd-server-stop"))


def copy_all(
    disks: tuple[str, ...], rate: int | None, stall_s: float
) -> Generator[Op, object, None]:
    """Primary: bring the other node's images in step, then have each write go to both.

    The guest stands still from the end of the copies until the images are attached: no write may
    fall between.
    """
    if not disks:
        return
    for disk in disks:
        yield Give(peer(disk))
        server = {"type": "fd", "str": peer(disk)}
        node = {"driver": "nbd", "node-name": peer(disk), "server": server, "export": image(disk)}
        yield from do("blockdev-add", {**node, "detect-zeroes": "on"})
        mirror = {
            "job-id": _job(disk),
            "device": top(disk),
            "target": peer(disk),
            "sync": "full",
            "on-source-error": "report",
            "on-target-error": "report",
            "auto-dismiss": False,
            **({} if rate is None else {"speed": rate}),
        }
        yield from do("blockdev-mirror", mirror)
    yield from _in_step(disks, stall_s)
    yield from do("stop")  # if this ends before `cont`, `leave_colo` lets the guest go on
    for disk in disks:
        yield from _end_mirror(disk)
        yield from do("x-blockdev-change", {"parent": top(disk), "node": peer(disk)})
    yield from do("cont")


def _jobs() -> Generator[Op, object, dict[str, dict[str, object]]]:
    listed = yield from do("query-jobs")
    assert isinstance(listed, list)
    return {str(job["id"]): job for job in listed}


def _in_step(disks: tuple[str, ...], stall_s: float) -> Generator[Op, object, None]:
    """Wait until every mirror has copied all there is, as long as there is progress."""
    best, polls = -1, 0
    while True:
        jobs = yield from _jobs()
        mine = [jobs.get(_job(disk), {}) for disk in disks]
        for disk, job in zip(disks, mine, strict=True):
            if "error" in job or job.get("status") not in ("created", "running", "ready"):
                why = job.get("error", f"the copy is {job.get('status', 'gone')}")
                raise ScriptError(Failure.BROKEN, f"disk {disk}: {why}")
        copied = sum(_bytes(job, "current-progress") for job in mine)
        yield Report(Progress(copied, sum(_bytes(job, "total-progress") for job in mine)))
        if all(job["status"] == "ready" for job in mine):
            return
        polls = 0 if copied > best else polls + 1
        best = max(best, copied)
        if polls * POLL_S >= stall_s:
            raise ScriptError(Failure.STALLED, f"no progress in copying disks for {stall_s:g} s")
        yield Pause(POLL_S)


def _bytes(job: dict[str, object], key: str) -> int:
    value = job.get(key, 0)
    assert isinstance(value, int)
    return value


def _end_mirror(disk: str, *, force: bool = False) -> Generator[Op, object, None]:
    """End a mirror and forget it. One that is in step ends whole unless forced (block/mirror.c).

    One that has failed is over already, and refuses to be ended.
    """
    cancel = Command("block-job-cancel", {"device": _job(disk), "force": force})
    for attempt in range(round(JOB_END_S / MERGE_POLL_S)):
        job = (yield from _jobs()).get(_job(disk))
        if job is None:
            return
        if job["status"] == "concluded":
            yield from do("job-dismiss", {"id": _job(disk)})
            if "error" in job and not force:
                raise ScriptError(Failure.BROKEN, f"disk {disk}: {job['error']}")
            return
        if attempt == 0:
            yield from allow("cannot accept command verb", cancel)
        yield Pause(MERGE_POLL_S)
    raise ScriptError(Failure.STALLED, f"disk {disk}: its copy does not end")


def detach(disks: tuple[str, ...]) -> Generator[Op, object, None]:
    """Primary: write to this node's images alone. Whatever was done before is left out."""
    if not disks:
        return
    present = yield from nodes()
    for disk in disks:
        if peer(disk) not in present:
            continue
        yield from _end_mirror(disk, force=True)
        child = {"parent": top(disk), "child": SECOND_CHILD}
        yield from allow("does not have child", Command("x-blockdev-change", child))
        yield from do("blockdev-del", {"node-name": peer(disk)})


def merged(disks: tuple[str, ...]) -> Generator[Op, object, bool]:
    """Whether the promoted secondary's overlays are part of its images (block/replication.c)."""
    present = yield from nodes()
    return not any(active(disk) in present or hidden(disk) in present for disk in disks)


def lost_write(messages: list[Message], disks: tuple[str, ...]) -> str | None:
    """Say which write the other node's disk missed, or None."""
    for message in messages:
        failed = None if message.reply else failure(message, disks)
        if failed is not None and not failed.behind:
            return failed.reason
    return None


def failure(message: Message, disks: tuple[str, ...]) -> DiskFailed | None:
    """Return what an event says of a write or a flush that a disk missed; None if nothing.

    QUORUM_REPORT_BAD names a child without which the request ended well: the guest does not know.
    QUORUM_FAILURE means that it did not end well for the guest either (block/quorum.c).
    """
    data = message.data if isinstance(message.data, dict) else {}
    if message.name == "QUORUM_FAILURE":
        return DiskFailed(f"disk {data.get('reference')} failed", behind=False)
    if message.name != "QUORUM_REPORT_BAD" or data.get("type") not in ("write", "flush"):
        return None
    node, error = data.get("node-name"), data.get("error", "unknown error")
    theirs = node in {peer(disk) for disk in disks}
    whose = "the other node's" if theirs else "this node's"
    return DiskFailed(f"{whose} image missed a {data['type']} ({node}: {error})", not theirs)
