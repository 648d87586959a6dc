"""What is served over HTTP: metrics, whether all is well, and a page for people.

In threads of their own: they answer while the event loop is stuck, and say that it is. They read
what the pumps have left behind and touch nothing.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from coloha.runtime import page
from coloha.runtime.occurrences import Occurrence

ANSWER_S = 10.0
"""How long a client may take over its request."""
HEADERS = (
    ("Content-Security-Policy", page.POLICY),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


@dataclass(frozen=True, slots=True)
class View:
    """What there is to see; called by the serving threads."""

    status: Callable[[], Mapping[str, Any]]
    """As `coloha status --json` has it."""
    events: Callable[[], Sequence[Occurrence]]
    pauses: Callable[[str], Sequence[float]]
    """Of a pair's last checkpoints, seconds."""
    unwell: Callable[[], str | None]
    """Why the daemon should be restarted, if it should."""
    unready: Callable[[], str | None]
    """Why it does not do its work for every pair, if it does not."""


class Web:
    """Serves a view, and metrics."""

    def __init__(self, metrics: WSGIApplication, view: View) -> None:
        self._metrics = metrics
        self._view = view
        self._server: WSGIServer | None = None

    def serve(self, host: str, port: int, kept: socket.socket | None = None) -> None:
        """Serve at http://host:port/, with the socket that is `kept` if one is.

        :raises OSError: if the address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = kept or socket.create_server((host, port), family=family)
        listener.setblocking(True)
        self._server = _Server(listener)
        self._server.set_app(self._answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def listener(self) -> socket.socket | None:
        """Where it serves."""
        return self._server.socket if self._server is not None else None

    def stop(self) -> None:
        """Serve no more, soon: the serving thread looks up twice a second only."""
        if self._server is not None:
            threading.Thread(target=_shut, args=(self._server,), daemon=True).start()

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics(environment, start)
        if environment.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _plain(start, HTTPStatus.METHOD_NOT_ALLOWED, "this is only to be read")
        match path:
            case "/":
                text = page.render(self._view.status(), self._view.events(), self._view.pauses)
                return _send(start, HTTPStatus.OK, "text/html", text)
            case "/-/healthy":
                return _verdict(start, self._view.unwell(), "healthy")
            case "/-/ready":
                return _verdict(start, self._view.unwell() or self._view.unready(), "ready")
        return _plain(start, HTTPStatus.NOT_FOUND, "there is /, /metrics, /-/healthy, /-/ready")


def _verdict(start: StartResponse, problem: str | None, well: str) -> list[bytes]:
    if problem is None:
        return _plain(start, HTTPStatus.OK, well)
    return _plain(start, HTTPStatus.SERVICE_UNAVAILABLE, problem)


def _plain(start: StartResponse, status: HTTPStatus, text: str) -> list[bytes]:
    return _send(start, status, "text/plain", f"{text}\n")


def _send(start: StartResponse, status: HTTPStatus, kind: str, text: str) -> list[bytes]:
    body = text.encode(errors="replace")
    length = ("Content-Length", str(len(body)))
    headers = [("Content-Type", f"{kind}; charset=utf-8"), length, *HEADERS]
    start(f"{status.value} {status.phrase}", headers)
    return [body]


class _Handler(WSGIRequestHandler):
    timeout = ANSWER_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        address = listener.getsockname()[:2]
        super().__init__(address, _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = address
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client went away."""


def _shut(server: WSGIServer) -> None:
    server.shutdown()
    server.server_close()
