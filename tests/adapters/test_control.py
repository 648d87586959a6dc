"""The control socket: the command line's way to the daemon, and who may take it."""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from coloha.adapters import control
from coloha.adapters.control import (
    MAX_CLIENTS,
    MAX_LINE_BYTES,
    ControlClient,
    ControlServer,
    Handler,
)
from coloha.errors import ControlError
from lab.namespace import CHECKOUT
from tests.adapters.support import PATIENCE_S, Runner, eventually, ticking

T = TypeVar("T")
Line = Mapping[str, Any]


class Verbs:
    """What a daemon would answer, made up."""

    def __init__(self) -> None:
        self.asked: list[Line] = []
        self.following: set[asyncio.Queue[Line]] = set()
        self.handlers: dict[str, Handler] = {
            "status": self.status,
            "events": self.events,
            "start": self.start,
            "flood": self.flood,
            "break": self.breaks,
        }

    async def status(self, request: Line) -> AsyncIterator[Line]:
        self.asked.append(request)
        yield {"ok": {"node": "alpha", "pairs": []}}

    async def events(self, request: Line) -> AsyncIterator[Line]:
        queue: asyncio.Queue[Line] = asyncio.Queue()
        self.following.add(queue)
        try:
            for number in range(3):
                yield {"ok": number}
            while request.get("follow"):
                yield await queue.get()
            yield {"end": True}
        finally:
            self.following.discard(queue)

    async def start(self, request: Line) -> AsyncIterator[Line]:
        if request.get("pair") == "vm":
            yield {"ok": True}
        else:
            yield {"error": f"no pair {request.get('pair')!r} on this node"}

    async def flood(self, request: Line) -> AsyncIterator[Line]:
        queue: asyncio.Queue[Line] = asyncio.Queue()
        self.following.add(queue)
        try:
            while True:
                yield {"ok": "x" * 50_000}
        finally:
            self.following.discard(queue)

    async def breaks(self, request: Line) -> AsyncIterator[Line]:
        yield {"ok": 1 / int(request["by"])}


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket in a folder of its own that every user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="coloha-"))
    folder.chmod(0o755)
    yield folder / "control.sock"
    shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Verbs]:
    verbs = Verbs()
    server = ControlServer(verbs.handlers)
    await server.start(path)
    try:
        yield verbs
    finally:
        server.stop()
        await asyncio.sleep(0.01)


async def beside(work: Callable[[], T]) -> T:
    """Run blocking work, such as the client's, in a thread."""
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.to_thread(work)


@contextlib.contextmanager
def client(path: Path) -> Iterator[ControlClient]:
    made = ControlClient(path)
    try:
        yield made
    finally:
        made.close()


def ask(path: Path, verb: str, **arguments: object) -> dict[str, Any]:
    with client(path) as asking:
        return asking.ask(verb, **arguments)


def say(path: Path, data: bytes) -> list[bytes]:
    """Write bytes, and return the lines of the answer until the server hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(4096):
                received += part
    return received.splitlines()


def test_verbs_are_answered(run: Runner, path: Path) -> None:
    async def main() -> None:
        async with serving(path) as verbs:
            assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"
            assert await beside(lambda: ask(path, "start", pair="vm")) == {"ok": True}
            with pytest.raises(ControlError, match="no pair 'db' on this node"):
                await beside(lambda: ask(path, "start", pair="db"))
            assert verbs.asked == [{"verb": "status"}]

    run(main())


def test_events_come_line_by_line_until_the_end(run: Runner, path: Path) -> None:
    def collect() -> list[dict[str, Any]]:
        with client(path) as asking:
            lines = [asking.ask("events")]
            while "end" not in lines[-1]:
                lines.append(asking.next())
        return lines

    async def main() -> None:
        async with serving(path):
            assert await beside(collect) == [{"ok": 0}, {"ok": 1}, {"ok": 2}, {"end": True}]

    run(main())


def test_a_follower_hears_news_and_is_forgotten_when_it_hangs_up(run: Runner, path: Path) -> None:
    async def main() -> None:
        async with serving(path) as verbs:
            follower = await beside(lambda: ControlClient(path))
            await beside(lambda: follower.ask("events", follow=True))
            for _ in range(2):
                await beside(follower.next)
            (queue,) = verbs.following
            await queue.put({"ok": "news"})
            assert await beside(follower.next) == {"ok": "news"}
            follower.close()
            await eventually(lambda: not verbs.following, "the follower is forgotten")

    run(main())


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\n",
        b"\xff\xfe\n",
        b"null\n",
        b"[" * 60_000 + b"\n",
        b'{"verb": ' + b"9" * 5000 + b"}\n",
        b"x" * (MAX_LINE_BYTES + 1) + b"\n",
        b"x" * (4 * MAX_LINE_BYTES),
        b'{"verb": "break", "by": 0}\n',
        b'{"verb": "break"}\n',
        b'{"verb": "break", "by": []}\n',
    ],
    ids=range(13),
)
def test_junk_gets_no_answer_and_does_no_harm(run: Runner, path: Path, junk: bytes) -> None:
    async def main() -> None:
        async with serving(path):
            answers = [json.loads(line) for line in await beside(lambda: say(path, junk + b"\n"))]
            assert all(answer.keys() == {"error"} for answer in answers)
            assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"

    run(main())


@pytest.mark.parametrize("verb", ["", "stop", "__init__", "STATUS", 5, None, ["status"]])
def test_an_unknown_verb_is_named_in_the_answer(run: Runner, path: Path, verb: object) -> None:
    async def main() -> None:
        async with serving(path):
            (answer,) = await beside(lambda: say(path, json.dumps({"verb": verb}).encode() + b"\n"))
            assert "knows no verb" in json.loads(answer)["error"]
            assert str(verb) in json.loads(answer)["error"].replace("\\'", "'").replace('"', "'")

    run(main())


def test_a_client_that_says_nothing_is_hung_up_on(
    run: Runner, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 0.3)

    async def main() -> None:
        async with serving(path), ticking():
            assert await beside(lambda: say(path, b'{"verb": "sta')) == []

    run(main())


def test_a_client_that_closes_its_side_is_still_answered(run: Runner, path: Path) -> None:
    """As `echo '{"verb": "events"}' | nc -NU control.sock` does."""

    def half_close() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(path))
            connection.sendall(b'{"verb": "events"}\n')
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                return file.read()

    async def main() -> None:
        async with serving(path):
            lines = (await beside(half_close)).splitlines()
            assert [json.loads(line) for line in lines][-1] == {"end": True}

    run(main())


def test_one_client_too_many_is_told(run: Runner, path: Path) -> None:
    async def main() -> None:
        async with serving(path) as verbs:
            clients = []
            for _ in range(MAX_CLIENTS):
                clients.append(await beside(lambda: ControlClient(path)))
                await beside(lambda: clients[-1].ask("events", follow=True))
            for _ in range(3):
                with pytest.raises(ControlError, match="32 others are asking: try again later"):
                    await beside(lambda: ask(path, "status"))
            clients.pop().close()
            await eventually(lambda: len(verbs.following) < MAX_CLIENTS, "a free place")
            await asyncio.sleep(0.05)
            assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"
            for one in clients:
                one.close()
            await eventually(lambda: not verbs.following, "all forgotten")

    run(main())


def test_a_slow_reader_holds_up_nobody_and_is_dropped(
    run: Runner, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_S", 0.5)

    async def main() -> None:
        async with serving(path) as verbs:
            slow = await beside(lambda: ControlClient(path))
            slow._socket.sendall(b'{"verb": "flood"}\n')  # and reads none of it
            async with ticking():
                for _ in range(10):
                    assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"
                    await asyncio.sleep(0.005)
            await eventually(lambda: not verbs.following, "the slow reader is dropped")
            slow.close()

    run(main())


def test_clients_do_not_wait_for_each_other(run: Runner, path: Path) -> None:
    async def main() -> None:
        async with serving(path):
            answers = await asyncio.gather(
                *(beside(lambda: ask(path, "status")) for _ in range(MAX_CLIENTS // 2))
            )
            assert len(answers) == MAX_CLIENTS // 2

    run(main())


def test_a_stopped_server_hangs_up(run: Runner, path: Path) -> None:
    async def main() -> None:
        async with serving(path):
            follower = await beside(lambda: ControlClient(path))
            await beside(lambda: follower.ask("events", follow=True))
            for _ in range(2):
                await beside(follower.next)
        with pytest.raises(ControlError, match="closed the connection"):
            await beside(follower.next)
        follower.close()
        with pytest.raises(ControlError, match="no daemon answers"):
            await beside(lambda: ask(path, "status"))

    run(main())


@pytest.mark.parametrize("left", ["socket", "file", "link"])
def test_what_a_dead_daemon_left_is_replaced(run: Runner, path: Path, left: str) -> None:
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif left == "file":
        path.write_text("")
    else:
        path.symlink_to("/nowhere")

    async def main() -> None:
        async with serving(path):
            assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"
            assert path.is_socket()
            assert path.stat().st_mode & 0o777 == 0o600

    run(main())


def test_a_folder_in_its_place_is_an_error(run: Runner, path: Path) -> None:
    path.mkdir()

    async def main() -> None:
        with pytest.raises(OSError, match=r"directory|permitted"):
            await ControlServer({}).start(path)

    run(main())


@pytest.mark.parametrize("left", ["nothing", "a socket nobody serves"])
def test_without_a_daemon_the_client_says_so(path: Path, left: str) -> None:
    if left != "nothing":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    with pytest.raises(ControlError, match=rf"{path} .*is `coloha run` running"):
        ControlClient(path)


@pytest.mark.parametrize(
    "answer", [b"", b"not JSON\n", b"[]\n", b'{"ok": tr', b"\xff\n"], ids=range(5)
)
def test_an_answer_of_something_else_is_an_error(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with client(path) as asking, pytest.raises(ControlError):
            asking.ask("status")
        thread.join()


CLIENT = """
import os, sys
from pathlib import Path
from coloha.adapters.control import ControlClient
from coloha.errors import ControlError
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
try:
    client = ControlClient(Path(sys.argv[1]))
    print(client.ask("status"))
except ControlError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_another_user_is_refused_whatever_the_mode(run: Runner, path: Path, mode: int) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("this user namespace has one user only: nobody else could ask")
    command = [sys.executable, "-c", CLIENT, str(path), str(nobody)]

    def as_nobody() -> str:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def main() -> None:
        async with serving(path) as verbs:
            path.chmod(mode)
            for _ in range(3):
                said = await beside(as_nobody)
                reason = "may this user" if mode == 0o600 else f"user {nobody} may not control"
                assert said.startswith("refused: ")
                assert reason in said
            assert verbs.asked == []
            assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"

    run(main())


def test_who_asks_is_what_the_kernel_says(
    run: Runner, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither root nor the daemon's user, however it got there."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    uid = 0

    def credentials(writer: asyncio.StreamWriter) -> int:
        return uid

    monkeypatch.setattr(control, "_peer_uid", credentials)

    async def main() -> None:
        nonlocal uid
        async with serving(path):
            for uid, allowed in ((0, True), (1000, True), (1001, False), (65534, False)):
                if allowed:
                    assert (await beside(lambda: ask(path, "status")))["ok"]["node"] == "alpha"
                else:
                    with pytest.raises(ControlError, match=f"user {uid} may not control"):
                        await beside(lambda: ask(path, "status"))

    run(main())
