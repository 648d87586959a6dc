"""What a broker is told, through all that may happen to it: a real Mosquitto."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from coloha.adapters import mqtt as adapter
from coloha.core.actions import Severity
from coloha.runtime import mqtt
from coloha.runtime.aside import Aside
from coloha.runtime.mqtt import STATE, MqttTeller
from lab.broker import Broker, Certificates
from tests.adapters.authority import Authority
from tests.adapters.mqtt_support import PASSWORD, USER, broker, password_file, section
from tests.adapters.support import PATIENCE_S
from tests.runtime.tellers_support import Told, aside, occurrence, until

pytestmark = pytest.mark.usefixtures("_soon")

VM = {"pair": "vm", "phase": "protected", "protected": True, "generation": 7, "epochs": 100}


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait as long as for a broker of the world."""
    monkeypatch.setattr(adapter, "ANSWER_S", 1.0)
    monkeypatch.setattr(mqtt, "LONGEST_WAIT_S", 0.5)
    monkeypatch.setattr(mqtt, "LOOK_S", 0.1)


class Telling:
    """A teller at work, and what it is given."""

    def __init__(self, teller: MqttTeller, thread: Aside, told: Told, states: list[Any]) -> None:
        self.teller, self.told, self.states = teller, told, states
        self._thread = thread
        self._number = 0

    def happen(self, count: int = 1) -> list[int]:
        """Let so many events happen; return their numbers."""
        numbers = [self._number + index for index in range(1, count + 1)]
        for number in numbers:
            self.teller.take(occurrence(number))
            self._thread.call(self.teller.wake)
        self._number += count
        return numbers

    def connected(self) -> None:
        """Wait until the broker is told."""
        until(lambda: self.teller.connected, f"a connection: {self.told.events}")

    def lost(self) -> None:
        """Wait until the broker is known to be lost."""
        until(lambda: not self.teller.connected, "the loss")


@contextlib.contextmanager
def telling(url: str, **settings: Any) -> Iterator[Telling]:
    told, states = Told(), [dict(VM)]
    teller = MqttTeller(section(url, **settings), "alpha", lambda: list(states), told)
    with aside(teller.run) as thread:
        yield Telling(teller, thread, told, states)


def numbers(events: Sequence[Mapping[str, Any]]) -> list[int]:
    return [event["number"] for event in events]


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path) as running:
        yield running


def test_what_is_told(there: Broker) -> None:
    listener = there.listen()
    with telling(there.url) as telling_:
        telling_.connected()
        telling_.teller.take(occurrence(41, "promoted", severity=Severity.WARNING, text="ü\0"))
        telling_.happen(1)
        until(lambda: len(listener.events()) == 2, "the events")
        assert listener.events()[0] == {
            "id": "alpha-41-1767225641000",
            "number": 41,
            "at": "2026-01-01T00:00:41.000+00:00",
            "monotonic_s": 1.5,
            "node": "alpha",
            "pair": "vm",
            "kind": "promoted",
            "severity": "warning",
            "generation": 7,
            "text": "ü\0",
        }
        telling_.states[0]["epochs"] = 200  # it changes all the time, and is not told
        telling_.states[0].update(phase="solo", protected=False)
        until(lambda: len(listener.of("/vm/state")) == 2, "the new state")
        assert telling_.told.of("mqtt-connected") == [f"{there.url} is told"]
    until(lambda: len(listener.of("/availability")) == 2, "the farewell")
    assert [m.payload for m in listener.of("coloha/alpha/availability")] == ["online", "offline"]
    first, second = (message.json() for message in listener.of("coloha/alpha/vm/state"))
    assert (first["phase"], second["phase"]) == ("protected", "solo")
    assert set(first) == {"at", "node", *STATE}
    assert (first["node"], first["role"], first["why_not"]) == ("alpha", None, None)
    assert {message.topic for message in listener.messages} == {
        "coloha/alpha/availability",
        "coloha/alpha/vm/state",
        "coloha/alpha/events",
    }
    late = there.listen(name="late")
    until(lambda: len(late.messages) == 2, "what stays")
    assert {(m.topic, m.retained) for m in late.messages} == {
        ("coloha/alpha/availability", True),
        ("coloha/alpha/vm/state", True),
    }


def test_with_password_and_tls(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    tls = Certificates(ours.file, *ours.sign("server"))
    with broker(tmp_path, users={USER: PASSWORD}, tls=tls) as there:
        listener = there.listen("site/#")
        settings = {"username": USER, "password_file": password_file(tmp_path)}
        with telling(there.url, ca_file=ours.file, topic="site/1", **settings) as telling_:
            telling_.happen(3)
            until(lambda: len(listener.events()) == 3, "the events")
        assert {m.topic for m in listener.of("/events")} == {"site/1/alpha/events"}


def test_what_waits_is_sent_in_order(there: Broker) -> None:
    """The broker is gone, for longer than one attempt: nothing is lost, or told twice over."""
    listener = there.listen()
    with telling(there.url) as telling_:
        telling_.connected()
        before = telling_.happen(5)
        until(lambda: len(listener.events()) == 5, "the first events")
        there.stop()
        telling_.lost()
        meanwhile = telling_.happen(50)
        until(lambda: "is a broker running" in str(telling_.told.of("mqtt-lost")), "why")
        telling_.states[0]["phase"] = "solo"
        there.start()
        telling_.connected()
        after = telling_.happen(5)
        until(lambda: len(listener.events()) == 60, "all events")
        assert numbers(listener.events()) == before + meanwhile + after
        until(lambda: listener.of("/vm/state")[-1].json()["phase"] == "solo", "the state as it is")
        assert telling_.told.of("mqtt-connected")[-1].endswith("is told; 50 events wait for it")
        assert len(telling_.told.of("mqtt-lost")) <= 3
        assert (telling_.teller.sent, telling_.teller.dropped) == (60, 0)


def test_a_broker_that_stood_still(there: Broker) -> None:
    listener = there.listen()
    with telling(there.url) as telling_:
        telling_.connected()
        there.send(signal.SIGSTOP)
        happened = telling_.happen(20)
        telling_.lost()
        until(lambda: len(telling_.told.of("mqtt-lost")) == 2, "an attempt in vain")
        assert "does not acknowledge" in telling_.told.of("mqtt-lost")[0]
        assert "then says nothing" in telling_.told.of("mqtt-lost")[1]
        there.send(signal.SIGCONT)
        telling_.connected()
        until(lambda: len(listener.events()) == 20, "the events")
        assert numbers(listener.events()) == happened


def test_what_was_not_acknowledged_is_sent_again(there: Broker) -> None:
    """The broker dies with an event in its hands, and forgets the states, too."""
    with telling(there.url) as telling_:
        telling_.connected()
        there.send(signal.SIGSTOP)
        happened = telling_.happen(3)
        telling_.lost()
        there.stop(signal.SIGKILL)
        there.forget()
        there.start()
        until(lambda: telling_.teller.sent == len(happened), "the events")
        log = there.log.rpartition(" running")[2]
        events = [line for line in log.splitlines() if "'coloha/alpha/events'" in line]
        assert len([line for line in events if "Received PUBLISH" in line]) == len(happened)
        late = there.listen(name="late")
        until(lambda: len(late.messages) == 2, "what stays")
        assert late.of("/vm/state")[0].json()["phase"] == "protected"


def test_a_full_queue_is_counted(there: Broker) -> None:
    there.stop()
    with telling(there.url, queue=10) as telling_:
        kept = telling_.happen(35)[:10]
        assert (telling_.teller.waiting, telling_.teller.dropped) == (10, 25)
        until(lambda: telling_.told.of("mqtt-dropped"), "news of that")
        telling_.happen(5)
        there.start()
        listener = there.listen()
        telling_.connected()
        until(lambda: len(telling_.told.of("mqtt-dropped")) == 2, "how many it were")
        first, second = telling_.told.of("mqtt-dropped")
        assert "10 events wait: later ones are dropped" in first
        assert second == "30 events were not sent: `coloha events` has them"
        later = telling_.happen(2)
        until(lambda: numbers(listener.events())[-2:] == later, "what happened later")
        # The listener may have come after the first of them; none came twice, or out of order.
        found = numbers(listener.events())[:-2]
        assert found == kept[len(kept) - len(found) :]


@contextlib.contextmanager
def late(there: Broker, seconds: float) -> Iterator[str]:
    """The way to a broker on which every answer is late."""
    ends: list[socket.socket] = []

    def forward(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                time.sleep(delay_s)
                sink.sendall(piece)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection((there.ip, there.port))
                ends.extend((near, far))
                for way in ((near, far, 0.0), (far, near, seconds)):
                    threads.append(threading.Thread(target=forward, args=way))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=serve, args=(listener,))]
        threads[0].start()
        yield f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        for end in (listener, *ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in ends:
            end.close()


def test_a_broker_that_is_slow(there: Broker) -> None:
    """It is not given up, and what it has no time for is dropped and counted."""
    listener = there.listen()
    with late(there, 0.3) as url, telling(url, queue=10) as telling_:
        telling_.connected()
        happened = telling_.happen(25)
        until(lambda: len(telling_.told.of("mqtt-dropped")) == 2, "the end of that")
        assert telling_.told.of("mqtt-lost") == []
        assert telling_.teller.sent + telling_.teller.dropped == len(happened)
        until(lambda: len(listener.events()) == telling_.teller.sent, "the events")
        assert numbers(listener.events()) == happened[: telling_.teller.sent]


def test_a_password_that_is_corrected(tmp_path: Path) -> None:
    file = password_file(tmp_path, "guessed")
    with broker(tmp_path, users={USER: PASSWORD}) as there:
        listener = there.listen()
        with telling(there.url, username=USER, password_file=file) as telling_:
            happened = telling_.happen(3)
            until(lambda: telling_.told.of("mqtt-lost"), "the refusal")
            (refused,) = telling_.told.of("mqtt-lost")
            assert "it refuses the user: correct mqtt.username" in refused
            assert PASSWORD not in refused
            password_file(tmp_path)
            telling_.connected()
            until(lambda: len(listener.events()) == 3, "the events")
            assert numbers(listener.events()) == happened


def test_a_bug_does_not_end_the_telling(
    there: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coloha.runtime.aside.AGAIN_S", 0.1)
    listener = there.listen()
    with telling(there.url) as telling_:
        telling_.connected()
        telling_.states[0] = None
        until(lambda: "what runs aside failed" in caplog.text, "the failure")
        telling_.states[0] = dict(VM)
        until(lambda: listener.of("/availability")[-1].payload == "online", "all as before")
        telling_.happen(1)
        until(lambda: len(listener.events()) == 1, "the event")
        # The broker saw the connection break, and said so.
        assert "offline" in [message.payload for message in listener.of("/availability")]


def test_the_end_waits_for_no_broker(there: Broker) -> None:
    """Nobody may wait for it who ends: here the thread goes on, and the caller does not."""
    told = Told()
    teller = MqttTeller(section(there.url), "alpha", list, told)
    thread = Aside([teller.run])
    thread.start()
    until(lambda: teller.connected, "a connection")
    there.send(signal.SIGSTOP)
    teller.take(occurrence(1))
    assert not thread.stop(0.1)
    there.send(signal.SIGCONT)
    until(lambda: thread.stop(PATIENCE_S), "the end all the same")
    assert not thread._thread.is_alive() or thread._ended.is_set()
