"""Reading a file while another process writes it."""

from pathlib import Path

from lab.tail import Tail


def test_each_line_once_and_none_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntwo\nthr")
    assert tail.lines() == ["one", "two"]
    assert tail.lines() == []
    with path.open("a") as file:
        file.write("ee\n\n")
    assert tail.lines() == ["three", ""]
    assert tail.lines() == []
