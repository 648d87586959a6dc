"""How far a copy has come is told now and then, not all the time."""

from coloha.qemu.steps import Progress
from coloha.runtime.quarters import Quarters

MIB = 2**20


def told(quarters: Quarters, *copied: int, total: int = 400) -> list[str]:
    said = [quarters.news(Progress(each * MIB, total * MIB)) for each in copied]
    return [text.split(" of ")[0] for text in said if text is not None]


def test_each_quarter_is_told_once() -> None:
    quarters = Quarters()
    assert told(quarters, 0, 1, 99, 100, 101, 399, 399, 400) == ["0 %", "25 %", "75 %", "100 %"]


def test_a_total_that_grows_takes_nothing_back() -> None:
    quarters = Quarters()
    assert told(quarters, 0, 300) == ["0 %", "75 %"]
    assert told(quarters, 300, 310, total=800) == []


def test_a_further_copy_is_told_anew() -> None:
    quarters = Quarters()
    assert told(quarters, 200) == ["50 %"]
    assert quarters.news(None) is None
    assert told(quarters, 10) == ["0 %"]
    assert quarters.news(Progress(0, 0)) is None
