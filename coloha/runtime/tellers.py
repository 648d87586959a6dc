"""Who is told what happens, besides the log: an MQTT broker, and hooks.

They live in a thread of their own, which exists only if there is something to tell.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from coloha.config import HostConfig
from coloha.core.actions import Severity
from coloha.runtime.aside import Aside
from coloha.runtime.hooks import Hooks
from coloha.runtime.metrics import MqttTotals
from coloha.runtime.occurrences import Occurrence, Occurrences

if TYPE_CHECKING:
    from coloha.runtime.mqtt import MqttTeller

CLOSE_S = 1.0
"""How long the daemon's end waits for what is yet to be told: the other nodes wait, too."""

States = Callable[[], Iterable[Mapping[str, Any]]]
Tell = Callable[[str, Severity, str], None]


class Tellers:
    """What the host file's `mqtt` and `hooks` ask for."""

    def __init__(self, host: HostConfig, states: States, tell: Tell) -> None:
        """:param states: gives the status of every pair; called in another thread.
        :param tell: takes the kind, severity and text of an occurrence.
        """
        self._tell = tell
        self._mqtt = _mqtt(host, states, self._tell_from_aside)
        self._hooks = Hooks(host.hooks, self._tell_from_aside) if host.hooks else None
        told = [each for each in (self._mqtt, self._hooks) if each is not None]
        self._aside = Aside([each.run for each in told]) if told else None

    def start(self, occurrences: Occurrences) -> None:
        """Begin to tell, of what happens from now on."""
        self._loop = asyncio.get_running_loop()
        if self._aside is not None:
            occurrences.follow(self._take)
            self._aside.start()

    async def close(self) -> None:
        """Tell what is left, for `CLOSE_S` at most."""
        if self._aside is not None:
            await asyncio.to_thread(self._aside.stop, CLOSE_S)

    @property
    def mqtt(self) -> MqttTotals | None:
        """What became of the events for the broker, if there is one."""
        told = self._mqtt
        if told is None:
            return None
        return MqttTotals(told.connected, told.sent, told.waiting, told.dropped)

    @property
    def hooks(self) -> dict[tuple[str, str], int]:
        """How the runs of hooks ended, by name and outcome."""
        return self._hooks.runs if self._hooks is not None else {}

    def _take(self, occurrence: Occurrence) -> None:
        if self._mqtt is not None:
            self._mqtt.take(occurrence)
        if self._hooks is not None:
            self._hooks.take(occurrence)
        assert self._aside is not None
        self._aside.call(self._wake)

    def _wake(self) -> None:
        if self._mqtt is not None:
            self._mqtt.wake()
        if self._hooks is not None:
            self._hooks.wake()

    def _tell_from_aside(self, kind: str, severity: Severity, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon's loop is closed: nobody is left
            self._loop.call_soon_threadsafe(self._tell, kind, severity, text)


def _mqtt(host: HostConfig, states: States, tell: Tell) -> "MqttTeller | None":
    if host.mqtt is None:
        return None
    # The client is large, and most nodes do without.
    from coloha.runtime.mqtt import MqttTeller  # noqa: PLC0415

    return MqttTeller(host.mqtt, host.node, states, tell)
