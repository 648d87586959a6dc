"""What systemd makes of the shipped units."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.namespace import CHECKOUT

UNITS = ("coloha.service", "coloha-qemu@.service", "coloha.slice")


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("unit", UNITS[:2])
def test_exposure(unit: str, tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "systemd" / unit, tmp_path)
    done = analyze("security", "--offline=true", "--threshold=15", tmp_path / unit)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_units_are_sound(tmp_path: Path) -> None:
    """systemd finds no setting that it does not know."""
    for unit in UNITS:
        text = (CHECKOUT / "systemd" / unit).read_text()
        for program in ("/usr/bin/coloha-launch", "/usr/bin/coloha"):
            text = text.replace(program, "/bin/true")
        (tmp_path / unit.replace("@", "@web")).write_text(text)
    done = analyze(
        "verify", "--man=no", tmp_path / "coloha.service", tmp_path / "coloha-qemu@web.service"
    )
    assert done.returncode == 0, done.stderr
    assert "coloha" not in done.stderr
