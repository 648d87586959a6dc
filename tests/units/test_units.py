"""What systemd makes of the shipped units."""

import subprocess

import pytest

from lab.assets import cache_folder
from lab.namespace import CHECKOUT


@pytest.mark.parametrize("unit", ["coloha.service", "coloha-qemu@.service"])
def test_exposure(unit: str) -> None:
    root = cache_folder() / "root"
    shipped = root / "etc/systemd/system" / unit
    shipped.write_text((CHECKOUT / "systemd" / unit).read_text())
    argv = ["chroot", str(root), "systemd-analyze", "security", "--offline=true", "--threshold=15"]
    done = subprocess.run(
        [*argv, f"/etc/systemd/system/{unit}"], capture_output=True, text=True, check=False
    )
    shipped.unlink()
    assert done.returncode == 0, done.stdout[-300:]


def test_units_are_sound() -> None:
    """systemd finds no setting that it does not know."""
    root = cache_folder() / "root"
    place = root / "tmp/units"
    place.mkdir(exist_ok=True)
    for path in (CHECKOUT / "systemd").glob("coloha*.s*i*ce"):
        text = path.read_text().replace("/usr/bin/coloha-launch", "/bin/true")
        (place / path.name).write_text(text.replace("/usr/bin/coloha", "/bin/true"))
    (place / "coloha-qemu@.service").rename(place / "coloha-qemu@web.service")
    argv = [
        "chroot",
        str(root),
        "systemd-analyze",
        "verify",
        "--man=no",
        "/tmp/units/coloha.service",
    ]
    argv.append("/tmp/units/coloha-qemu@web.service")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "coloha" not in done.stderr
