"""Real Mosquittos on loopback."""

from pathlib import Path
from typing import Any

from coloha.config import Mqtt
from lab.assets import load_assets
from lab.broker import Broker
from tests.runtime.daemon_support import free_ports

USER, PASSWORD = "coloha", "kept secret"


def broker(folder: Path, **settings: Any) -> Broker:
    """A broker of this machine's own; it is not started."""
    (port,) = free_ports(1)
    return Broker(load_assets(), folder / "broker", port, **settings)


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    """A file for `mqtt.password_file`."""
    file = folder / "password"
    file.write_text(f"{password}\n")
    file.chmod(0o600)
    return file


def section(url: str, **settings: Any) -> Mqtt:
    """The host file's section for a broker."""
    return Mqtt(broker=url, **settings)
