"""The documents as data: headings, tables, blocks, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.namespace import CHECKOUT

README = CHECKOUT / "README.md"
DOCS = CHECKOUT / "docs"


def pages() -> list[Path]:
    """Every document that people read; those of decisions are last."""
    return [README, CHECKOUT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def named(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced or an indented block of a document; `line` is its first one, from 1."""

    path: Path
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


_ITEM = re.compile(r"( *)([-*]|\d+\.) +")


def blocks(path: Path) -> list[Block]:
    """Fenced blocks, and those indented by four beyond the list they are in."""
    found: list[Block] = []
    lines = path.read_text().splitlines()
    number, margin = 0, 0
    while number < len(lines):
        line = lines[number]
        fence = re.match(r" *```(\w*)", line)
        indent = len(line) - len(line.lstrip())
        before = lines[number - 1].strip() if number else ""
        blank = not before or before.startswith("#")
        if fence:
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            found.append(Block(path, number + 2, fence[1], tuple(lines[number + 1 : end])))
            number = end
        elif line.strip() and blank and indent >= margin + 4:
            end = number
            while end < len(lines) and (
                not lines[end].strip() or lines[end].startswith(" " * indent)
            ):
                end += 1
            body = [text[indent:] for text in lines[number:end]]
            while not body[-1]:
                body.pop()
            found.append(Block(path, number + 1, "", tuple(body)))
            number = end - 1
        elif line.strip() and indent < 4:
            item = _ITEM.match(line)
            if item:
                margin = len(item[0])
            elif blank and indent < margin:
                margin = 0
        number += 1
    return found


def section(path: Path, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    text = path.read_text()
    begin = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert begin, f"{named(path)} has no heading {heading!r}"
    rest = text[begin.end() :]
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[list[str]]:
    """The rows of all tables in a text, cell by cell, without headers and rules."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for row in table.splitlines()[2:]:
            yield [cell.strip() for cell in row.strip().strip("|").split("|")]


def code(cell: str) -> str:
    """What a cell has in backquotes, all of it."""
    found = re.fullmatch(r"`([^`]*)`", cell)
    assert found, f"{cell!r} is no code"
    return found[1]


def anchors(path: Path) -> set[str]:
    """What links to a place in a document may name, as forges make it of headings."""
    made: set[str] = set()
    fenced = False
    for line in path.read_text().splitlines():
        fenced ^= line.startswith("```")
        heading = re.match(r"#+ (.*)", line)
        if heading and not fenced:
            made.add(re.sub(r"[^\w -]", "", heading[1]).strip().lower().replace(" ", "-"))
    return made
