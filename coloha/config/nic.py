"""The section of one network interface of the guest."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from coloha.config.section import Section, missing
from coloha.config.values import InterfaceName, Mac


class Nic(Section):
    """One network interface of the guest."""

    mac: Mac = Field(
        description="MAC address of the guest's interface, the same on both nodes and unique"
        " among all pairs. Unicast only."
    )
    bridge: InterfaceName | None = Field(
        default=None,
        description="Bridge of this host that the interface is joined to. Give either this or"
        " `tap`. The two nodes may name their bridges differently.",
    )
    tap: InterfaceName | None = Field(
        default=None,
        description="Tap device of this host that the interface uses, unique among all pairs."
        " Give it instead of `bridge` to prepare the device yourself.",
    )
    model: Literal["virtio-net-pci", "e1000", "rtl8139"] = Field(
        default="virtio-net-pci",
        description="The interface's hardware. Choose an emulated one for guests without virtio"
        " drivers; it costs speed.",
    )

    output: Literal["held", "open"] = Field(
        default="held",
        description="Whether the guest's output waits for its checkpoint. `open` is for networks"
        " where an answer may be forgotten and both copies may be heard for a moment, such as"
        " management: nothing is promised there, and nothing waits.",
    )

    @field_validator("tap")
    @classmethod
    def _connected_once(cls, tap: str | None, info: ValidationInfo) -> str | None:
        # A bridge that was given but is wrong is absent from info.data.
        bridged = info.data.get("bridge", "wrong") is not None
        if bridged and tap is not None:
            raise ValueError("bridge and tap exclude each other: remove one of them")
        if not bridged and tap is None:
            raise missing("the NIC is not connected: add either bridge or tap")
        return tap
