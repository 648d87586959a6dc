"""VMs and runs to make command lines of."""

from pathlib import Path
from typing import Any

from coloha.config.model import Vm
from coloha.config.nic import Nic
from coloha.core.events import Role, Run
from coloha.qemu.command_line import Files, build, directory_of

PRIMARY = Run("p-1", Role.PRIMARY)
SECONDARY = Run("s-2a", Role.SECONDARY, 0x2A)


def nic(number: int, **settings: Any) -> Nic:
    """A NIC; on a bridge unless `settings` say otherwise."""
    where = {} if "tap" in settings else {"bridge": "br0"}
    return Nic(mac=f"52:54:00:00:00:{number + 1:02x}", **where, **settings)


def vm(count: int = 1, **settings: Any) -> Vm:
    """A VM with so many NICs, or with those of `settings`."""
    made = tuple(nic(number) for number in range(count))
    return Vm(**{"memory": "16MiB", "nics": made, **settings})


def argv(run: Run, directory: Path, spec: Vm | None = None, pair: str = "web") -> list[str]:
    """The command line of a run in the pair's directory."""
    return build(pair, spec or vm(), run, Files(directory_of(directory, run)))
