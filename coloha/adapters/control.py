"""The control socket: how the verbs of `coloha` talk to the daemon.

One JSON object a line. A request is {"verb": ..., ...}; the answer {"ok": ...} or {"error": ...},
and for following events any number of further lines. Only root and the daemon's own user are
answered, whatever the file's mode: the kernel says who they are.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from coloha.errors import ControlError

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 * 1024
MAX_CLIENTS = 32
REQUEST_S = 10.0
ANSWER_S = 5.0

Handler = Callable[[Mapping[str, Any]], AsyncIterator[Mapping[str, Any]]]


class ControlServer:
    """Answers requests on a unix socket."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """`handlers` maps verbs to what yields the lines of the answer."""
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self.listener: socket.socket | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self, path: Path, kept: socket.socket | None = None) -> None:
        """Listen at `path`, replacing what a dead daemon left there, or with a socket that is
        `kept`.

        :raises OSError: if that is impossible.
        """
        self.listener = kept or _listen(path)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self.listener, limit=MAX_LINE_BYTES
        )

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._clients) >= MAX_CLIENTS:
                await _write(writer, {"error": f"{MAX_CLIENTS} others are asking: try again later"})
                return
            self._clients.add(task)
            await self._answer(reader, writer)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away, or sent no line
        except asyncio.CancelledError:
            pass  # the daemon stops
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = _peer_uid(writer)
        if uid not in (0, os.getuid()):
            await _write(writer, {"error": f"user {uid} may not control coloha: use sudo"})
            return
        async with asyncio.timeout(REQUEST_S):
            line = await reader.readline()
        if not line:
            return
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        verb = str(request.get("verb")) if isinstance(request, dict) else ""
        if verb not in self._handlers:
            await _write(writer, {"error": f"the daemon knows no verb {verb!r}"})
            return
        await self._pass_on(self._handlers[verb](request), reader, writer)

    async def _pass_on(
        self,
        answer: AsyncIterator[Mapping[str, Any]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Write the lines of the answer until it ends or the client hangs up."""
        gone = asyncio.create_task(reader.read(1))
        try:
            while True:
                line = await _unless(gone, answer)
                if line is None:
                    return
                await _write(writer, line)
        except OSError:
            raise
        except Exception as error:
            log.exception("a verb of the control socket failed")
            await _write(writer, {"error": f"{type(error).__name__}: {error}"})
        finally:
            await _end(gone)


async def _unless(
    gone: asyncio.Task[bytes], answer: AsyncIterator[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Return the next line of the answer; None after the last, or if `gone` ends while waiting."""

    async def following() -> Mapping[str, Any] | None:
        return await anext(answer, None)

    line = asyncio.create_task(following())
    try:
        await asyncio.wait({line, gone}, return_when=asyncio.FIRST_COMPLETED)
        return line.result() if line.done() else None
    finally:
        await _end(line)


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; how it ends is no matter."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    return listener


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])


async def _write(writer: asyncio.StreamWriter, content: Mapping[str, Any]) -> None:
    writer.write(json.dumps(content).encode() + b"\n")
    async with asyncio.timeout(ANSWER_S):
        await writer.drain()


class ControlClient:
    """Asks the daemon, blocking: for the command line."""

    def __init__(self, path: Path) -> None:
        """Connect to the daemon's socket.

        :raises ControlError: if no daemon listens there.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(REQUEST_S)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ControlError(
                f"no daemon answers on {path} ({error.strerror or error}): is `coloha run` "
                "running, and may this user talk to it?"
            ) from error
        self._file = self._socket.makefile("rb")

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        """Send a request; return its first answer.

        :raises ControlError: if the daemon refuses, or goes away.
        """
        # A daemon that refuses this user may have hung up by now; its reason is there to be read.
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        return self.next()

    def next(self, timeout_s: float | None = REQUEST_S) -> dict[str, Any]:
        """Return the next line of the answer; see `ask`."""
        self._socket.settimeout(timeout_s)
        try:
            line = self._file.readline(MAX_LINE_BYTES * 16)
        except OSError as error:
            raise ControlError(f"the daemon did not answer: {error}") from error
        if not line:
            raise ControlError("the daemon closed the connection")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ControlError("what answers on the control socket is no coloha daemon")
        if "error" in answer:
            raise ControlError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()
