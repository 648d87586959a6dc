"""A broker that is killed, stands still, or refuses, and hooks that hang: the pair goes on."""

import contextlib
import signal
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from coloha.adapters.control import ControlClient
from lab.assets import load_assets
from lab.broker import Broker, Listener
from lab.cluster import PAIR
from lab.namespace import wait_until
from tests.e2e.support import PATIENT, Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

TIMING = replace(PATIENT, misses=12, restart_hold="30s")
"""Daemons are restarted, to tell a broker from then on."""
INTERVAL_S = 0.1
PORT = 1883
WINDOW_S = 3.0
"""How long the pair is watched at each stage."""
USERS = {"listener": "hears", "coloha": "tells"}
CHANGED = {**USERS, "coloha": "told another"}
HOOKS = {"hangs": ("sleep", "1000"), "fails": ("false",), "works": ("true",)}
LEAST = 0.5
"""What is left, at worst, of the pace without a broker: the machine is noisy."""
UNREST = {"unprotected", "recovered", "hold", "claimed", "promoted", "solo", "epoch-kept"}
"""Kinds that tell of lost heartbeats, or of epochs that failed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a pair goes on."""

    commits_per_s: float
    answers_per_s: float
    silence_s: float
    """How old the primary's last heartbeat is at the secondary, as a rule."""

    def __str__(self) -> str:
        pace = f"{self.commits_per_s:.1f} commits/s, {self.answers_per_s:.1f} answers/s"
        return f"{pace}, last heartbeat {self.silence_s * 1000:.0f} ms ago"


def pace(stage: Scene, primary: str, secondary: str) -> Pace:
    """Watch the pair; meanwhile an operator gives orders, each of which is an event."""
    began, before = time.monotonic(), stage.cluster.status(primary)
    answers, told = stage.answers(), [len(stage.kinds(name)) for name in (primary, secondary)]
    silences = []
    while time.monotonic() < began + WINDOW_S:
        for verb in ("pause", "resume"):
            order(stage, primary, verb)
            silences.append(stage.cluster.status(secondary)["heartbeat_age_s"])
            time.sleep(WINDOW_S / 20)
    after, seconds = stage.cluster.status(primary), time.monotonic() - began
    answered = (stage.answers() - answers) / seconds
    for name, count in zip((primary, secondary), told, strict=True):
        assert not UNREST & set(stage.kinds(name)[count:])
    assert after["generation"] == before["generation"]
    commits = (after["epochs"] - before["epochs"]) / seconds
    return Pace(commits, answered, statistics.median(silences))


def order(stage: Scene, name: str, verb: str) -> None:
    with contextlib.closing(
        ControlClient(stage.topology.hosts[name].runtime / "control.sock")
    ) as c:
        assert c.ask(verb, pair=PAIR) == {"ok": True}


def tell(stage: Scene, name: str, broker: Broker) -> None:
    """Restart a node's daemon, so that it tells the broker, and hooks that do harm."""
    file = stage.cluster.host_file(name)
    host: dict[str, Any] = yaml.safe_load(file.read_text())
    password = stage.topology.hosts[name].directory / "mqtt-password"
    password.write_text(USERS["coloha"])
    password.chmod(0o600)
    host["mqtt"] = {"broker": broker.url, "username": "coloha", "password_file": str(password)}
    host["hooks"] = {
        hook: {"on": ["any"], "timeout": "500ms", "program": program, "arguments": list(words)}
        for hook, (program, *words) in HOOKS.items()
    }
    file.write_text(yaml.safe_dump(host))
    stage.cluster.stop_daemon(name)
    stage.cluster.start(name)
    stage.wait_for_daemon(name)


def test_nothing_that_a_broker_does_reaches_the_pair() -> None:
    with scene(TIMING) as stage:
        primary, secondary = stage.wait_protected()
        host = stage.topology.hosts[secondary]
        folder = stage.topology.directory / "broker"
        paces = {"without": pace(stage, primary, secondary)}
        ip = host.replication_ip
        broker = Broker(load_assets(), folder, PORT, ip=ip, users=USERS, popen=host.popen)
        with broker:
            listener = broker.listen()
            for name in (primary, secondary):
                tell(stage, name, broker)
                stage.wait_protected()
                stage.answers_go_on()
            assert stage.wait_protected() == (primary, secondary)
            wait_until(lambda: len(listener.of("/vm/state")) >= 2, "both states", 30)
            first = len(stage.cluster.events(primary))
            paces["told"] = pace(stage, primary, secondary)
            for what, harm, mend in harms(broker):
                harm()
                paces[what] = pace(stage, primary, secondary)
                mend()
                caught_up(stage, primary, listener)
            assert stage.wait_protected() == (primary, secondary)
            judge(paces)
            in_order(stage, primary, listener, first)
            stage.cluster.kill_qemu(primary)
            stage.wait_promoted(secondary)
            wait_until(lambda: "promoted" in kinds(listener, secondary), "the failover", 30)
            stage.wait_protected()
        stage.finish()


def harms(broker: Broker) -> list[tuple[str, Callable[[], None], Callable[[], None]]]:
    """What happens to the broker, and what ends it."""
    return [
        ("standing", lambda: broker.send(signal.SIGSTOP), lambda: broker.send(signal.SIGCONT)),
        ("killed", lambda: broker.stop(signal.SIGKILL), broker.start),
        ("refusing", lambda: _restart(broker, CHANGED), lambda: _restart(broker, USERS)),
    ]


def _restart(broker: Broker, users: Mapping[str, str]) -> None:
    broker.stop()
    broker.set_users(users)
    broker.start()


def kinds(listener: Listener, node: str) -> list[str]:
    return [event["kind"] for event in listener.events() if event["node"] == node]


def caught_up(stage: Scene, node: str, listener: Listener) -> None:
    """Wait until the broker was told what happened last."""
    last = stage.cluster.events(node)[-1]["number"]

    def told() -> bool:
        return any(e["node"] == node and e["number"] >= last for e in listener.events())

    wait_until(told, f"event {last} of {node}", 60)


def judge(paces: dict[str, Pace]) -> None:
    """No stage may be much slower than the one without a broker."""
    text = "; ".join(f"{what}: {each}" for what, each in paces.items())
    print(text)
    for each in paces.values():
        assert each.commits_per_s > LEAST * paces["without"].commits_per_s, text
        assert each.answers_per_s > LEAST * paces["without"].answers_per_s, text
        assert each.silence_s < max(paces["without"].silence_s, INTERVAL_S) / LEAST, text


def in_order(stage: Scene, node: str, listener: Listener, first: int) -> None:
    """Every event of the file was told, once and in order: nothing was dropped."""
    told = [event["number"] for event in listener.events() if event["node"] == node]
    happened = [event["number"] for event in stage.cluster.events(node)][first:]
    assert told == sorted(told)
    assert set(happened[:-10]) <= set(told)
    assert "mqtt-dropped" not in stage.kinds(node)
