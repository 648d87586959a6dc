"""The generation record: one per pair, at the witness, changed only by compare-and-swap.

It answers one question: whose output may clients see? Two nodes that cannot hear each other ask
the witness, and since a swap names the record it replaces, one of them gets its way and the other
learns that it did not.

    solo(g, A)  --------------->  protected(g, A, B, s)        R1, by A only
    protected(g, A, B, s)  ---->  solo(g+1, A)                 R2, by A only
    protected(g, A, B, s)  ---->  solo(g+1, B)                 R2, by B only
    solo(g, A)  --------------->  solo(g+1, A)                 R4, by A only
    any record of generation g  ->  solo(g+1, A)               R4, by an operator, for A

A generation is protected at most once, in one session: leaving `protected` always ends it. That is
why a late or repeated swap can do no harm: what it expects is gone for good.
"""

from dataclasses import dataclass, replace

OPERATOR = "an operator"
"""Who asks for a swap that only a person may decide. No node can be called so."""


@dataclass(frozen=True, slots=True)
class Record:
    """Who may speak for a pair.

    `lineage` is made with the first record of a pair and never changes: it tells a witness that
    lost its data from one that never had any. `session` names the secondary's run that holds the
    copy; it is None exactly when `secondary` is.
    """

    lineage: str
    generation: int
    primary: str
    secondary: str | None = None
    session: int | None = None

    @property
    def protected(self) -> bool:
        """Whether a secondary may take over."""
        return self.secondary is not None

    def protect(self, secondary: str, session: int) -> "Record":
        """Return this solo record with a secondary that may take over from now on."""
        return replace(self, secondary=secondary, session=session)

    def take_over(self, node: str) -> "Record":
        """Return the record of the next generation, in which only `node` speaks."""
        return Record(self.lineage, self.generation + 1, node)

    def __str__(self) -> str:
        if self.secondary is None:
            return f"solo({self.generation}, {self.primary})"
        return f"protected({self.generation}, {self.primary}, {self.secondary})"


def first_record(lineage: str, primary: str) -> Record:
    """Return the record with which a pair begins its life."""
    return Record(lineage, 1, primary)


def swap_problem(current: Record | None, new: Record, by: str) -> str | None:
    """Say which rule forbids `by` to replace `current` with `new`, or None when it may.

    The machine never asks for a forbidden swap; witnesses check all the same, since this is the
    one place where a mistake would give a VM two voices.
    """
    if current is None:
        if new != first_record(new.lineage, by):
            return "a first record is solo, of generation 1, and made by its own primary"
        return None
    if new.lineage != current.lineage:
        return "a record never changes its lineage"
    if by == OPERATOR:
        return None if new == current.take_over(new.primary) else "R4: an operator takes over"
    if not current.protected and by != current.primary:
        return f"R4: only {current.primary} may change {current}"
    if by not in (current.primary, current.secondary):
        return f"{by} has no part in {current}"
    if new.protected:
        peer, session = new.secondary, new.session
        if current.protected or peer is None or session is None or peer == by:
            return "R1: only a solo record becomes protected"
        if new != current.protect(peer, session):
            return "R1: protecting changes neither generation nor primary"
        return None
    if new != current.take_over(new.primary):
        return "R2: who may speak changes only with the next generation"
    if new.primary != by:
        return f"R2: {by} claims a generation for itself only"
    return None
