"""A fake QEMU monitor: two Unix sockets that speak QMP as QEMU does, with nothing behind them.

It stands beside the real QEMU, never instead of it: `test_fake` holds the two against each other.
It runs on the loop of the test, by callbacks alone, so a test decides what happens in which order.
"""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

READ_BYTES = 4096
GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": "fake"},
        "capabilities": ["oob"],
    }
}

Arguments = dict[str, Any]
Answer = Callable[[Arguments], object]


class RefusalError(Exception):
    """Raised by an answer: QEMU refuses the command."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


class NoReplyError(Exception):
    """Raised by an answer: QEMU executed the command, but its reply is never written."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A command that was executed."""

    name: str
    arguments: Arguments
    oob: bool


def split_stream(text: str) -> tuple[list[str], str]:
    """Cut a JSON stream into its complete values; return them and the rest.

    Like QEMU's lexer, it needs no separators between objects.
    """
    values, start, depth, quoted, escaped = [], 0, 0, False, False
    for place, letter in enumerate(text):
        if quoted:
            quoted = escaped or letter != '"'
            escaped = not escaped and letter == "\\"
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                values.append(text[start : place + 1].strip())
                start = place + 1
    return values, text[start:]


@dataclass(eq=False, slots=True)
class Client:
    """One accepted connection."""

    connection: socket.socket
    unparsed: str = ""
    unsent: deque[bytes] = field(default_factory=deque)
    negotiated: bool = False
    oob: bool = False
    descriptor: int | None = None
    reads: list[bytes] = field(default_factory=list)


class Endpoint:
    """One monitor socket; like QEMU's, it serves one client at a time."""

    def __init__(self, qemu: "FakeQemu", path: Path) -> None:
        self.qemu, self.path = qemu, path
        self.client: Client | None = None
        self.served = 0
        self.greets = True
        self.piece: int | None = None
        """If set, output goes out in pieces of this many bytes, one per round of the loop."""
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        """Appear."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._loop.remove_reader(self._listener)
        self.client = Client(connection)
        self.served += 1
        client = self.client
        if self.greets:
            self.write(client, GREETING)
        if self.client is client:
            self._loop.add_reader(connection, self._readable, client)

    def write(self, client: Client, message: object) -> None:
        """Send a message as QEMU does: one line."""
        self.write_bytes(client, json.dumps(message).encode() + b"\r\n")

    def write_bytes(self, client: Client, data: bytes) -> None:
        """Send raw bytes."""
        if self.client is not client:
            return
        waiting = bool(client.unsent)
        size = self.piece or len(data)
        client.unsent.extend(data[at : at + size] for at in range(0, len(data), size))
        if not waiting and self.piece is None:
            self._flush(client)
        elif not waiting:
            self._loop.call_soon(self._flush, client)

    def _flush(self, client: Client) -> None:
        while client.unsent and self.client is client:
            try:
                sent = client.connection.send(client.unsent[0])
            except BlockingIOError:
                self._loop.add_writer(client.connection, self._writable, client)
                return
            except OSError:
                self.close_client()
                return
            rest = client.unsent.popleft()[sent:]
            if rest:
                client.unsent.appendleft(rest)
            if self.piece is not None and client.unsent:
                self._loop.call_soon(self._flush, client)
                return

    def _writable(self, client: Client) -> None:
        self._loop.remove_writer(client.connection)
        self._flush(client)

    def _readable(self, client: Client) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(client.connection, READ_BYTES, 4)
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:  # like QEMU's chardev, keep the last one that came
            if client.descriptor is not None:
                os.close(client.descriptor)
            client.descriptor = descriptor
        if not data:
            self.close_client()
            return
        client.reads.append(data)
        values, client.unparsed = split_stream(client.unparsed + data.decode())
        for value in values:
            self.qemu.arrived(self, client, value)

    def close_client(self) -> None:
        """Hang up; the next client, if one waits, is served."""
        client, self.client = self.client, None
        if client is None:
            return
        self.qemu.forget(client)
        for remove in (self._loop.remove_reader, self._loop.remove_writer):
            remove(client.connection)
        client.connection.close()
        if client.descriptor is not None:
            os.close(client.descriptor)
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Disappear."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self.path.unlink()
        self.close_client()


class FakeQemu:
    """Both monitors of one QEMU. `answers` says what commands do; what it does not name succeeds.

    An answer returns the command's value; it may send events before that, and `afterwards` after.
    """

    def __init__(self, directory: Path) -> None:
        self.main = Endpoint(self, directory / "qmp.sock")
        self.oob = Endpoint(self, directory / "oob.sock")
        self.executed: list[Executed] = []
        self.taken: dict[str, int] = {}
        """Descriptors that `getfd` named."""
        self.answers: dict[str, Answer] = {
            "query-version": lambda _: GREETING["QMP"]["version"],
            "query-status": lambda _: {"status": "running", "running": True},
            "query-yank": lambda _: [{"type": "chardev", "id": "compat_monitor0"}],
            "getfd": self._getfd,
        }
        self.held = False
        """While it is set, the main loop hangs: commands wait, but those out of band."""
        self._queue: deque[tuple[Endpoint, Client, dict[str, Any]]] = deque()
        self._afterwards: list[Callable[[], None]] = []
        self._current: Client | None = None

    async def __aenter__(self) -> "FakeQemu":
        self.main.listen()
        self.oob.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for endpoint in (self.main, self.oob):
            endpoint.close()
        for descriptor in self.taken.values():
            os.close(descriptor)

    @property
    def names(self) -> list[str]:
        """The names of the executed commands, in order."""
        return [command.name for command in self.executed]

    def event(self, name: str, data: object | None = None) -> None:
        """Send an event to every client."""
        seconds, fraction = divmod(time.time(), 1)
        message: dict[str, object] = {"event": name}
        if data is not None:
            message["data"] = data
        message["timestamp"] = {"seconds": int(seconds), "microseconds": int(fraction * 1e6)}
        for endpoint in (self.main, self.oob):
            if endpoint.client is not None and endpoint.client.negotiated:
                endpoint.write(endpoint.client, message)

    def afterwards(self, name: str, data: object | None = None) -> None:
        """Send an event right after the reply to the command that is being answered."""
        self._afterwards.append(lambda: self.event(name, data))

    def go_on(self) -> None:
        """Let the main loop run again."""
        self.held = False
        self._work()

    def forget(self, client: Client) -> None:
        """Drop what waits from a client that hung up, as QEMU does."""
        self._queue = deque(entry for entry in self._queue if entry[1] is not client)

    def arrived(self, endpoint: Endpoint, client: Client, text: str) -> None:
        """Take one message off the stream."""
        try:
            message = json.loads(text)
            assert isinstance(message, dict)
        except (ValueError, AssertionError):
            error = {"class": "GenericError", "desc": "JSON parse error, expecting value"}
            endpoint.write(client, {"error": error})
            return
        if "exec-oob" in message and client.oob:
            self._execute(endpoint, client, message)
        else:
            self._queue.append((endpoint, client, message))
            self._work()

    def _work(self) -> None:
        while self._queue and not self.held:
            self._execute(*self._queue.popleft())

    def _execute(self, endpoint: Endpoint, client: Client, message: dict[str, Any]) -> None:
        oob = "exec-oob" in message
        name, arguments = message.get("exec-oob" if oob else "execute"), message.get("arguments")
        reply = {} if "id" not in message else {"id": message["id"]}
        self._current = client
        try:
            if oob and not client.oob:
                raise RefusalError("QMP input member 'exec-oob' is unexpected")
            reply["return"] = self._do(client, str(name), arguments or {}, oob)
        except RefusalError as refusal:
            reply["error"] = {"class": refusal.kind, "desc": str(refusal)}
        except NoReplyError:
            return
        endpoint.write(client, reply)
        afterwards, self._afterwards = self._afterwards, []
        for send in afterwards:
            send()

    def _do(self, client: Client, name: str, arguments: Arguments, oob: bool) -> object:
        if name == "qmp_capabilities":
            if client.negotiated:
                raise RefusalError(
                    "Capabilities negotiation is already complete, command ignored",
                    "CommandNotFound",
                )
            client.negotiated, client.oob = True, "oob" in arguments.get("enable", [])
            answer = self.answers.get(name)
            return {} if answer is None else answer(arguments)
        if not client.negotiated:
            raise RefusalError(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        self.executed.append(Executed(name, arguments, oob))
        answer = self.answers.get(name)
        return {} if answer is None else answer(arguments)

    def _getfd(self, arguments: Arguments) -> object:
        client = self._current
        if client is None or client.descriptor is None:
            raise RefusalError("No file descriptor supplied via SCM_RIGHTS")
        with contextlib.suppress(KeyError):
            os.close(self.taken.pop(arguments["fdname"]))
        self.taken[arguments["fdname"]], client.descriptor = client.descriptor, None
        return {}
