"""Real etcd on loopback, and what stands between it and the witness."""

import asyncio
import base64
import contextlib
import itertools
import json
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from coloha import config
from coloha.adapters.witness import WitnessError, decode_record
from coloha.adapters.witness_etcd import EtcdWitness
from coloha.core.record import Record, first_record
from lab.assets import load_assets
from lab.etcd import EtcdCluster, Member
from tests.adapters.support import PATIENCE_S
from tests.runtime.daemon_support import free_ports

SOLO = first_record("life", "alpha")
PROTECTED = SOLO.protect("beta", 7)

_names = itertools.count(1)


def loopback(
    folder: Path, count: int = 1, scheme: str = "http", arguments: Sequence[str] = ()
) -> EtcdCluster:
    """A cluster of this machine's own; it is not started."""
    ports = iter(free_ports(3 * count))
    members = [Member("127.0.0.1", next(ports), next(ports), next(ports)) for _ in range(count)]
    return EtcdCluster(load_assets().etcd, folder, members, scheme=scheme, arguments=arguments)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member, for all tests that do it no harm: each uses pairs of its own."""
    with loopback(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def pair() -> str:
    """A pair that no other test has used."""
    return f"pair-{next(_names)}"


@contextlib.asynccontextmanager
async def opened(
    endpoints: Sequence[str], timeout_s: float = PATIENCE_S, **settings: Any
) -> AsyncIterator[EtcdWitness]:
    section = config.EtcdWitness(
        type="etcd", endpoints=tuple(endpoints), timeout=f"{timeout_s}s", **settings
    )
    witness = EtcdWitness(section)
    try:
        yield witness
    finally:
        await witness.close()


async def failure(answer: Awaitable[object]) -> WitnessError:
    """How this call fails."""
    with pytest.raises(WitnessError) as caught:
        await answer
    return caught.value


# etcd, asked by hand


def text(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def gateway(endpoint: str, path: str, *, token: str = "", **body: Any) -> dict[str, Any]:
    """Ask a member directly."""
    request = urllib.request.Request(f"{endpoint}/v3/{path}", json.dumps(body).encode())
    if token:
        request.add_header("Authorization", token)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE_S) as answer:
        reply = json.loads(answer.read())
    assert isinstance(reply, dict)
    return reply


def value_of(endpoint: str, key: str, revision: int = 0) -> tuple[bytes, int] | None:
    """A key's value, now or as of a revision, and its mod_revision."""
    reply = gateway(endpoint, "kv/range", key=text(key), revision=str(revision))
    if "kvs" not in reply:
        return None
    (found,) = reply["kvs"]
    return base64.b64decode(found.get("value", "")), int(found["mod_revision"])


def put(endpoint: str, key: str, value: bytes) -> None:
    gateway(endpoint, "kv/put", key=text(key), value=text(value))


def history_of(endpoint: str, pair: str) -> list[Record]:
    """Every record that the pair ever had, oldest first."""
    history: list[Record] = []
    found = value_of(endpoint, f"/coloha/{pair}")
    while found is not None:
        value, revision = found
        history.append(decode_record(value))
        if revision == 1:
            break
        found = value_of(endpoint, f"/coloha/{pair}", revision - 1)
    return history[::-1]


# In between


class Exchange:
    """One request that a proxy was sent."""

    def __init__(self, proxy: "Proxy", path: str, raw: bytes, writer: asyncio.StreamWriter):
        self.path, self._proxy, self._raw, self._writer = path, proxy, raw, writer

    async def forward(self) -> bytes:
        """Have etcd do it; return its raw answer."""
        reader, writer = await asyncio.open_connection(*self._proxy.target)
        try:
            writer.write(self._raw)
            return await reader.read()
        finally:
            writer.close()

    async def answer(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    def reset(self) -> None:
        """End the connection as a host does that knows nothing of it."""
        self._writer.transport.abort()


Fate = Callable[[Exchange], Awaitable[None]]


async def passes(exchange: Exchange) -> None:
    await exchange.answer(await exchange.forward())


async def passes_and_stays(exchange: Exchange) -> None:
    """The answer, as if the connection were to be used again."""
    answer = await exchange.forward()
    await exchange.answer(answer.replace(b"Connection: close\r\n", b""))


async def done_and_closed(exchange: Exchange) -> None:
    await exchange.forward()


async def done_and_reset(exchange: Exchange) -> None:
    await exchange.forward()
    exchange.reset()


async def done_and_silent(exchange: Exchange) -> None:
    await exchange.forward()
    await asyncio.Event().wait()


async def done_and_half_said(exchange: Exchange) -> None:
    answer = await exchange.forward()
    await exchange.answer(answer[: len(answer) - 20])


async def lost(exchange: Exchange) -> None:
    """The request is read, and nothing else happens."""
    await asyncio.Event().wait()


async def dropped(exchange: Exchange) -> None:
    """The request is read, and the connection closed."""


def says(status: int, body: bytes, *headers: str, done: bool = False) -> Fate:
    """Answer so, having done what was asked or not."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]

    async def answer(exchange: Exchange) -> None:
        if done:
            await exchange.forward()
        await exchange.answer("\r\n".join([*lines, "", ""]).encode() + body)

    return answer


class Proxy:
    """Stands before a member. A request of a kind meets the fates set for it in turn, then passes.

    Kinds are the last words of paths, such as `txn`. One connection carries one request, unless
    `keeps_alive`.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").rpartition(":")
        self.target = (host, int(port))
        self.fates: dict[str, deque[Fate]] = {}
        self.otherwise: Fate = passes
        """What becomes of requests without a fate of their own."""
        self.seen: list[str] = []
        self.keeps_alive = False
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def expect(self, kind: str, *fates: Fate) -> None:
        self.fates[kind] = deque(fates)

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """Listen no more."""
        self._server.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await self._exchange(reader, writer)
                if not self.keeps_alive:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # the witness did not wait
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers["content-length"]))
        kept = [line for line in lines if line and not line.lower().startswith("connection")]
        raw = "\r\n".join([first, *kept, "Connection: close", "", ""]).encode() + body
        path = first.split()[1]
        kind = path.rpartition("/")[2]
        self.seen.append(kind)
        fates = self.fates.get(kind)
        fate = fates.popleft() if fates else self.otherwise
        await fate(Exchange(self, path, raw, writer))
