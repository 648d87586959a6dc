"""Tells an MQTT broker what happens: one message per event, and the state of each pair.

Events wait in a bounded queue and are sent one by one, in order, each again until it was
acknowledged. Who listens may get one twice, and knows it by its `id`. All but `take` runs aside
(`coloha.runtime.aside`).
"""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from coloha.adapters.mqtt import Connection, connect
from coloha.config import Mqtt
from coloha.core.actions import Severity
from coloha.errors import BrokerError
from coloha.runtime.occurrences import Occurrence

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Between two attempts to connect: it doubles, up to this; each is shortened by chance."""
STEADY_S = 60.0
"""A connection that lasted so long was no part of the trouble."""
LOOK_S = 0.5
"""How often the state of the pairs is looked at."""
STATE = (
    "pair",
    "peer",
    "phase",
    "role",
    "protected",
    "why_not",
    "waits_for",
    "paused",
    "generation",
    "record",
    "mode",
    "witness_error",
)
"""What of a pair's status is told: what does not change by itself all the time."""

Tell = Callable[[str, Severity, str], None]
States = Callable[[], Iterable[Mapping[str, Any]]]


class MqttTeller:
    """See the module's docstring."""

    def __init__(self, section: Mqtt, node: str, states: States, tell: Tell) -> None:
        """:param states: gives the status of every pair; asked aside.
        :param tell: takes the kind, severity and text of an occurrence; called aside.
        """
        self._section = section
        self._node = node
        self._states = states
        self._tell = tell
        self._top = f"{section.topic}/{node}"
        self._queue: deque[Occurrence] = deque()
        """The daemon's thread appends, the one aside takes: neither needs a lock."""
        self._news = asyncio.Event()
        self._trouble: str | None = None
        """What was told last."""
        self._dropping = False
        self._dropped_told = 0
        self._published: dict[str, Mapping[str, Any]] = {}
        self.connected = False
        self.sent = 0
        """Events that the broker has acknowledged."""
        self.dropped = 0
        """Events that found the queue full."""

    @property
    def waiting(self) -> int:
        """Events that wait to be sent."""
        return len(self._queue)

    def take(self, occurrence: Occurrence) -> None:
        """Queue an event, or drop it if too many wait: the first ones say why the others came."""
        if len(self._queue) >= self._section.queue:
            self.dropped += 1
        else:
            self._queue.append(occurrence)

    def wake(self) -> None:
        """Have what was queued sent."""
        self._news.set()

    async def run(self) -> None:
        """Connect and tell, again and again; say farewell when cancelled."""
        wait_s = FIRST_WAIT_S
        while True:
            began = time.monotonic()
            try:
                await self._connected()
            except BrokerError as error:
                self._lost(str(error))
            if time.monotonic() > began + STEADY_S:
                wait_s = FIRST_WAIT_S
            await self._pause(wait_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._tell_drops()
            await asyncio.sleep(min(left, LOOK_S))

    async def _connected(self) -> None:
        """Be connected, and tell, until the connection breaks.

        :raises BrokerError: when it does.
        """
        name = self._section.client_id or f"coloha-{self._node}"
        availability = f"{self._top}/availability"
        ends = False
        async with connect(self._section, name, will=(availability, "offline")) as connection:
            try:
                await connection.publish(availability, "online", retain=True)
                await self._talk(connection)
            except asyncio.CancelledError:
                # The daemon ends, and waits for no more than a moment.
                ends = True
                with contextlib.suppress(BrokerError):
                    await self._tell_events(connection)
                    await connection.publish(availability, "offline", retain=True)
            finally:
                self.connected = False
        if ends:  # the connection ended in good order: the broker keeps the will to itself
            raise asyncio.CancelledError

    async def _talk(self, connection: Connection) -> None:
        self._published = {}
        await self._tell_states(connection)
        self._found()
        while True:
            await self._tell_events(connection)
            await self._tell_states(connection)
            self._tell_drops()
            await self._await_news(connection)

    def _found(self) -> None:
        self.connected = True
        self._trouble = None
        waiting = f"; {self.waiting} events wait for it" if self.waiting else ""
        self._tell("mqtt-connected", Severity.INFO, f"{self._section.broker} is told{waiting}")

    def _lost(self, why: str) -> None:
        if why != self._trouble:
            self._trouble = why
            self._tell("mqtt-lost", Severity.WARNING, f"{why}; events wait")

    def _tell_drops(self) -> None:
        """Say that events are dropped: when it begins, and how many when it is over."""
        if not self._dropping and self.dropped > self._dropped_told:
            self._dropping = True
            text = f"{self.waiting} events wait: later ones are dropped, `coloha events` has them"
            self._tell("mqtt-dropped", Severity.WARNING, text)
        elif self._dropping and self.connected and not self._queue:
            self._dropping = False
            count, self._dropped_told = self.dropped - self._dropped_told, self.dropped
            text = f"{count} events were not sent: `coloha events` has them"
            self._tell("mqtt-dropped", Severity.WARNING, text)

    async def _await_news(self, connection: Connection) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._news.wait()
        self._news.clear()
        if connection.lost.done():
            await connection.lost

    async def _tell_events(self, connection: Connection) -> None:
        while self._queue:
            await connection.publish(f"{self._top}/events", message(self._queue[0]))
            self._queue.popleft()
            self.sent += 1

    async def _tell_states(self, connection: Connection) -> None:
        for status in self._states():
            state = {name: status.get(name) for name in STATE}
            pair = str(state["pair"])
            if self._published.get(pair) == state:
                continue
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = json.dumps({"at": at, "node": self._node, **state})
            await connection.publish(f"{self._top}/{pair}/state", text, retain=True)
            self._published[pair] = state


def identity(occurrence: Occurrence) -> str:
    """Return what tells this event from all others, of every node.

    Numbers alone begin again when the file of events is lost.
    """
    at = datetime.fromisoformat(occurrence.at)
    return f"{occurrence.node}-{occurrence.number}-{round(at.timestamp() * 1000)}"


def message(occurrence: Occurrence) -> str:
    """Return an event as JSON: what `coloha events --json` says of it, and its `id`."""
    return json.dumps({"id": identity(occurrence), **asdict(occurrence)})
