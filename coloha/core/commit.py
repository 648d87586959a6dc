"""Did the checkpoint that was asked for commit? The predicate, over one QMP connection's stream.

QEMU puts replies and events of a monitor into one buffer under one lock, so on one connection their
order is the order of execution. RESUME alone is no acknowledgement: QEMU sends it also on entering
COLO, on failover, when a migration failed, and for `cont`. It acknowledges the checkpoint exactly
when the stream, from the moment the epoch's commands were written, shows that

1. every command succeeded, and before RESUME;
2. there was exactly one STOP, and it came before buffer A was emptied: what moved to buffer B is
   what the guest had sent when it stood still;
3. there was no other RESUME;
4. COLO did not end and the secondary stayed a replica: no COLO_EXIT, no MIGRATION, no failed write
   to the secondary's disk.

The spurious STOP and RESUME of a pending vm_stop (QEMU, system/cpus.c, vm_prepare_start) come as a
pair with nothing in between, so 1 and 2 together exclude them. In migration/colo.c the primary's
vm_start, hence RESUME, follows the secondary's VMSTATE_LOADED. (docs/qemu.md, 2.1-2.3.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

ENDS_COLO = frozenset({"COLO_EXIT", "MIGRATION", "SHUTDOWN", "QUORUM_REPORT_BAD"})
"""Events after which no RESUME commits anything."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the stream: an event, or the reply to command `name`.

    `at` is when it was read, monotonic seconds.
    """

    name: str
    at: float
    reply: bool = False
    error: str | None = None
    data: object = None


def why_not(stream: Sequence[Message], commands: int, empties: Sequence[int]) -> str | None:
    """Say why `stream` does not end in a commit, or None if it does.

    `stream` is everything since the commands were written, the last message a RESUME. The first
    `commands` replies answer them in order; `empties` are the positions among them, from 0, of
    those that empty buffer A.
    """
    if not stream or stream[-1].reply or stream[-1].name != "RESUME":
        return "there was no RESUME"
    replies = [place for place, message in enumerate(stream) if message.reply][:commands]
    refused = next((stream[place] for place in replies if stream[place].error), None)
    if refused is not None:
        return f"{refused.name}: {refused.error}"
    if len(replies) < commands:
        return "the guest resumed before every command was executed"
    events = [(place, message.name) for place, message in enumerate(stream) if not message.reply]
    ended = next((name for _, name in events if name in ENDS_COLO), None)
    if ended is not None:
        return f"{ended} came before the RESUME"
    stops = [place for place, name in events if name == "STOP"]
    if len(stops) != 1:
        return f"{len(stops)} STOPs instead of one: another checkpoint was under way"
    if any(replies[empty] < stops[0] for empty in empties):
        return "the guest still ran when buffer A was emptied"
    if sum(name == "RESUME" for _, name in events) != 1:
        return "the guest resumed twice"
    return None
