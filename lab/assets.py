"""What `lab/setup.sh` made: where QEMU, etcd and the guest are."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from lab.namespace import CHECKOUT, LabError


@dataclass(frozen=True, slots=True)
class Assets:
    """The files that the lab runs; all paths are absolute."""

    qemu: Path
    """qemu-system-x86_64, 11 or newer."""
    qemu_img: Path
    qemu_10_0: Path
    """Debian 13's."""
    qemu_7_2: Path
    """Debian 12's."""
    etcd: Path
    promtool: Path
    prometheus: Path
    mosquitto: Path
    """An MQTT broker."""
    mosquitto_passwd: Path
    mosquitto_sub: Path
    kernel: Path
    initrd: Path
    plugin: Path
    """Makes COLO sound under TCG; see lab/tcg.c."""


def cache_folder() -> Path:
    """$COLOHA_CACHE, or .cache in the checkout."""
    return Path(os.environ.get("COLOHA_CACHE") or CHECKOUT / ".cache").absolute()


def load_assets() -> Assets:
    """Read lab.env. Raises LabError if setup has not run to its end."""
    record = cache_folder() / "lab.env"
    try:
        pairs = dict(line.split("=", 1) for line in record.read_text().splitlines())
        assets = Assets(**{field.name: Path(pairs[field.name]) for field in fields(Assets)})
    except (OSError, KeyError, ValueError):
        raise LabError(f"{record} is missing or incomplete: run `make setup`") from None
    for field in fields(Assets):
        path: Path = getattr(assets, field.name)
        if not path.exists():
            raise LabError(f"{path} is missing: run `make setup`")
    return assets
