"""The connection to a broker: a real Mosquitto, and what is none."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coloha.adapters import mqtt
from coloha.adapters.mqtt import Connection, connect
from coloha.config import Mqtt
from coloha.errors import BrokerError
from lab.broker import Certificates
from tests.adapters.authority import Authority
from tests.adapters.mqtt_support import PASSWORD, USER, broker, password_file, section
from tests.adapters.support import PATIENCE_S, Runner, eventually
from tests.runtime.daemon_support import free_ports

pytestmark = pytest.mark.parametrize("run", ["asyncio"], indirect=True)
"""The only loop that it runs on (coloha.runtime.aside)."""

SHORT_S = 0.5
"""How long brokers that say nothing are waited for here."""

Serve = Callable[[socket.socket], None]


def sockets() -> int:
    """How many this process has."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Neither a failure nor an end in good order may leave a socket or a thread behind."""
    gc.collect()
    before, threads = sockets(), threading.active_count()
    yield
    gc.collect()
    assert sockets() <= before
    assert threading.active_count() <= threads


@contextlib.contextmanager
def impostor(serve: Serve) -> Iterator[str]:
    """What listens like a broker, and does something else with every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                stack.enter_context(connection)
                with contextlib.suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


async def refused(settings: Mqtt) -> str:
    """How a connection is refused."""
    with pytest.raises(BrokerError) as caught:
        async with connect(settings, "coloha-alpha"):
            pass
    assert len(asyncio.all_tasks()) == 1
    return str(caught.value)


async def published(settings: Mqtt) -> None:
    """Publish something."""
    async with connect(settings, "coloha-alpha") as connection:
        await connection.publish("a/topic", "something", retain=True)


def test_a_message_arrives_and_stays(run: Runner, tmp_path: Path) -> None:
    with broker(tmp_path) as there:
        listener = there.listen()
        run(published(section(there.url)))
        late = there.listen(name="late")
        run(heard(late.messages.__len__, 1, lambda: late.messages))
        (now,), (later,) = listener.messages, late.messages
        assert (now.topic, now.payload, now.retained) == ("a/topic", "something", False)
        assert (later.topic, later.payload, later.retained) == ("a/topic", "something", True)


async def heard(_: object, count: int, messages: Callable[[], list[Any]]) -> None:
    await eventually(lambda: len(messages()) >= count, f"{count} messages")


def test_a_password(run: Runner, tmp_path: Path) -> None:
    file = password_file(tmp_path)
    with broker(tmp_path, users={USER: PASSWORD}) as there:
        good = section(there.url, username=USER, password_file=file)
        run(published(good))
        nobody = run(refused(section(there.url)))
        assert nobody.startswith(f"{there.url}: it refuses the user: correct mqtt.username or")
        file.write_text("guessed")
        assert "it refuses the user" in run(refused(good))
        file.chmod(0o640)
        assert run(refused(good)).startswith("mqtt.password_file: ")
        file.chmod(0o600)
        file.write_text(PASSWORD)
        run(published(good))


def test_tls(run: Runner, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, key = ours.sign("server")
    with broker(tmp_path, tls=Certificates(ours.file, certificate, key)) as there:
        run(published(section(there.url, ca_file=ours.file)))
        why = run(refused(section(there.url, ca_file=theirs.file)))
        assert "its certificate is not accepted" in why
        assert "see that mqtt.ca_file signed it" in why
        why = run(refused(section(f"mqtts://localhost:{there.port}", ca_file=ours.file)))
        assert "'localhost'" in why
        assert "names the host in mqtt.broker" in why
        why = run(refused(section(f"mqtt://127.0.0.1:{there.port}")))
        assert "it hangs up before it answers: see that" in why
        assert "mqtts://" in why
        why = run(refused(section(there.url, ca_file=tmp_path / "gone.pem")))
        assert why == f"{tmp_path}/gone.pem: No such file or directory: correct the PEM files"


def test_certificates_of_clients(run: Runner, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, key = ours.sign("server")
    node, node_key = ours.sign("node")
    stranger, stranger_key = theirs.sign("stranger")
    with broker(tmp_path, tls=Certificates(ours.file, certificate, key, True)) as there:
        trust: dict[str, Any] = {"ca_file": ours.file}
        run(published(section(there.url, cert_file=node, key_file=node_key, **trust)))
        for shown in ({}, {"cert_file": stranger, "key_file": stranger_key}):
            assert "a client's certificate (mqtt.cert_file)" in run(
                refused(section(there.url, **trust, **shown))
            )


def test_without_tls_where_it_is_wanted(run: Runner, tmp_path: Path) -> None:
    with broker(tmp_path) as there:
        why = run(refused(section(f"mqtts://127.0.0.1:{there.port}")))
        assert "no TLS" in why
        assert "or write mqtt://" in why


def test_a_socket_is_closed_before_it_is_watched(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiomqtt asks a turn ahead, in which a connection may break and its number be another's."""

    def connect(paho: Any, *_: object) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            paho._sock = ours
            paho._call_socket_open(ours)
            paho._call_socket_register_write()
            number = ours.fileno()
            paho._sock_close()
            other = socket.socket(fileno=os.dup(theirs.fileno()))
        others.append(other)
        same.append(other.fileno() == number)
        raise ConnectionResetError(104, "Connection reset by peer")

    async def main() -> None:
        await refused(section("mqtt://127.0.0.1:1"))
        loop = asyncio.get_running_loop()
        for other in others:
            assert not loop.remove_reader(other.fileno())
            assert not loop.remove_writer(other.fileno())
            other.close()

    others: list[socket.socket] = []
    same: list[bool] = []
    monkeypatch.setattr("paho.mqtt.client.Client.connect", connect)
    for _ in range(20):
        run(main())
        others.clear()
    assert any(same)


def test_nobody_is_there(run: Runner) -> None:
    (port,) = free_ports(1)
    why = run(refused(section(f"mqtt://127.0.0.1:{port}")))
    assert why == f"mqtt://127.0.0.1:{port}: Connection refused: is a broker running there?"
    why = run(refused(section("mqtt://no.such.host.invalid")))
    assert "its name is not known" in why


def silence(connection: socket.socket) -> None:
    """Say nothing."""


def hang_up(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def nonsense(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("serve", "scheme", "words"),
    [
        (silence, "mqtt", "and then says nothing"),
        (hang_up, "mqtt", "it hangs up before it answers"),
        (hang_up, "mqtts", "no TLS"),
        (nonsense, "mqtt", ""),
    ],
)
def test_what_is_no_broker(
    run: Runner, monkeypatch: pytest.MonkeyPatch, serve: Serve, scheme: str, words: str
) -> None:
    monkeypatch.setattr(mqtt, "ANSWER_S", SHORT_S)
    with impostor(serve) as place:
        assert words in run(refused(section(f"{scheme}://{place}")))


def test_a_broker_that_stands_still(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "ANSWER_S", SHORT_S)

    async def main(url: str) -> None:
        async with connect(section(url), "coloha-alpha") as connection:
            await connection.publish("a/topic", "one")
            there.send(signal.SIGSTOP)
            with pytest.raises(BrokerError, match="does not acknowledge"):
                # Far more than the sockets hold: it does not only not answer, it does not read.
                await connection.publish("a/topic", "x" * (32 << 20))
        assert len(asyncio.all_tasks()) == 1

    with broker(tmp_path) as there:
        run(main(there.url))


def test_a_broker_that_dies_is_noticed(run: Runner, tmp_path: Path) -> None:
    async def main(url: str) -> None:
        async with connect(section(url), "coloha-alpha") as connection:
            there.stop(signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait([connection.lost])
            await refuses(connection)

    async def refuses(connection: Connection) -> None:
        with pytest.raises(BrokerError, match="the connection broke"):
            await connection.publish("a/topic", "late")

    with broker(tmp_path) as there:
        run(main(there.url))


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_will_is_for_connections_that_break(
    run: Runner, tmp_path: Path, ends_well: bool
) -> None:
    async def main(url: str) -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with connect(section(url), "coloha-alpha", will=("a/will", "gone")):
                if not ends_well:
                    raise ZeroDivisionError
        if not ends_well:
            await eventually(lambda: listener.of("a/will"), "the will")

    with broker(tmp_path) as there:
        listener = there.listen()
        run(main(there.url))
        run(published(section(there.url)))
        run(heard(None, 1, lambda: listener.of("a/topic")))
        assert [message.payload for message in listener.of("a/will")] == ["gone"] * (not ends_well)
