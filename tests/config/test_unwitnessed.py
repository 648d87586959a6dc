"""A pair without a witness: what is read, refused, and must be agreed on."""

from pathlib import Path

import pytest

from coloha.config import NoWitness

from .support import PAIR, edit, load_pair, refuse_pair

ALONE = PAIR[: PAIR.index("witness:")] + "witness:\n  type: none\n"


@pytest.mark.parametrize(
    ("written", "meant"), [("", "hold"), ("  on_silence: primary\n", "primary")]
)
def test_what_happens_on_silence(tmp_path: Path, written: str, meant: str) -> None:
    section = load_pair(tmp_path, ALONE + written).witness
    assert isinstance(section, NoWitness)
    assert section.on_silence == meant


def test_both_nodes_must_mean_the_same(tmp_path: Path) -> None:
    texts = (PAIR, ALONE, ALONE + "  on_silence: primary\n")
    assert len({load_pair(tmp_path, text).fingerprint() for text in texts}) == 3
    written_out = load_pair(tmp_path, ALONE + "  on_silence: hold\n")
    assert load_pair(tmp_path, ALONE).fingerprint() == written_out.fingerprint()


def test_what_is_refused(tmp_path: Path) -> None:
    both = edit(ALONE, "type: none", "type: none\n  on_silence: both\n  directory: /srv")
    refuse_pair(
        tmp_path,
        both,
        ("16:15: witness.on_silence", "both"),
        ("17:3: witness.directory", "unknown key 'directory'"),
    )
