"""A headless Chromium, driven by its own protocol: what a page shows, what it complains about."""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from lab.namespace import LabError

START_S = 60.0
ANSWER_S = 30.0
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--hide-scrollbars", "--remote-debugging-port=0"),
)


class Tab:
    """One tab. Its complaints are console messages and violations of a page's policy."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol; return its result."""
        number = next(self._numbers)
        await self._connection.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._receive()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    async def _receive(self) -> dict[str, Any]:
        async with asyncio.timeout(ANSWER_S):
            message: dict[str, Any] = await self._connection.receive_json()
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])
        if "method" in message:
            self._events.append(message)
        return message

    async def open(
        self, url: str, *, width: int = 1000, dark: bool = False, scripts: bool = False
    ) -> None:
        """Show a page in a window of this width, pixels; return when it is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._events.clear()
        await self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            await self._receive()

    async def ask(self, expression: str) -> Any:
        """Evaluate an expression in the page, whether or not its own scripts may run."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def shot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Tab]:
    """Start a Chromium that keeps its profile in `folder`, and open a tab."""
    with (folder / "chromium.log").open("wb") as log:
        argv = [_program(), *_QUIET, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        port = await _port(folder / "profile" / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (page, *_) = [t for t in json.loads(await answer.text()) if t["type"] == "page"]
            async with session.ws_connect(
                page["webSocketDebuggerUrl"], max_msg_size=0
            ) as connection:
                tab = Tab(connection)
                await tab.call("Page.enable")
                await tab.call("Log.enable")
                yield tab
    finally:
        process.kill()
        process.wait()


def _program() -> str:
    found = shutil.which("chromium")
    if found is None:
        raise LabError("chromium is missing: run `make test`, or install the package chromium")
    return found


async def _port(said: Path) -> int:
    async with asyncio.timeout(START_S):
        while not (said.exists() and said.read_text()):
            await asyncio.sleep(0.05)
    return int(said.read_text().splitlines()[0])
