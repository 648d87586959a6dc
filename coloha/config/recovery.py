"""How a pair becomes protected again: what a pair file says of it."""

from typing import Annotated

from pydantic import Field

from coloha.config.section import Section
from coloha.config.units import Bytes, Seconds, as_written, bytes_between, seconds_between
from coloha.config.values import Count


class Recovery(Section):
    """How the pair becomes protected again, and when its primary may start anew."""

    sync_timeout: Annotated[Seconds, seconds_between("1s", "24h")] = Field(
        default=as_written("10m"),
        description="How long the first full copy of the guest's memory may take, and how long"
        " that of its disks may make no progress. Raise it for large guests on slow networks; the"
        " guest runs unprotected meanwhile.",
    )
    sync_rate: Annotated[Bytes, bytes_between("64KiB", "1TiB")] | None = Field(
        default=None,
        description="Bytes per second at which each disk is copied to a new secondary. Without it,"
        " as fast as can be. Limit it if the guest's own work suffers from that.",
    )
    retry_max: Annotated[Seconds, seconds_between("1s", "1h")] = Field(
        default=as_written("60s"),
        description="Longest wait between two attempts to protect the guest. Attempts start fast"
        " and slow down to this.",
    )
    cold_start_after: Annotated[Seconds, seconds_between("1s", "24h")] = Field(
        default=as_written("30s"),
        description="How long the primary of a protected pair, its QEMU gone, waits for the other"
        " node before it boots the guest anew. Booting anew forgets what the secondary may still"
        " know, so keep it well above the time of a failover: at least twice the sum of the"
        " detection time and witness.timeout. The secondary, its copy gone too, waits twice as"
        " long for the primary's node, then boots the guest itself.",
    )
    flap_limit: Annotated[Count, Field(ge=1, le=1000)] = Field(
        default=5,
        description="How many generations may begin within flap_window. A pair that fails over more"
        " often is not protected again before that time is over, or `coloha protect` is given.",
    )
    flap_window: Annotated[Seconds, seconds_between("1s", "24h")] = Field(
        default=as_written("10m"), description="The time that flap_limit counts in."
    )
    orphan_after: Annotated[Seconds, seconds_between("10s", "30m")] = Field(
        default=as_written("10m"),
        description="How long a QEMU that holds output may be without its daemon before its guard"
        " kills it. QEMU would let the output go by itself after 66 minutes, when the other node"
        " may long have taken over. The secondary has what clients know.",
    )
