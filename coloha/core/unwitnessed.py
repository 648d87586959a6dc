"""Without a witness: how two copies of the record become one (R7).

Each node has its own. Of two copies the higher one is later, and both nodes keep it:

    (g, solo) < (g, protected) < (g+1, solo)

In all that nodes do by themselves the later record is also the right one: see `ownership.py`.
Only orders of an operator who believed the other host off can make two records of one generation,
or a later one for a VM that is dead. Then the node whose QEMU lives is right; if both live, the
node that the configuration names first, and the other one's QEMU is killed.
"""

from dataclasses import replace

from coloha.core.actions import Severity
from coloha.core.context import Context
from coloha.core.events import PeerState
from coloha.core.phases import Phase
from coloha.core.record import Record


def compare(c: Context, peer: PeerState) -> None:
    """Take in the other node's copy of the record."""
    mine, theirs = c.record, peer.record
    if peer.phase is Phase.INIT or c.phase is Phase.HALTED:
        return
    if theirs is not None and theirs != mine and _same_life(mine, theirs):
        if mine is None or _theirs_is_right(c, peer, mine, theirs):
            c.copy_record(theirs)
        elif _rank(theirs) > _rank(mine):
            _outbid(c, theirs)
    may_speak = peer.living and (peer.owner or theirs is None)
    if not may_speak and _same_life(c.record, theirs):
        c.met = True


def _same_life(mine: Record | None, theirs: Record | None) -> bool:
    return mine is None or theirs is None or mine.lineage == theirs.lineage


def _rank(record: Record) -> tuple[int, bool]:
    return record.generation, record.protected


def _theirs_is_right(c: Context, peer: PeerState, mine: Record, theirs: Record) -> bool:
    speaking = c.owned and c.run is not None
    answered = peer.owner and peer.living
    if _rank(theirs) == _rank(mine):
        return answered > speaking if answered != speaking else not c.s.first
    return _rank(theirs) > _rank(mine) and not (speaking and not answered)


def _outbid(c: Context, theirs: Record) -> None:
    """The VM lives here, the one of the later record does not: it is given a later one still."""
    c.tell("outbid", f"{theirs} is the record of a VM that is dead", Severity.WARNING)
    record = theirs.take_over(c.s.me)
    c.learn(record)
    c.persist(replace(c.durable, record=record, generation=record.generation))
