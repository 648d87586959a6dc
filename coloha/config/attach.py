"""The section of a VM that somebody else starts."""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from coloha.config.section import Section
from coloha.config.values import AbsolutePath, Name


class Attach(Section):
    """Where the VM's first QEMU is found, if somebody else starts it."""

    node: Name = Field(
        description="The node on which somebody else starts the VM, so that coloha does not. The"
        " secondary, and the VM itself on the other node, are started by coloha as `vm` says."
    )
    monitor: AbsolutePath = Field(
        description="Unix socket of a QMP monitor of that QEMU, for coloha alone."
    )
    second_monitor: AbsolutePath = Field(
        description="Unix socket of another one: a monitor that is busy cannot be asked for help."
    )

    @field_validator("second_monitor")
    @classmethod
    def _is_another(cls, path: Path, info: ValidationInfo) -> Path:
        if path == info.data.get("monitor"):
            raise ValueError("is the same as monitor: QEMU needs two, each serves one client")
        return path
