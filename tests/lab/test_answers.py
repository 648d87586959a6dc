"""The judge of the counter's answers, the gap meter and the histogram: pure, so tested hard."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.answers import AnswerChecker, Gap, Gaps, Latencies


def judge(checker: AnswerChecker, *lines: str) -> dict[str, int]:
    """Feed whole lines; the verdicts that are not zero, by name."""
    checker.receive("".join(f"{line}\n" for line in lines).encode(), 0)
    kinds = {"right": checker.right, **checker.wrong}
    return {kind: count for kind, count in kinds.items() if count}


def asked(count: int, *, shared: bool = False) -> AnswerChecker:
    checker = AnswerChecker(shared=shared)
    for _ in range(count):
        checker.request(0)
    return checker


def test_a_request_is_a_line_with_a_token_never_used_before() -> None:
    checker = AnswerChecker("a1")
    assert [checker.request(0), checker.request(0)] == [b"a1.0\n", b"a1.1\n"]


@pytest.mark.parametrize(
    ("lines", "verdicts"),
    [
        (["c.0 1", "c.1 2", "c.2 3"], {"right": 3}),
        (["c.0 41", "c.1 42"], {"right": 2}),
        (["c.0 1", "c.0 1"], {"right": 1, "repeated": 1}),
        (["c.0 1", "c.0 2"], {"right": 1, "repeated": 1}),
        (["c.0 1", "c.2 2"], {"right": 2, "lost": 1}),
        (["c.0 1", "c.2 3"], {"right": 2, "lost": 1}),
        (["c.0 1", "c.2 4"], {"right": 1, "lost": 1, "skipped": 1}),
        (["c.0 1", "c.2 3", "c.1 2"], {"right": 2, "reversed": 1}),
        (["c.0 5", "c.1 5"], {"right": 1, "reversed": 1}),
        (["c.0 5", "c.1 3", "c.2 4"], {"right": 2, "reversed": 1}),
        (["c.0 1", "c.1 3"], {"right": 1, "skipped": 1}),
        (["c.9 1"], {"corrupt": 1}),
        (["d.0 1"], {"corrupt": 1}),
        (["c.0"], {"corrupt": 1}),
        (["c.0 x"], {"corrupt": 1}),
        (["c.0 1 "], {"corrupt": 1}),
        ([""], {"corrupt": 1}),
        (["c.0 -1"], {"corrupt": 1}),
    ],
)
def test_each_line_gets_one_verdict(lines: list[str], verdicts: dict[str, int]) -> None:
    assert judge(asked(3), *lines) == verdicts


def test_a_shared_counter_only_has_to_grow() -> None:
    assert judge(asked(3, shared=True), "c.0 1", "c.1 9", "c.2 9") == {"right": 2, "reversed": 1}


def test_requests_cut_off_by_the_connection_may_have_been_counted_or_not() -> None:
    for value, kind in ((2, "right"), (3, "right"), (4, "skipped"), (1, "reversed")):
        checker = asked(1)
        assert judge(checker, "c.0 1") == {"right": 1}
        checker.request(0)
        checker.connection_lost()
        checker.request(0)
        right = 1 + (kind == "right")
        other = {} if kind == "right" else {kind: 1}
        assert judge(checker, f"c.2 {value}") == {"right": right, **other}
        assert checker.unanswered == 1


def test_half_a_line_does_not_survive_its_connection() -> None:
    checker = asked(1)
    checker.receive(b"c.0 ", 0)
    checker.connection_lost()
    checker.request(0)
    assert judge(checker, "c.1 1") == {"right": 1}


def test_a_name_that_would_make_tokens_ambiguous_is_refused() -> None:
    for name in ("", "a.b", "a b", "A"):
        with pytest.raises(ValueError, match="a-z and 0-9"):
            AnswerChecker(name)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.integers(1, 50), st.lists(st.integers(0, 10_000), max_size=20), st.integers(0, 10**15))
def test_right_answers_are_right_however_they_are_cut(
    count: int, cuts: list[int], first: int
) -> None:
    checker = asked(count)
    data = "".join(f"c.{n} {first + n}\n" for n in range(count)).encode()
    assert sum(checker.receive(piece, 0) for piece in pieces(data, cuts)) == count
    assert (checker.right, sum(checker.wrong.values()), checker.waiting) == (count, 0, 0)


@st.composite
def one_fault(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Right answers to 20 requests, spoilt in one place; and the kind of the fault."""
    lines = [f"c.{n} {n + 1}" for n in range(20)]
    at = draw(st.integers(1, 18))
    kind = draw(st.sampled_from(["lost", "repeated", "reversed", "skipped", "corrupt"]))
    if kind == "lost":
        del lines[at]
    elif kind == "repeated":
        lines.insert(draw(st.integers(at + 1, 20)), lines[at])
    elif kind == "reversed":  # a guest that has forgotten some requests
        back = draw(st.integers(1, at))
        lines[at:] = [f"c.{n} {n + 1 - back}" for n in range(at, 20)]
    elif kind == "skipped":
        ahead = draw(st.integers(1, 9))
        lines[at:] = [f"c.{n} {n + 1 + ahead}" for n in range(at, 20)]
    else:
        lines.insert(at, draw(st.text("abc.0129 ", max_size=9).map(lambda text: "!" + text)))
    return kind, lines


@given(one_fault())
def test_one_fault_is_counted_once_and_by_its_name(fault: tuple[str, list[str]]) -> None:
    kind, lines = fault
    verdicts = judge(asked(20), *lines)
    assert {name: n for name, n in verdicts.items() if name != "right"} == {kind: 1}


EVENTS = st.one_of(
    st.just("request"),
    st.just("break"),
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda pair: "c.{} {}\n".format(*pair)),
    st.text("c.01 \n", max_size=6),
)


@given(st.lists(EVENTS, max_size=60), st.booleans())
def test_the_books_always_balance(events: list[str], shared: bool) -> None:
    checker = AnswerChecker(shared=shared)
    answered = 0
    for now, event in enumerate(events):
        if event == "request":
            checker.request(now)
        elif event == "break":
            checker.connection_lost()
        else:
            answered += checker.receive(event.encode(), now)
        wrong = checker.wrong
        assert min(wrong.values()) >= 0
        assert checker.lines == checker.right + sum(wrong.values()) - wrong["lost"]
        assert checker.requests == (
            checker.right
            + wrong["reversed"]
            + wrong["skipped"]
            + wrong["lost"]
            + checker.unanswered
            + checker.waiting
        )
        assert answered <= checker.requests


def test_a_gap_is_the_wait_between_two_answers() -> None:
    gaps = Gaps(threshold_ns=10)
    gaps.request(100)
    gaps.answer(105, waiting=True)
    gaps.answer(125, waiting=True)
    assert gaps.silence_ns(131) == 6
    gaps.answer(135, waiting=False)
    assert (gaps.kept, gaps.count, gaps.longest_ns) == ([Gap(105, 20)], 1, 20)


def test_leisure_is_no_gap() -> None:
    gaps = Gaps(threshold_ns=10)
    gaps.request(0)
    gaps.answer(5, waiting=False)
    assert gaps.silence_ns(1000) == 0
    gaps.request(1000)
    gaps.request(1005)
    gaps.answer(1008, waiting=False)
    assert (gaps.kept, gaps.longest_ns) == ([], 8)


def test_a_silence_without_end_is_a_gap() -> None:
    gaps = Gaps(threshold_ns=10)
    gaps.request(0)
    gaps.stop(50)
    assert (gaps.last, gaps.silence_ns(99)) == (Gap(0, 50), 0)


def test_gaps_kept_are_bounded_and_all_are_counted() -> None:
    gaps = Gaps(threshold_ns=0, limit=3)
    gaps.request(0)
    for now in range(1, 11):
        gaps.answer(now, waiting=True)
    assert (len(gaps.kept), gaps.count, gaps.last) == (3, 10, Gap(9, 1))


@given(st.lists(st.integers(0, 10**12), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_a_tenth_of_the_exact_one(durations: list[int], share: float) -> None:
    latencies = Latencies()
    for duration in durations:
        latencies.add(duration)
    exact = min(d for d in durations if sum(e <= d for e in durations) >= share * len(durations))
    assert exact * 0.9 <= latencies.quantile_ns(share) <= exact


def test_no_latency_has_no_quantile() -> None:
    assert Latencies().quantile_ns(0.5) == 0
