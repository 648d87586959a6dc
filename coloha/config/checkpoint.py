"""How often the secondary catches up, and what output waits for."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from coloha.config.section import LIVE, Section
from coloha.config.units import Seconds, as_written, format_seconds, seconds_between
from coloha.config.values import Count


class Checkpoint(Section):
    """How often the secondary catches up, and when the pair gives up waiting for it."""

    mode: Literal["buffer", "compare"] = Field(
        default="buffer",
        description="What output waits for. `buffer` holds every packet until the secondary has the"
        " state that it came from. `compare` gives both copies the same input and lets go what both"
        " answer alike; what they answer differently waits for a checkpoint, made at once. It is"
        " quicker, needs far fewer checkpoints, and promises less: see docs/design.md.",
    )
    period: Annotated[Seconds, seconds_between("5ms", "2s")] = Field(
        default=as_written("50ms"),
        json_schema_extra=LIVE,
        description="Time between two checkpoints. Clients wait about this long for every answer;"
        " shorten it for latency, lengthen it to give the guest more of the CPU and the network. In"
        " mode `compare` nothing waits for it: 500ms suits most guests.",
    )
    stall_timeout: Annotated[Seconds, seconds_between("200ms", "10m")] = Field(
        default=as_written("3s"),
        description="Without a commit for this long, the primary ends protection and goes on"
        " alone. Clients wait this long at worst when the secondary hangs. At least 4 periods;"
        " raise it if single checkpoints are large.",
    )
    compare_timeout: Annotated[Seconds, seconds_between("10ms", "10s")] = Field(
        default=as_written("100ms"),
        description="Mode `compare`: how long a packet waits for the other copy's before it counts"
        " as different. Raise it if the secondary's guest is slow, or answers late; clients wait so"
        " long when a packet is lost between the hosts.",
    )
    expired_scan_cycle: Annotated[Seconds, seconds_between("10ms", "10s")] = Field(
        default=as_written("50ms"),
        description="Mode `compare`: how often packets are looked through for those that have"
        " waited longer than `compare_timeout`. Both together at most half of `stall_timeout`.",
    )
    max_queue_size: Annotated[Count, Field(ge=16, le=65536)] = Field(
        default=1024,
        description="Mode `compare`: packets of each connection that wait at most, of either copy."
        " More are dropped, as on a full network. Raise it for guests that send much.",
    )

    @field_validator("stall_timeout")
    @classmethod
    def _outlasts_periods(cls, stall: float, info: ValidationInfo) -> float:
        least = 4 * info.data.get("period", 0.0)
        if stall < least:
            raise ValueError(
                f"{format_seconds(stall)} is less than 4 periods: write at least"
                f" {format_seconds(least)}, or shorten checkpoint.period"
            )
        return stall

    @field_validator("expired_scan_cycle")
    @classmethod
    def _compares_in_time(cls, cycle: float, info: ValidationInfo) -> float:
        longest = info.data.get("compare_timeout", 0.0) + cycle
        stall = info.data.get("stall_timeout", longest)
        if info.data.get("mode") == "compare" and longest > stall / 2:
            raise ValueError(
                f"a packet may wait {format_seconds(longest)} (compare_timeout +"
                f" expired_scan_cycle) before a checkpoint is asked for, more than half of"
                f" stall_timeout: shorten them, or write stall_timeout:"
                f" {format_seconds(2 * longest)}"
            )
        return cycle
