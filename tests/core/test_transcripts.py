"""Every transcript comes out as written."""

from pathlib import Path

import pytest

from tests.core.transcript import replay

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    written, made = replay(path)
    assert made == written


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) > 15
