"""The kinds of events that an operator is told of, by what they are about.

`coloha events`, the metrics, MQTT and hooks call them by these names.
"""

from collections.abc import Mapping
from enum import StrEnum

from coloha.core.actions import Severity


class EventClass(StrEnum):
    """What an event is about."""

    FAILOVER = "failover"
    """Where the VM runs changes, or is about to."""
    PROTECTION = "protection"
    """Whether there is a copy that could take over."""
    GUEST = "guest"
    """The VM and its QEMU on this node."""
    SERVICE = "service"
    """What the pairs rely on: witness, disks, watchdog, records."""
    DAEMON = "daemon"
    """The daemon, and how it tells of events."""


_OF = {
    EventClass.FAILOVER: (
        "claimed promoted conceded yielded handed-over hung overtaken outbid seizing "
        "failover-ordered switchover order-lapsed paused resumed fencing fenced "
        "fence-failed"
    ),
    EventClass.PROTECTION: (
        "protected unprotected solo following hold recovered protect-failed "
        "invitation-refused flapping alone protection-wanted colo-exit epoch-kept "
        "copy-bad disks-copied"
    ),
    EventClass.GUEST: (
        "started adopted adopt-failed stale-qemu launch-failed qemu-exited monitor-lost "
        "answers-again restarting cold-start power-down stopped guest-shutdown "
        "guest-panicked promote-failed leave-colo-failed"
    ),
    EventClass.SERVICE: (
        "witness-unreachable witness-back disk-failed halted failed looking-anew "
        "state-not-written record-gap record-goes-on watchdog-not-armed watchdog-failed "
        "watchdog-starves watchdog-counts-on"
    ),
    EventClass.DAEMON: (
        "daemon-started daemon-stopped reloaded reload-refused mqtt-connected mqtt-lost "
        "mqtt-dropped hook-failed hook-dropped"
    ),
}

KINDS: Mapping[str, EventClass] = {
    kind: about for about, kinds in _OF.items() for kind in kinds.split()
}
"""Every kind that is told, and what it is about; docs/troubleshooting.md says what each means."""

ANY = "any"
"""The trigger for every event."""

OF_HOOKS = ("hook-failed", "hook-dropped")
"""What hooks themselves cause: it triggers none."""

TRIGGERS = (ANY, Severity.WARNING, Severity.ERROR, *EventClass, *KINDS)
"""All words that events can be chosen by."""


def triggers(trigger: str, kind: str, severity: Severity) -> bool:
    """Return whether an event is one of those that `trigger` stands for.

    A severity stands for the events that are at least as severe.
    """
    if trigger in (kind, ANY):
        return True
    if trigger == Severity.WARNING:
        return severity is not Severity.INFO
    if trigger == Severity.ERROR:
        return severity is Severity.ERROR
    return trigger == KINDS.get(kind)
