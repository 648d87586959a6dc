"""Does the guest speak from one side at a time, and never from a generation that is over? Pure.

What is known: when each frame of the guest left a QEMU, and on which side; and to whom the witness
gave the word, when. All times are of one clock, that of the machine all of it runs on.

A *turn* is a run of generations with one owner. A frame belongs to the last turn of its side that
had begun by then: a QEMU whose turn is over is killed before its side follows, and its side follows
before it can get another turn. The guest has one voice if the turns of its frames, in the order of
time, never go back, and no side speaks without a turn.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

EXAMPLES = 20


class Verdict(StrEnum):
    """What a frame is."""

    RIGHT = "right"
    STALE = "stale"
    """Of a turn that is over, from a side that stood still in between: see docs/design.md."""
    SECOND = "second voice"


@dataclass(frozen=True, slots=True)
class Said:
    """A frame of the guest: when (ns), from which side and, if it is a beacon, its number."""

    t_ns: int
    side: str
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """From `since_ns` on the record names `side`; `generation` is the first one of the turn."""

    since_ns: int
    side: str
    generation: int


@dataclass(slots=True)
class VoiceChecker:
    """Judges frames in the order of time; `owner` must have been told all that is older."""

    turns: list[Turn] = field(default_factory=list)
    counts: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    forgotten: int = 0
    """Beacons that the VM sent although it, or a stale copy of it, had sent them before."""
    examples: list[str] = field(default_factory=list)
    """The first frames that were not right, in words."""
    _still: list[tuple[str, int, int]] = field(default_factory=list)
    _at: int = -1
    """The turn that was heard last."""
    _first: int | None = None
    """The first beacon of that turn."""
    _highest: int = -1
    _stale_highest: int = -1
    _last_ns: int = 0

    def owner(self, since_ns: int, side: str, generation: int) -> None:
        """The record names `side` since then, in `generation`.

        :raises ValueError: if the generation is older than one before, or has a second owner.
        """
        if self.turns and generation < self.turns[-1].generation:
            raise ValueError(f"generation {generation} came after {self.turns[-1].generation}")
        if self.turns and side != self.turns[-1].side and generation == self.turns[-1].generation:
            raise ValueError(f"generation {generation} has two owners")
        if not self.turns or side != self.turns[-1].side:
            self.turns.append(Turn(since_ns, side, generation))

    def stood_still(self, side: str, start_ns: int, end_ns: int) -> None:
        """A process of that side was stopped; what was under way may be late until `end_ns`."""
        self._still.append((side, start_ns, end_ns))

    def new_life(self) -> None:
        """The VM boots anew: its beacons begin anew."""
        self._first, self._highest, self._stale_highest = None, -1, -1

    def hear(self, said: Said) -> Verdict:
        """Judge the next frame.

        :raises ValueError: if it is older than the one before.
        """
        if said.t_ns < self._last_ns:
            raise ValueError("frames must be told in the order of time")
        self._last_ns = said.t_ns
        turn = self._turn_of(said)
        if turn is not None and turn >= self._at:
            verdict = Verdict.RIGHT
            if turn > self._at:
                self._at, self._first = turn, None
            self._remember(said)
        else:
            stale = turn is not None and self._stands_still(said)
            verdict = Verdict.STALE if stale else Verdict.SECOND
            self._note(said, verdict, turn)
            if stale:
                self._remember_stale(said)
        self.counts[verdict] += 1
        return verdict

    def hear_all(self, frames: Iterable[Said]) -> None:
        """Judge frames, sorted here."""
        for said in sorted(frames, key=lambda each: each.t_ns):
            self.hear(said)

    def _turn_of(self, said: Said) -> int | None:
        for place in range(len(self.turns) - 1, -1, -1):
            turn = self.turns[place]
            if turn.side == said.side and turn.since_ns <= said.t_ns:
                return place
        return None

    def _stands_still(self, said: Said) -> bool:
        return any(
            said.side == side and start_ns <= said.t_ns <= end_ns
            for side, start_ns, end_ns in self._still
        )

    def _remember(self, said: Said) -> None:
        if said.number is None:
            return
        if self._first is None:
            self._first = said.number
            # All that an older turn said late must be older than all that this one says.
            self._forget(said, said.number <= self._stale_highest)
        self._forget(said, said.number <= self._highest)
        self._highest = max(self._highest, said.number)

    def _remember_stale(self, said: Said) -> None:
        if said.number is not None:
            self._stale_highest = max(self._stale_highest, said.number)
            self._forget(said, self._first is not None and said.number >= self._first)

    def _forget(self, said: Said, forgotten: bool) -> None:
        if forgotten:
            self.forgotten += 1
            self._example(f"{said}: the VM goes on from a state in which this was not said yet")

    def _note(self, said: Said, verdict: Verdict, turn: int | None) -> None:
        its = "no turn" if turn is None else f"its turn was generation {self._generation(turn)}"
        heard = "nobody" if self._at < 0 else f"generation {self._generation(self._at)}"
        self._example(f"{said}: {verdict}; {its}, and {heard} had been heard")

    def _generation(self, turn: int) -> int:
        return self.turns[turn].generation

    def _example(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)
