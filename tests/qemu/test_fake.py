"""The fake monitor against the real one: the same dialogue, the same answers."""

import asyncio
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.assets import load_assets
from tests.qemu.fake import FakeQemu, split_stream
from tests.qemu.loops import PATIENCE_S, Loop, eventually

NEGOTIATE = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'

GETFD = '{"execute":"getfd","arguments":{"fdname":"f"},"id":"g"}'

DIALOGUES: dict[str, list[str | bytes]] = {
    "greeting": [],
    "command-before-negotiation": ['{"execute":"query-status","id":1}'],
    "negotiation-twice": [NEGOTIATE, '{"execute":"qmp_capabilities","id":"x"}'],
    "id-of-any-kind": [NEGOTIATE, '{"execute":"stop","id":{"a":[1,"}\\""]}}'],
    "no-newline-several-per-write": [
        NEGOTIATE + '{"execute":"stop","id":"a"}  {"execute":"stop","id":"b"}\n\n'
    ],
    "split-anywhere": [NEGOTIATE[:7], NEGOTIATE[7:30], NEGOTIATE[30:] + '{"exec', 'ute":"stop"}'],
    "white-space-between": [NEGOTIATE, " ", "\t\r\n", '{"execute":"stop"}'],
    "not-an-object": [NEGOTIATE, "[1]"],
    "getfd-without-descriptor": [NEGOTIATE, GETFD],
    "getfd-of-white-space": [NEGOTIATE, b" ", GETFD],
    "getfd-takes-the-descriptor": [NEGOTIATE, b" ", GETFD, GETFD],
    "oob": [NEGOTIATE, '{"exec-oob":"query-yank","id":"o"}'],
    "oob-not-enabled": ['{"execute":"qmp_capabilities"}', '{"exec-oob":"query-yank","id":"o"}'],
}
"""What is sent, in separate writes; bytes go along with a descriptor."""


async def talk(path: Path, said: Sequence[str | bytes]) -> list[Any]:
    """Say something in separate writes; return the greeting and one answer to each message."""
    asked, _ = split_stream("".join(part for part in said if isinstance(part, str)))
    loop = asyncio.get_running_loop()
    async with connected(path) as connection:
        for part in said:
            if isinstance(part, bytes):
                socket.send_fds(connection, [part], [connection.fileno()])
            else:
                await loop.sock_sendall(connection, part.encode())
            await asyncio.sleep(0.02)  # or the kernel makes one read of several writes
        heard = ""
        async with asyncio.timeout(PATIENCE_S):
            while len(split_stream(heard)[0]) <= len(asked):
                heard += (await loop.sock_recv(connection, 4096)).decode()
    messages, rest = split_stream(heard)
    assert rest.strip() == ""
    return [shape(json.loads(message)) for message in messages]


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[socket.socket]:
    """Connect to who makes the socket's file, and listens there a moment later."""
    end = time.monotonic() + PATIENCE_S
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        while True:
            try:
                await asyncio.get_running_loop().sock_connect(connection, str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < end, f"nobody listens at {path}"
                await asyncio.sleep(0.01)
            else:
                break
        yield connection


def shape(message: Any) -> Any:
    """What must agree: everything but versions and the wording of errors."""
    if "QMP" in message:
        return {"QMP": message["QMP"]["capabilities"]}
    if "error" in message:
        return {**message, "error": message["error"]["class"]}
    return message


@pytest.mark.qemu
@pytest.mark.parametrize("name", DIALOGUES)
def test_the_fake_talks_like_the_real_one(run: Loop, folder: Path, name: str) -> None:
    real = folder / "real.sock"
    program = [
        *(str(load_assets().qemu), "-machine", "none", "-nodefaults", "-display", "none", "-S"),
        *("-qmp", f"unix:{real},server=on,wait=off"),
    ]

    async def both() -> tuple[list[Any], list[Any]]:
        async with FakeQemu(folder) as qemu:
            answers = await talk(qemu.main.path, DIALOGUES[name])
            return answers, await talk(real, DIALOGUES[name])

    with subprocess.Popen(program) as process:
        try:
            fake, truth = run(both())
        finally:
            process.kill()
    assert fake == truth


def test_events_have_the_form_of_real_ones(run: Loop, folder: Path) -> None:
    async def main() -> Any:
        async with FakeQemu(folder) as qemu, connected(qemu.main.path) as connection:
            loop = asyncio.get_running_loop()
            qemu.event("LOST", None)  # nobody has negotiated: QEMU drops it
            await loop.sock_sendall(connection, NEGOTIATE.encode())
            await eventually(lambda: qemu.main.client and qemu.main.client.negotiated, "handshake")
            qemu.event("MIGRATION", {"status": "colo"})
            heard = ""
            while "timestamp" not in heard:
                heard += (await loop.sock_recv(connection, 4096)).decode()
            return [json.loads(message) for message in split_stream(heard)[0]]

    _, _, event = run(main())
    assert event["event"] == "MIGRATION"
    assert event["data"] == {"status": "colo"}
    assert set(event["timestamp"]) == {"seconds", "microseconds"}


def test_one_client_at_a_time(run: Loop, folder: Path) -> None:
    async def main() -> None:
        async with FakeQemu(folder) as qemu, connected(qemu.main.path) as first:
            await eventually(lambda: qemu.main.served == 1, "the first to be served")
            async with connected(qemu.main.path):
                await asyncio.sleep(0.05)
                assert qemu.main.served == 1
                first.close()
                await eventually(lambda: qemu.main.served == 2, "the second to be served")

    run(main())
