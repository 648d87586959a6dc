"""A daemon that answers as told, for the verbs that ask one."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coloha.adapters.control import ControlServer
from tests.config.support import HOST, PAIR, write

Line = Mapping[str, Any]


class FakeDaemon:
    """Answers on a control socket of its own, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.host_file = configure(folder)
        self.status: dict[str, Any] = {
            "node": "alpha",
            "version": "1.2.3",
            "uptime_s": 5.0,
            "pairs": [],
        }
        self.events: list[dict[str, Any]] = []
        self.asked: list[Line] = []
        self.obey: Callable[[Line], Line] = lambda request: {"ok": True}
        """What orders do, and are answered."""
        self._path = folder / "run" / "control.sock"

    @contextlib.contextmanager
    def serving(self) -> Iterator["FakeDaemon"]:
        ready, loops = threading.Event(), []

        async def main() -> None:
            self._path.parent.mkdir(exist_ok=True)
            stopping = asyncio.Event()
            loops.append((asyncio.get_running_loop(), stopping))
            verbs = {"status": self._status, "events": self._events, "start": self._start}
            orders = ("stop", "failover", "unprotect", "protect")
            verbs |= dict.fromkeys(orders, self._order)
            server = ControlServer(verbs)
            await server.start(self._path)
            ready.set()
            await stopping.wait()
            server.stop()

        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        assert ready.wait(30)
        try:
            yield self
        finally:
            loop, stopping = loops[0]
            loop.call_soon_threadsafe(stopping.set)
            thread.join()

    async def _status(self, request: Line) -> AsyncIterator[Line]:
        self.asked.append(request)
        yield {"ok": self.status}

    async def _events(self, request: Line) -> AsyncIterator[Line]:
        self.asked.append(request)
        for event in self.events:
            yield {"ok": event}
        yield {"end": True}

    async def _start(self, request: Line) -> AsyncIterator[Line]:
        self.asked.append(request)
        if request["pair"] == "web":
            yield {"ok": True}
        else:
            yield {"error": f"no pair {request['pair']!r} on this node"}

    async def _order(self, request: Line) -> AsyncIterator[Line]:
        self.asked.append(request)
        yield self.obey(request)


def configure(folder: Path, pair: str = PAIR) -> Path:
    """Write a configuration whose daemon keeps to `folder`; return the host file."""
    host = HOST + f"runtime_directory: {folder}/run\nstate_directory: {folder}/state\n"
    return write(folder, {"coloha.yaml": _here(host), "pairs.d/web.yaml": _here(pair)})


def _here(text: str) -> str:
    """The example's addresses, on this host."""
    return text.replace("10.9.0.", "127.0.0.")
