"""Two QMP connections to one QEMU, on top of the qemu.qmp library.

One for commands and events; the other for out-of-band commands alone, which QEMU answers while its
main loop is blocked by a silent peer. Every wait has a deadline. Messages are stamped as they come
off the wire, which is the order in which QEMU executed (see `coloha.core.commit`).

The library is used with its private `_issue` and `_reply`: writing several commands back to back
and then waiting for all replies is what the epoch rests on, and `execute` cannot do it. Its event
listeners, which keep every event for ever, are bypassed. Both are why it is pinned to 0.0.x.
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qemu.qmp import ConnectError, QMPClient
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message as RawMessage
from qemu.qmp.protocol import Runstate
from qemu.qmp.qmp_client import ExecInterruptedError

from coloha.core.commit import Message
from coloha.core.events import Failure
from coloha.errors import QmpError
from coloha.qemu.steps import MAX_TAPE, Command, ScriptError, Tape

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # every error reaches us as an exception

CONNECT_POLL_S = 0.01
CLOSE_S = 2.0
SETTLE_ROUNDS = 5
LEFTOVER_READ_BYTES = 64 * 1024


class _Client(QMPClient):
    """A connection that hands each message on as it comes, and keeps none."""

    def __init__(self, receive: Callable[[RawMessage], None]) -> None:
        super().__init__()  # without a name: the library would keep a logger for each one, for ever
        self._receive = receive
        self._issued = 0
        self.socket: socket.socket | None = None

    def _cb_inbound(self, msg: RawMessage) -> RawMessage:
        self._receive(msg)
        return msg

    async def _event_dispatch(self, msg: RawMessage) -> None:
        """Events were handed on already; the library's listeners would keep them."""

    async def open(self, path: Path) -> None:
        """Connect and negotiate.

        The socket is kept: passing descriptors needs the real one, which uvloop's transport hides.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, str(path))
            self.socket = connection.dup()
            await self.connect(connection)
        except BaseException:
            connection.close()
            self.drop_socket()
            raise

    def unread(self) -> bool:
        """Whether the socket holds bytes that the connection has yet to read."""
        if self.socket is None or self.runstate is not Runstate.RUNNING:
            return False
        count = fcntl.ioctl(self.socket, termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(count, sys.byteorder) > 0

    def leftover(self) -> list[RawMessage]:
        """Return what nobody will read any more: a write that failed ends the connection at once,
        with all that QEMU said before.
        """
        if self.socket is None or self.runstate is Runstate.RUNNING:
            return []
        data = b""
        with contextlib.suppress(OSError):  # all is read, or lost
            while more := self.socket.recv(LEFTOVER_READ_BYTES):
                data += more
        messages = []
        for line in data.splitlines():
            with contextlib.suppress(ProtocolError):  # the end of one that was cut
                messages.append(RawMessage(line, eager=True))
        return messages

    def drop_socket(self) -> None:
        """Close our own handle of the socket."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def discard(self) -> None:
        """Throw away what was not written yet: QEMU may never read it."""
        if self._writer is not None and self._writer.transport.get_write_buffer_size() > 0:
            self._writer.transport.abort()

    async def issue(self, command: Command) -> str:
        """Write a command without waiting; return its id."""
        if self.runstate is not Runstate.RUNNING:
            raise ScriptError(Failure.LOST, "the QMP connection is closed")
        message = self.make_execute_msg(command.name, command.arguments, oob=command.oob)
        self._issued += 1
        identity = f"coloha-{self._issued}"
        message["id"] = identity
        await self._issue(message)
        return identity

    async def reply(self, identity: str) -> RawMessage:
        """Wait for the reply to an issued command."""
        return await self._reply(identity)

    def forget(self, identity: str) -> None:
        """Expect no reply any more. Else the library keeps it, and chokes on it at a disconnect:
        calls that still wait would not learn of that.
        """
        self._pending.pop(identity, None)


class Monitor:
    """The connections to one QEMU process."""

    def __init__(self, name: str, on_event: Callable[[Message], None]) -> None:
        """Events go to `on_event`, in wire order."""
        self._name = name
        self._main = _Client(self._receive)
        self._oob = _Client(_ignore)
        self._on_event = on_event
        self._tape: Tape | None = None
        self._names: dict[str, str] = {}
        """Commands of the present tape, by id."""
        self._arrival = asyncio.Event()
        self._watchers: list[asyncio.Task[None]] = []
        self.lost = asyncio.Event()
        """Set when the main connection is gone."""
        self.heard_at = time.monotonic()
        """When QEMU last said anything on the main connection, monotonic seconds."""

    async def connect(
        self, main: Path, oob: Path, deadline_s: float, alive: Callable[[], bool]
    ) -> None:
        """Connect both, trying again while QEMU has no socket yet.

        :raises QmpError: if that takes longer than `deadline_s`, or QEMU is no longer `alive`.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._open(self._main, main, alive)
                await self._open(self._oob, oob, alive)
        except TimeoutError:
            raise QmpError(
                f"QEMU did not answer on {main} within {deadline_s:g} s: another client may hold "
                "its monitor, or it hangs"
            ) from None
        watcher = asyncio.create_task(self._watch(self._main), name=f"{self._name}-watch")
        self._watchers = [watcher]

    async def _open(self, client: _Client, path: Path, alive: Callable[[], bool]) -> None:
        while True:
            try:
                await client.open(path)
                return
            except (OSError, ConnectError):
                if not alive():
                    raise QmpError("QEMU ended before it answered") from None
                await asyncio.sleep(CONNECT_POLL_S)

    async def _watch(self, client: _Client) -> None:
        while client.runstate is Runstate.RUNNING:
            await client.runstate_changed()
        self.lost.set()
        self._arrival.set()

    async def close(self) -> None:
        """Close both connections; never raises for what they were lost by."""
        for watcher in self._watchers:
            watcher.cancel()
        self.lost.set()
        self._arrival.set()
        for client in (self._main, self._oob):
            client.drop_socket()
            client.discard()
            if client.runstate is Runstate.IDLE:
                continue
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await client.disconnect()

    async def drain(self, deadline_s: float) -> None:
        """Take in what QEMU has already written, at most for `deadline_s`; for a dying one.

        The transport does not say when it has read, so this looks again each round of the loop.
        """
        end = time.monotonic() + deadline_s
        while time.monotonic() < end and self._main.unread():  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(SETTLE_ROUNDS):  # from the transport to the reader, line by line
            await asyncio.sleep(0)
        for raw in self._main.leftover():
            self._receive(raw)

    def _receive(self, raw: RawMessage) -> None:
        now = self.heard_at = time.monotonic()
        message: Message | None = None
        if "event" in raw:
            message = Message(str(raw["event"]), now, data=raw.get("data"))
        elif (identity := str(raw.get("id"))) in self._names:
            message = _as_reply(self._names.pop(identity), raw, now)
        if message is None:
            return
        if self._tape is not None:
            if len(self._tape.messages) <= MAX_TAPE:
                self._tape.messages.append(message)
            self._arrival.set()
        if not message.reply:
            self._on_event(message)

    def begin(self) -> Tape:
        """Start a fresh tape; the one before gets no more."""
        self._tape = Tape()
        self._names.clear()
        return self._tape

    def end(self, tape: Tape) -> None:
        """Record no more on this tape: until the next script, events come without end."""
        if self._tape is tape:
            self._tape = None
            self._names.clear()

    async def call(self, commands: Sequence[Command], timeout_s: float) -> list[Message]:
        """Write commands back to back, then wait for all replies.

        :raises ScriptError: `SILENT` after `timeout_s`, `LOST` if the connection breaks; in both
            cases the commands may be executed all the same.
        """
        issued: list[tuple[_Client, str, str]] = []
        try:
            async with asyncio.timeout(timeout_s):
                for command in commands:
                    client = self._oob if command.oob else self._main
                    identity = await client.issue(command)
                    if not command.oob:
                        self._names[identity] = command.name
                    issued.append((client, identity, command.name))
                return [
                    _as_reply(name, await client.reply(identity), time.monotonic())
                    for client, identity, name in issued
                ]
        except TimeoutError:
            names = ", ".join(dict.fromkeys(command.name for command in commands))
            raise ScriptError(
                Failure.SILENT, f"no answer to {names} within {timeout_s:g} s"
            ) from None
        except (ExecInterruptedError, OSError) as error:
            raise ScriptError(Failure.LOST, f"the QMP connection broke: {error}") from None
        finally:
            for client, identity, _ in issued:
                client.forget(identity)

    async def until(
        self, tape: Tape, names: frozenset[str], timeout_s: float, what: str
    ) -> Message:
        """Wait for the next event of one of `names` on the tape.

        :raises ScriptError: `STALLED` after `timeout_s`, `LOST` if the connection breaks.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    event = tape.next_event(names)
                    if event is not None:
                        return event
                    if self.lost.is_set():
                        raise ScriptError(Failure.LOST, f"{what}: the QMP connection broke")
                    if len(tape.messages) > MAX_TAPE:
                        raise ScriptError(Failure.STALLED, f"{what}: QEMU talks of other things")
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            raise ScriptError(Failure.STALLED, f"{what}: not within {timeout_s:g} s") from None

    async def give(self, fdname: str, descriptor: int, timeout_s: float) -> None:
        """Hand a file descriptor to QEMU under `fdname`, on the main connection.

        :raises ScriptError: like `call`; `REFUSED` if QEMU does not take it.
        """
        if self._main.socket is None:
            raise ScriptError(Failure.LOST, "the QMP connection is closed")
        # White space between two messages: QEMU keeps the descriptor for the getfd that follows.
        try:
            socket.send_fds(self._main.socket, [b" "], [descriptor])
        except OSError as error:
            raise ScriptError(Failure.LOST, f"the QMP connection broke: {error}") from None
        (reply,) = await self.call((Command("getfd", {"fdname": fdname}),), timeout_s)
        if reply.error is not None:
            raise ScriptError(Failure.REFUSED, f"getfd: {reply.error}")


def _ignore(raw: RawMessage) -> None:
    """The second connection gets all events too."""


def _as_reply(name: str, raw: RawMessage, at: float) -> Message:
    if "error" in raw:
        error = raw["error"]
        text = error.get("desc", str(error)) if isinstance(error, dict) else str(error)
        return Message(name, at, reply=True, error=text)
    return Message(name, at, reply=True, data=raw.get("return"))
