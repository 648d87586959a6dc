"""The watchdog of a host: hardware that resets it when its daemon decides nothing any more."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from coloha.config.section import Section
from coloha.config.units import Seconds, as_written, format_seconds, seconds_between
from coloha.config.values import AbsolutePath

FEED_S = 0.2
"""How often a watchdog is fed, in seconds."""
LATE_S = 0.5
"""How long a pump may have hung when the watchdog takes its last food, in seconds."""


def _whole_seconds(seconds: float) -> float:
    if seconds != int(seconds):
        raise ValueError(
            f"{format_seconds(seconds)}: watchdogs count whole seconds, write {int(seconds) + 1}s"
        )
    return seconds


class Watchdog(Section):
    """A device that resets this host when it is not fed.

    It is armed only while this host holds the output of a guest that the other node could take
    over, and fed only while every such pair goes on.
    """

    mode: Literal["off", "optional", "required"] = Field(
        default="off",
        description="`required`: without an armed watchdog no guest is protected, and times that"
        " cannot work are refused. `optional`: used if there is one; what is wrong is told. `off`:"
        " not used.",
    )
    device: AbsolutePath = Field(
        default=Path("/dev/watchdog"),
        description="The device, for coloha alone: systemd's RuntimeWatchdogSec must be off."
        " Without hardware of its own a host has `softdog`, a kernel module; it does not survive a"
        " kernel that hangs.",
    )
    timeout: Annotated[Seconds, seconds_between("1s", "60s"), AfterValidator(_whole_seconds)] = (
        Field(
            default=as_written("5s"),
            description="How long after it was last fed the device resets the host, whole seconds."
            " Longer than a killed daemon takes to be back; shorter than the time in which the"
            " other node takes over: heartbeat.interval x (heartbeat.misses - 3) of every pair.",
        )
    )

    def in_time(self, reserve_s: float) -> bool:
        """Whether it resets this host before the other node may speak, which needs `reserve_s`."""
        return reserve_s > self.timeout + LATE_S
