"""How a node comes to be the only one that may speak.

With a witness it asks for the next generation. Without one (R7) there is nobody to ask: a protected
generation gives each node a claim to the next one, and a node takes it once the other one's claim
is gone. A claim is lost with the copy of the session: it was given up, for ever, and said so; or
the host was switched off. `OnSilence.PRIMARY` gives the primary alone a claim; it still loses it by
giving up its copy, and only then does the secondary have one.
"""

from dataclasses import replace

from coloha.core.actions import Beat
from coloha.core.context import Context, InvariantError, OnSilence
from coloha.core.phases import Phase
from coloha.core.record import OPERATOR, Record, swap_problem


def own(c: Context, *, forced: bool = False) -> bool:
    """Work towards being the only one who may speak; return whether that is so.

    Only for a primary, or the secondary of a protected record: see the rules in `record.py`;
    without a witness also by an operator's force.
    """
    assert c.record is not None
    if not c.owned and not c.s.witnessed and (forced or entitled(c)):
        move_record(c, c.record.take_over(c.s.me), OPERATOR if forced else c.s.me)
    if c.owned:
        c.enter_generation()
        return True
    if c.s.witnessed:
        c.wait("the witness")
        c.swap_record(c.record.take_over(c.s.me))
    else:
        c.wait(f"{c.s.peer} to give its copy up, or an operator: coloha failover --force")
    return False


def move_record(c: Context, new: Record, by: str) -> None:
    """Without a witness: make `new` the record here, before anything else happens."""
    problem = swap_problem(c.record, new, by)
    if problem is None and c.s.witnessed:
        problem = "the record is at the witness"
    if problem is not None:
        raise InvariantError(f"{c.record} to {new}: {problem}")
    c.met = True
    c.learn(new)
    c.persist(
        replace(c.durable, record=new, lineage=new.lineage, generation=new.generation, asked=None)
    )
    c.actions.append(Beat())


def entitled(c: Context) -> bool:
    """Whether, without a witness, this node may take the next generation."""
    record = c.record
    assert record is not None
    primary, session = record.primary == c.s.me, record.session
    if session is None:
        return primary
    mine = c.durable.gave_up != session
    if c.peer is not None and c.peer.gave_up == session:
        return mine or primary  # of two that gave up, the primary boots the VM anew
    hold = c.s.on_silence is OnSilence.HOLD
    if primary and not hold and mine:
        return True
    if c.fenced == session and mine:
        return primary or hold
    return primary and _stands_by(c, session)


def _stands_by(c: Context, session: int) -> bool:
    """Whether the other node is heard, without a copy of that session."""
    peer = c.heard
    return peer is not None and peer.phase is Phase.STANDBY and peer.session != session
