"""A daemon that tells: a broker and a hook, from its start to its end, of whatever kind."""

import signal
import socket
import time
from pathlib import Path

import pytest

from coloha.adapters.mqtt import ANSWER_S
from lab.broker import Broker, Listener
from tests.adapters.mqtt_support import PASSWORD, USER, broker, password_file
from tests.runtime.daemon_support import Daemon
from tests.runtime.tellers_support import until
from tests.runtime.test_daemon import scrape

pytestmark = pytest.mark.parametrize("daemons", ["uvloop"], indirect=True)
"""What tells has a loop of its own, whatever the daemon's is."""


def value(alpha: Daemon, name: str) -> float:
    """One metric without labels."""
    return float(scrape(alpha)[name].samples[0].value)


def configure(alpha: Daemon, there: Broker, hooked: Path) -> None:
    """Have the daemon tell this broker, and a file."""
    file = password_file(alpha.folder)
    alpha.host["mqtt"] = {"broker": there.url, "username": USER, "password_file": str(file)}
    arguments = ["-c", f"echo $COLOHA_KIND >> {hooked}"]
    alpha.host["hooks"] = {"log": {"on": ["daemon"], "program": "sh", "arguments": arguments}}
    alpha.write()


def wait_for(listener: Listener, *words: str) -> None:
    """Wait until these words on availability were heard, in turn, and no others."""
    until(lambda: len(listener.of("/availability")) >= len(words), " ".join(words))
    assert [message.payload for message in listener.of("coloha/alpha/availability")] == list(words)


def test_from_its_start_to_its_end(alpha: Daemon, tmp_path: Path) -> None:
    hooked = tmp_path / "hooked"
    with broker(tmp_path, users={USER: PASSWORD}) as there:
        configure(alpha, there, hooked)
        listener = there.listen()
        alpha.start()
        wait_for(listener, "online")
        alpha.wait(lambda: "launch-failed" in str(listener.events()), "the launch that fails")
        alpha.wait(lambda: value(alpha, "coloha_mqtt_connected") == 1, "the metric")
        assert value(alpha, "coloha_mqtt_sent") >= 1
        alpha.wait(lambda: "/nowhere" in str(listener.of("/vm/state")), "the state")
        state = listener.of("/vm/state")[-1].json()
        assert (state["pair"], state["peer"], state["protected"]) == ("vm", "beta", False)

        alpha.stop(signal.SIGKILL)
        wait_for(listener, "online", "offline")
        alpha.start()
        wait_for(listener, "online", "offline", "online")
        assert alpha.stop() == 0
        wait_for(listener, "online", "offline", "online", "offline")
        assert listener.events()[-1]["kind"] == "daemon-stopped"
    assert hooked.read_text().split()[-1] == "daemon-stopped"
    assert {"daemon-started", "mqtt-connected"} < set(hooked.read_text().split())


def test_a_broker_that_stands_still_holds_up_no_end(alpha: Daemon, tmp_path: Path) -> None:
    with broker(tmp_path, users={USER: PASSWORD}) as there:
        configure(alpha, there, tmp_path / "hooked")
        alpha.start()
        alpha.wait(lambda: value(alpha, "coloha_mqtt_connected") == 1, "the connection")
        there.send(signal.SIGSTOP)
        began = time.monotonic()
        assert alpha.stop() == 0
        assert time.monotonic() - began < ANSWER_S  # the farewell alone would wait so long


def test_a_broker_that_says_nothing_holds_up_neither_start_nor_end(alpha: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        alpha.host["mqtt"] = {"broker": f"mqtt://127.0.0.1:{silent.getsockname()[1]}"}
        alpha.write()
        alpha.start()
        alpha.wait(lambda: alpha.events("launch-failed"), "the launch that fails")
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1) == b"\x10", "an attempt to connect is under way"
            assert value(alpha, "coloha_mqtt_connected") == 0
            assert alpha.stop() == 0
            assert alpha.events()[-1] == "QEMUs are left running"
