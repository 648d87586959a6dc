"""One end of protection as one node saw it: why, who won, when the VM was heard, how it ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from coloha.core.actions import Persist, SwapRecord
from coloha.core.events import Heard, QemuExited, RecordRead, SwapDone
from coloha.core.phases import TRANSITIONS, Phase
from coloha.flight import words
from coloha.flight.record import Raised
from coloha.flight.replay import Step

MAX_NEWS = 5

_P = Phase


def passed(step: Step) -> tuple[Phase, ...]:
    """Return the phases entered in a step, with SOLO where it must have been on the way."""
    before, after = step.before.phase, step.after.phase
    if after is before:
        return ()
    through_solo = _P.SOLO in TRANSITIONS[before] and after in TRANSITIONS[_P.SOLO]
    if after not in TRANSITIONS[before] and through_solo:
        return (_P.SOLO, after)
    return (after,)


@dataclass(slots=True)
class Incident:
    """From the end of protection to the next protection. Times are seconds since 1970."""

    node: str
    peer: str
    at: float
    """When this node noticed."""
    primary: bool
    """Whether the VM was heard from this node until then."""
    was_protected: bool
    generation: int
    """The generation in which it began."""
    cause: str
    """What this node noticed first."""
    root: str | None = None
    """What turned out to be behind that."""
    silent_since: float | None = None
    """When the other node was heard last, if its silence is the cause."""
    held_from: float | None = None
    """Nothing that the guest said later than this was let go."""
    news: list[str] = field(default_factory=list)
    """What became known before it was decided who goes on."""
    asked_at: float | None = None
    witnessed: bool = True
    """A witness decided, as far as this host saw."""
    winner: str | None = None
    won: int | None = None
    """The generation that decides."""
    won_at: float | None = None
    """When this node learned of it."""
    dead_at: float | None = None
    """When this node's QEMU was seen dead."""
    heard_at: float | None = None
    """From when on clients hear the VM on this node, without a secondary."""
    boots_at: float | None = None
    protected_at: float | None = None
    over: bool = False
    broken_off: bool = False
    """coloha was started anew, or steps are missing, before it was over."""
    waiting: str | None = None
    """What this node waits for at the end of the record."""

    @property
    def failover(self) -> bool:
        """Whether the VM moved from one node to the other."""
        return self.winner is not None and self.winner != (self.node if self.primary else self.peer)

    def hear(self, news: str, *, explains: bool = False) -> None:
        """Take in what became known, while it is open who goes on; it may explain the rest."""
        if self.winner is not None:
            return
        if explains and self.root is None:
            self.root = news
        elif news not in self.news and len(self.news) < MAX_NEWS:
            self.news.append(news)

    def see(self, step: Step) -> None:
        """Take in a step, beginning with the one that broke protection."""
        self._see_decision(step)
        if isinstance(step.event, QemuExited) and step.event.run.id == step.before.run:
            self.dead_at = step.at
        if _P.SOLO in passed(step) and self.winner == self.node:
            self.heard_at = step.at
        elif _P.BOOT in passed(step):
            self.boots_at = step.at
        self.waiting = step.after.waiting
        if step.after.protected:
            self.protected_at = step.at
        self.over = step.after.protected or step.after.phase in (_P.OFF, _P.HALTED)

    def _see_decision(self, step: Step) -> None:
        if isinstance(step.outcome, Raised):
            return
        for action in step.outcome:
            if isinstance(action, SwapRecord) and not action.new.protected:
                self.asked_at = self.asked_at or step.at
            elif isinstance(action, Persist) and self.winner is None:
                record = action.durable.record  # without a witness
                if record is not None:
                    self.witnessed = False
                    self._decided(step.at, record.primary, record.generation)
        event = step.event
        if self.winner is not None:
            return
        if isinstance(event, SwapDone | RecordRead) and step.after.witness_error is None:
            record = event.record
            if record is not None:
                self._decided(step.at, record.primary, record.generation)
        elif isinstance(event, Heard) and event.peer.owner:
            self._decided(step.at, self.peer, event.peer.generation)

    def _decided(self, at: float, winner: str, generation: int) -> None:
        if generation > self.generation:
            self.winner, self.won, self.won_at = winner, generation, at

    # In words

    def paragraph(self) -> str:
        """Return why it happened, and how it ended."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        why = self.cause if self.root is None else f"{self.root} (first sign: {self.cause})"
        yield f"{self._headline()} {_ended(f'Why: {why}')}"
        yield from (_ended(f"Then {news}") for news in self.news)
        if self.winner == self.node:
            yield from self._won()
        elif self.winner is not None:
            yield from self._lost()
        if self.boots_at is not None:
            yield f"From {words.clock(self.boots_at)} on the VM boots anew on {self.node}."
        yield self._end()

    def _headline(self) -> str:
        me, peer = self.node, self.peer
        at = f"On {words.day(self.at)} at {words.clock(self.at)} UTC"
        if self.failover:
            origin, target = (me, peer) if self.primary else (peer, me)
            return f"{at} the VM failed over from {origin} to {target}."
        if not self.was_protected:
            return f"{at} the VM was lost while it ran on {me} alone."
        if self.primary and self.winner == me:
            return f"{at} {me} lost its secondary; the VM stayed on {me}: no failover."
        if self.primary and self.winner is None and self.protected_at is not None:
            return f"{at} {me} doubted its secondary; nothing was decided: no failover."
        if self.primary:
            return f"{at} protection ended on {me}, which had the VM."
        if self.winner == peer:
            return f"{at} the copy on {me} fell out; the VM stayed on {peer}: no failover."
        if self.protected_at is not None:
            return f"{at} {me} doubted {peer}; nothing was decided: no failover."
        return f"{at} protection ended on {me}, which had the copy."

    def _won(self) -> Iterator[str]:
        assert self.won_at is not None
        me = self.node
        took = ""
        if self.asked_at is not None:
            took = f", {words.length(self.won_at - self.asked_at)} after {me} had asked for it"
        at = f"at {words.clock(self.won_at)}{took}"
        if self.witnessed:
            yield f"The witness gave generation {self.won} to {me} {at}."
        else:
            yield f"{me} took generation {self.won} {at}."
        if self.heard_at is None:
            return
        since = words.length(self.heard_at - self.at)
        if self.primary:
            held = ""
            if self.held_from is not None:
                held = (
                    f"; what its guest had said since {words.clock(self.held_from)} was held until "
                    "then"
                )
            yield f"{me} opened its output at {words.clock(self.heard_at)}{held}."
        else:
            silence = ""
            if self.silent_since is not None:
                silent = words.length(self.heard_at - self.silent_since)
                silence = f", {silent} after {self.peer} was last heard"
            yield (
                f"The copy on {me}, as old as the last checkpoint, became the VM: clients hear it "
                f"since {words.clock(self.heard_at)}, {since} after {me} noticed{silence}."
            )

    def _lost(self) -> Iterator[str]:
        assert self.won_at is not None
        yield (
            f"{self.peer} has generation {self.won}, as {self.node} learned at "
            f"{words.clock(self.won_at)}."
        )
        if self.dead_at is not None and self.dead_at > self.won_at:
            yield f"{self.node}'s QEMU was killed, and dead at {words.clock(self.dead_at)}."
        if self.primary and self.held_from is not None:
            yield (
                f"What its guest said since {words.clock(self.held_from)} was held, and no client "
                "heard it."
            )

    def _end(self) -> str:
        if self.protected_at is not None:
            after = words.length(self.protected_at - self.at)
            return f"Protected again at {words.clock(self.protected_at)}, {after} later."
        if self.broken_off:
            return "What follows is another life of coloha, or not in the record."
        if self.waiting:
            return (
                f"As the record ends the VM is not protected: {self.node} waits for {self.waiting}."
            )
        return "As the record ends the VM is not protected."


def _ended(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
