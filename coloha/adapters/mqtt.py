"""An MQTT broker: one connection, over which messages are published and acknowledged one by one.

aiomqtt drives paho-mqtt, which resolves, connects and shakes hands in a thread of the event loop's
executor, where it cannot be cancelled. Each of these steps has a limit of its own, so `connect`
ends by itself; only DNS may take as long as the resolver lets it.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from coloha.adapters import tls
from coloha.config import Mqtt, read_password
from coloha.errors import BrokerError

ANSWER_S = 10.0
"""How long the broker may take to accept a connection, or to acknowledge a message."""
END_S = 0.5
"""How long the end of a connection may take."""
QOS = 1
"""Acknowledged; a message whose acknowledgement is lost comes twice."""
SHOWN_CHARACTERS = 200

_HUNG_UP = (
    "it hangs up before it answers: see that the port is one for MQTT, whether it wants mqtts://,"
    " or a client's certificate (mqtt.cert_file)"
)
_QUIET = logging.getLogger(f"{__name__}.paho")
_QUIET.setLevel(logging.CRITICAL)
"""What paho says of broken connections is told as a BrokerError."""

_SILENT = f"it takes the connection, and then says nothing for {ANSWER_S:g} s: see its log"
_BAD_USER = "it refuses the user: correct mqtt.username or the password file"
_REFUSED = {
    132: "it does not speak MQTT 3.1.1",
    133: "it refuses the client ID: choose another mqtt.client_id",
    134: _BAD_USER,
    135: f"{_BAD_USER}, or let it in there",
    136: "it is not ready: see its log",
}
"""What a broker answers, as MQTT 5 numbers it, and what to do."""
_TIMED_OUT = "Operation timed out"
"""What aiomqtt says of an answer that does not come."""


class _Socket(ssl.SSLSocket):
    """paho leaves a socket open whose handshake failed."""

    def do_handshake(self, block: bool = False) -> None:
        """See `ssl.SSLSocket.do_handshake`."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Loop:
    """The event loop as aiomqtt sees it, which asks a turn ahead for its socket to be watched.

    By then that may be closed, and its number another's: what is watched for it would keep the loop
    busy for good.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._numbers: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, number: int, callback: Callable[[], None]) -> None:
        self._watch(self._loop.add_reader, number, callback)

    def add_writer(self, number: int, callback: Callable[[], None]) -> None:
        self._watch(self._loop.add_writer, number, callback)

    def _watch(self, add: Callable[..., None], number: int, callback: Callable[[], None]) -> None:
        self._numbers.add(number)
        with contextlib.suppress(OSError):  # closed
            add(number, callback)

    def forget(self) -> None:
        """Watch nothing more of what was asked for."""
        for number in self._numbers:
            self._loop.remove_reader(number)
            self._loop.remove_writer(number)


class _Client(aiomqtt.Client):
    """A client that notices a broker that hangs up early, and lets go of all it has."""

    def __init__(self, *words: Any, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self._watching = _Loop(self._loop)
        self._loop = self._watching  # type: ignore[assignment]

    def _on_disconnect(self, *words: Any) -> None:
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(_HUNG_UP))
        super()._on_disconnect(*words)

    async def drop(self) -> None:
        """Close the connection, in whatever state it is; aiomqtt leaves a failed one open."""
        self._client.reinitialise()
        if self._misc_task is not None:
            self._misc_task.cancel()
            await asyncio.gather(self._misc_task, return_exceptions=True)
        self._watching.forget()
        for future in (self._connected, self._disconnected):
            if future.done() and not future.cancelled():
                future.exception()  # seen


class Connection:
    """An open connection; made by `connect`."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self.lost: asyncio.Task[None] = asyncio.create_task(self._watch())
        """Ends, with BrokerError, when the connection does."""

    async def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Publish a message; return when the broker has acknowledged it.

        :raises BrokerError: if it has not: it may have the message all the same.
        """
        publishing = self._client.publish(topic, payload, qos=QOS, retain=retain, timeout=ANSWER_S)
        await self._unless_lost(publishing)

    async def _watch(self) -> None:
        try:
            async for _ in self._client.messages:  # none comes: nothing is subscribed to
                pass
        except aiomqtt.MqttError as error:
            raise BrokerError(_ended(error)) from error

    async def _unless_lost(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
        if ended is None:
            return
        if self.lost.done():
            await self.lost
        if isinstance(ended, aiomqtt.MqttError):
            silent = f"it does not acknowledge what it is sent within {ANSWER_S:g} s"
            raise BrokerError(silent if str(ended) == _TIMED_OUT else _ended(ended))
        raise ended


@contextlib.asynccontextmanager
async def connect(
    section: Mqtt, client_id: str, *, will: tuple[str, str] | None = None
) -> AsyncIterator[Connection]:
    """Connect to the broker of this section; disconnect in good order, if that is possible.

    :param will: topic and retained message that the broker publishes if the connection breaks.
    :raises BrokerError: if the broker does not take the connection.
    """
    client = await _client(section, client_id, will)
    try:
        try:
            await client.__aenter__()
        except aiomqtt.MqttError as error:
            raise BrokerError(f"{section.broker}: {_why(error)}") from error
        connection = Connection(client)
        try:
            yield connection
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(END_S):
                    await client.__aexit__(None, None, None)
        finally:
            connection.lost.cancel()
            await asyncio.gather(connection.lost, return_exceptions=True)
    finally:
        await client.drop()


async def _client(section: Mqtt, client_id: str, will: tuple[str, str] | None) -> _Client:
    """Make the client, with what the files hold now."""
    loop = asyncio.get_running_loop()
    try:
        # A file system may hang, and certificates of a whole host take their time.
        password = await loop.run_in_executor(None, _password, section.password_file)
        context = await loop.run_in_executor(None, _tls, section)
    except ValueError as error:
        raise BrokerError(f"mqtt.password_file: {error}") from None
    except OSError as error:
        named = ", ".join(map(str, tls.named(section))) or "this host's certificates"
        raise BrokerError(f"{named}: {_words(error)}: correct the PEM files") from error
    return _Client(
        section.host,
        section.port,
        identifier=client_id,
        username=section.username,
        password=password,
        logger=_QUIET,
        will=aiomqtt.Will(*will, qos=QOS, retain=True) if will is not None else None,
        timeout=ANSWER_S,
        keepalive=int(section.keepalive),
        max_queued_incoming_messages=1,
        tls_context=context,
        clean_session=True,
    )


def _password(file: Path | None) -> str | None:
    return read_password(file) if file is not None else None


def _tls(section: Mqtt) -> ssl.SSLContext | None:
    if not section.tls:
        return None
    context = tls.context(section)
    context.sslsocket_class = _Socket
    return context


def _why(error: aiomqtt.MqttError) -> str:
    """Say why there is no connection, and what to do."""
    if isinstance(error, MqttConnectError):
        return _REFUSED.get(getattr(error.rc, "value", 0), f"it refuses: {error.rc}")
    if str(error) in (_HUNG_UP, _TIMED_OUT):
        return _HUNG_UP if str(error) == _HUNG_UP else _SILENT
    cause = error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted ({cause.verify_message}): see that mqtt.ca_file"
            " signed it, and that it names the host in mqtt.broker"
        )
    if isinstance(cause, socket.gaierror):
        return f"its name is not known ({cause.strerror}): correct mqtt.broker"
    if isinstance(cause, TimeoutError) and "handshake" in str(cause):
        return "no TLS: see that this port speaks it, or write mqtt://"
    if isinstance(cause, TimeoutError):
        return "no connection: is its host up, and does no firewall stand between?"
    if isinstance(cause, ssl.SSLError | ConnectionResetError):
        return f"no TLS ({_words(cause)}): see that this port speaks it, or write mqtt://"
    return f"{_words(cause or error)}: is a broker running there?"


def _ended(error: aiomqtt.MqttError) -> str:
    """Say how a connection ended."""
    cause = error.__cause__ or error
    return f"the connection broke ({_words(cause)}): see its log"


def _words(error: BaseException) -> str:
    return tls.words(error)[:SHOWN_CHARACTERS]
