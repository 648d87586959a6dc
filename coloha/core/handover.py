"""An operator's order to a healthy primary: let the other node run the VM.

With a witness nothing is risked: the primary offers the VM, by heartbeat; the secondary takes the
next generation; the primary, overtaken, kills its QEMU, and the secondary speaks. If it does not
take it (it just died, the witness is away), epochs go on. Without a witness the primary's word is
all there is: it gives its copy up first.
"""

from coloha.core.actions import Beat, Script, Severity
from coloha.core.context import Context
from coloha.core.phases import Phase

OFFER_S = 1.0
"""How long an offer stands: output is held meanwhile."""


def ends_gently(c: Context) -> bool:
    """Whether the VM is to change over after one more commit, which then comes at once."""
    return c.ordered is not None and c.ordered.gently and _stands(c)


def due(c: Context) -> bool:
    """Whether the order is to be carried out now.

    Never between a commit and its release: what was committed is owed to the clients, who would ask
    for it again. Gently: when a commit that began after the order is released, so that the other
    node goes on from what the guest did last.
    """
    if not _stands(c):
        return False
    if not ends_gently(c):
        return c.script is None or c.script.script is not Script.RELEASE
    epoch_is_over = c.script is None and not c.releasable and c.kept == 0
    return epoch_is_over and c.pacing.started_at >= c.ordered_at


def carry_out(c: Context) -> None:
    """Offer the VM to the other node for a while; without a witness, give it up."""
    if c.offered_at is None:
        kind = "switchover" if ends_gently(c) else "failover-ordered"
        c.tell(kind, f"{c.s.peer} takes over, as an operator ordered", Severity.WARNING)
        if not c.s.witnessed:
            c.go(Phase.KILL)
            return
        c.offered_at = c.now
        c.actions.append(Beat())
    if c.now >= c.offered_at + OFFER_S:
        c.lapse()
    else:
        c.wait(f"{c.s.peer} to take the next generation", c.offered_at + OFFER_S)


def offers(c: Context) -> bool:
    """Whether this node offers the VM to the other one."""
    return c.phase is Phase.PROTECTED and c.offered_at is not None


def offered(c: Context) -> bool:
    """Whether the VM is offered to this node, in the session that it follows."""
    peer = c.heard
    return peer is not None and peer.offers and peer.session == c.session


def _stands(c: Context) -> bool:
    # The operator's order outranks the operator's pause, if the other node hears of the order.
    able = c.peer_can_take_over and c.fence is None if c.s.witnessed else c.may_hand_over
    return c.ordered_here(forced=False) and able
