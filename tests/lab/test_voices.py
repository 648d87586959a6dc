"""The judge of voices, on made-up frames: what it must let pass, and what it must not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.voices import Said, Verdict, VoiceChecker

A, B = "alpha", "beta"


def checker(*owners: tuple[int, str]) -> VoiceChecker:
    """Turns begin at these times, in generations 1, 2, ..."""
    made = VoiceChecker()
    for generation, (since_ns, side) in enumerate(owners, 1):
        made.owner(since_ns, side, generation)
    return made


def verdicts(made: VoiceChecker, *frames: tuple[int, str]) -> str:
    """One letter a frame: r(ight), s(tale), S(econd voice)."""
    letters = {Verdict.RIGHT: "r", Verdict.STALE: "s", Verdict.SECOND: "S"}
    return "".join(letters[made.hear(Said(*frame))] for frame in frames)


def test_a_failover_is_one_voice() -> None:
    made = checker((0, A), (100, B))
    assert verdicts(made, (10, A), (99, A), (101, B), (102, B)) == "rrrr"
    assert made.counts == {Verdict.RIGHT: 4, Verdict.STALE: 0, Verdict.SECOND: 0}
    assert made.examples == []


def test_the_old_side_may_end_before_the_new_one_begins() -> None:
    """It has the word in the record no more, but a lease that the new one waits for."""
    assert verdicts(checker((0, A), (100, B)), (150, A), (200, B), (201, A)) == "rrS"


def test_two_sides_at_once() -> None:
    made = checker((0, A), (100, B))
    assert verdicts(made, (110, B), (111, A), (112, B), (113, A)) == "rSrS"
    assert "generation 1" in made.examples[0]
    assert "generation 2" in made.examples[0]


def test_a_side_that_speaks_before_its_turn() -> None:
    assert verdicts(checker((0, A), (100, B)), (50, A), (99, B), (100, B)) == "rSr"
    assert verdicts(checker((10, A)), (9, A), (10, A)) == "Sr"
    assert verdicts(checker((0, A)), (50, B)) == "S"


def test_a_side_that_gets_the_word_back() -> None:
    made = checker((0, A), (100, B), (200, A))
    assert verdicts(made, (50, A), (150, B), (199, A), (200, A), (201, A)) == "rrSrr"


def test_a_side_that_speaks_only_when_its_turn_is_over() -> None:
    """Nobody heard generation 2 in its time; once generation 3 has spoken it is too late."""
    made = checker((0, A), (100, B), (200, A))
    assert verdicts(made, (50, A), (210, A), (220, B)) == "rrS"


def test_a_late_turn_that_nobody_has_followed_yet() -> None:
    made = checker((0, A), (100, B), (200, A), (300, B))
    assert verdicts(made, (250, B), (260, A), (310, B)) == "rrr"


def test_generations_of_one_owner_are_one_turn() -> None:
    made = checker((0, A), (100, A), (200, B))
    assert [turn.generation for turn in made.turns] == [1, 3]
    assert verdicts(made, (50, A), (150, A), (210, B)) == "rrr"


def test_a_generation_has_one_owner_and_never_comes_back() -> None:
    made = checker((0, A))
    with pytest.raises(ValueError, match="two owners"):
        made.owner(5, B, 1)
    made.owner(6, B, 2)
    with pytest.raises(ValueError, match="came after"):
        made.owner(7, A, 1)


def test_frames_out_of_order_are_refused() -> None:
    made = checker((0, A))
    made.hear(Said(10, A))
    with pytest.raises(ValueError, match="order"):
        made.hear(Said(9, A))


def test_stale_frames_are_counted_apart_and_only_for_who_stood_still() -> None:
    made = checker((0, A), (100, B))
    made.stood_still(A, 90, 120)
    assert verdicts(made, (50, A), (110, B), (115, A), (120, A), (121, A)) == "rrssS"
    assert made.counts[Verdict.STALE] == 2
    made = checker((0, A), (100, B))
    made.stood_still(B, 90, 120)
    assert verdicts(made, (110, B), (115, A)) == "rS"


def test_nobody_who_stood_still_may_speak_without_a_turn() -> None:
    made = checker((0, A))
    made.stood_still(B, 0, 100)
    assert verdicts(made, (50, B)) == "S"


def numbers(made: VoiceChecker, *frames: tuple[int, str, int | None]) -> int:
    for frame in frames:
        made.hear(Said(*frame))
    return made.forgotten


def test_what_was_said_is_remembered() -> None:
    assert numbers(checker((0, A), (100, B)), (50, A, 7), (60, A, 8), (110, B, 9)) == 0
    assert numbers(checker((0, A), (100, B)), (50, A, 7), (60, A, 8), (110, B, 20)) == 0


def test_what_was_said_twice_was_forgotten() -> None:
    assert numbers(checker((0, A), (100, B)), (50, A, 7), (60, A, 8), (110, B, 8)) == 1
    assert numbers(checker((0, A)), (50, A, 7), (60, A, 7)) == 1


def test_stale_frames_must_be_remembered_too() -> None:
    def still() -> VoiceChecker:
        made = checker((0, A), (100, B))
        made.stood_still(A, 90, 200)
        return made

    assert numbers(still(), (50, A, 7), (110, B, 9), (120, A, 8), (130, B, 10)) == 0
    assert numbers(still(), (50, A, 7), (110, B, 9), (120, A, 9)) == 1
    assert numbers(still(), (50, A, 7), (110, B, None), (120, A, 9), (130, B, 9)) == 1


def test_a_new_life_begins_its_numbers_anew() -> None:
    made = checker((0, A), (100, B))
    numbers(made, (50, A, 700))
    made.new_life()
    assert numbers(made, (110, B, 1), (120, B, 2)) == 0


TURNS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@given(TURNS, st.data())
def test_whoever_speaks_in_turn_is_right(lengths: list[int], data: st.DataObject) -> None:
    """Any frames of the one whose turn it is are right; one more, of anybody else, is not."""
    made, since_ns = VoiceChecker(), 0
    for place, length in enumerate(lengths):
        side = (A, B)[place % 2]
        made.owner(since_ns, side, place + 1)
        for offset in sorted(data.draw(st.sets(st.integers(0, length - 1), max_size=3))):
            assert made.hear(Said(since_ns + offset, side)) is Verdict.RIGHT
        since_ns += length
    last = (A, B)[(len(lengths) - 1) % 2]
    assert made.hear(Said(since_ns, last)) is Verdict.RIGHT
    assert made.hear(Said(since_ns, B if last == A else A)) is Verdict.SECOND
