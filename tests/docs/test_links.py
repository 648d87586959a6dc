"""Links in the documents lead to something, and every document is led to."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespace import CHECKOUT
from tests.docs.pages import DOCS, README, anchors, blocks, named, pages

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """The targets of a document's links to files here, and the anchors in them."""
    text = path.read_text()
    for block in blocks(path):
        text = text.replace(block.text, "\n")
    for target in LINK.findall(re.sub(r"`[^`]*`", "", text)):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            yield (path.parent / name).resolve() if name else path, anchor


@pytest.mark.parametrize("path", pages(), ids=named)
def test_links_resolve(path: Path) -> None:
    for target, anchor in links(path):
        assert target.exists(), f"{named(path)} links to {target}, which is not there"
        assert target.is_relative_to(CHECKOUT)
        if anchor:
            assert anchor in anchors(target), f"{named(path)}: {named(target)} has no #{anchor}"


def test_the_readme_leads_to_every_document() -> None:
    found = {target for target, _ in links(README)}
    assert not {path for path in DOCS.glob("*.md") if path not in found}


def test_every_decision_is_linked_or_in_the_folder_that_is() -> None:
    assert DOCS / "adr" in {target for target, _ in links(README)}


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n    [no](link.md)\n\n`[no](code.md)` [a](b.md#c) [d](#one)\n")
    assert list(links(page)) == [(tmp_path / "b.md", "c"), (page, "one")]
    assert anchors(page) == {"one"}
