"""The daemon as it is run: a process, its signals, its sockets, its command line."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from coloha.adapters.control import ControlClient
from coloha.cli.main import main
from coloha.core.phases import Phase
from coloha.errors import ControlError
from coloha.flight.record import files, read
from coloha.flight.replay import Replay
from coloha.runtime.recorder import WRITE_EVERY_S
from lab.namespace import CHECKOUT
from tests.adapters.support import PATIENCE_S
from tests.runtime.daemon_support import Daemon


def test_it_starts_answers_and_ends(alpha: Daemon) -> None:
    alpha.start()
    alpha.wait(lambda: alpha.events("launch-failed"), "the launch that fails")
    status = json.loads(alpha.cli("status", "--json", status=1))
    assert alpha.process is not None
    assert (status["node"], status["pid"]) == ("alpha", alpha.process.pid)
    (pair,) = status["pairs"]
    assert (pair["pair"], pair["peer"], pair["protected"]) == ("vm", "beta", False)
    assert pair["record"] == "solo(1, alpha)"
    assert "/nowhere/qemu: No such file or directory" in pair["why_not"]
    shown = alpha.cli("status", status=1)
    assert "NOT PROTECTED" in shown
    assert "/nowhere/qemu" in shown
    assert "launch-failed: " in alpha.cli("events", "--pair", "vm", status=0)
    assert alpha.stop() == 0
    assert alpha.events()[-1] == "QEMUs are left running"
    assert "no daemon answers" in alpha.cli("status", status=1)


def test_without_pairs_all_is_well(alpha: Daemon) -> None:
    alpha.pair_file.unlink()
    alpha.start()
    assert json.loads(alpha.cli("status", "--json", status=0))["pairs"] == []
    assert alpha.stop(signal.SIGINT) == 0


def scrape(alpha: Daemon) -> dict[str, Metric]:
    """The metric families that a daemon serves, by name."""
    url = f"http://127.0.0.1:{alpha.ports[2]}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return {f.name: f for f in text_string_to_metric_families(answer.read().decode())}


def test_it_serves_metrics(alpha: Daemon) -> None:
    alpha.start()
    alpha.wait(lambda: alpha.events("launch-failed"), "the launch that fails")
    families = scrape(alpha)
    (protected,) = families["coloha_pair_protected"].samples
    assert (protected.labels, protected.value) == ({"pair": "vm"}, 0)
    kinds = {s.labels["kind"] for s in families["coloha_occurrences"].samples if "kind" in s.labels}
    assert "launch-failed" in kinds
    with socket.create_connection(("127.0.0.1", alpha.ports[0])) as stranger:
        stranger.sendall(bytes(64))
    rejected = "coloha_channels_rejected"
    alpha.wait(lambda: scrape(alpha)[rejected].samples[0].value == 1, "the stranger to be counted")
    assert alpha.stop() == 0


def test_a_start_that_means_nothing_is_refused(alpha: Daemon) -> None:
    alpha.start()
    alpha.wait(lambda: alpha.events("launch-failed"), "the launch that fails")
    refused = alpha.cli("start", "vm", status=1)
    assert "vm is in phase boot here, and the record is solo(1, alpha): only a VM" in refused
    assert "no pair 'db' on this node" in alpha.cli("start", "db", status=1)
    assert "no pair 'db' on this node" in alpha.cli("status", "db", status=1)


def test_two_daemons_hear_each_other(alpha: Daemon, beta: Daemon) -> None:
    alpha.start()
    beta.start()
    for daemon in (alpha, beta):
        daemon.wait(lambda daemon=daemon: daemon.status()["heartbeat_age_s"] is not None, "a beat")  # type: ignore[misc]
    beta.wait(lambda: beta.status()["phase"] == "standby", "beta stands by")
    assert beta.stop(signal.SIGKILL) == -signal.SIGKILL
    before = alpha.status()["heartbeat_age_s"]
    alpha.wait(lambda: alpha.status()["heartbeat_age_s"] > before + 1, "beta's silence")
    # A daemon that died is started again: its lock and its socket are no obstacle.
    beta.start()
    alpha.wait(lambda: alpha.status()["heartbeat_age_s"] < 1, "alpha hears the new life")
    beta.wait(lambda: beta.status()["heartbeat_age_s"] is not None, "beta hears too")
    assert alpha.stop() == beta.stop() == 0


def test_a_reload_takes_over_the_period(alpha: Daemon) -> None:
    alpha.start()
    alpha.pair["checkpoint"]["period"] = "125ms"
    alpha.write()
    assert alpha.reload() == ["pair vm: checkpoint.period changed"]
    alpha.wait(lambda: alpha.status()["period_s"] == 0.125, "the new period")


def test_a_reload_of_a_broken_file_changes_nothing(alpha: Daemon) -> None:
    alpha.start()
    alpha.pair["checkpoint"]["period"] = "125ms"
    alpha.pair["heartbeat"]["misses"] = 1
    alpha.write()
    (said,) = alpha.reload()
    assert said.startswith("nothing was changed: ")
    assert f"{alpha.pair_file}:" in said
    assert "heartbeat.misses" in said
    assert alpha.status()["period_s"] == 0.05
    alpha.host_file.write_text("node: [")
    (said,) = alpha.reload()
    assert said.startswith("nothing was changed: ")
    alpha.pair["heartbeat"]["misses"] = 10
    alpha.write()
    assert alpha.reload() == ["pair vm: checkpoint.period changed"]


def test_a_reload_that_is_asked_for_is_answered(alpha: Daemon) -> None:
    alpha.start()
    alpha.pair["checkpoint"]["period"] = "125ms"
    alpha.write()
    assert alpha.cli("reload", status=0) == "pair vm: checkpoint.period changed\n"
    alpha.pair["heartbeat"]["misses"] = 1
    alpha.write()
    # The daemon itself says so, too: what it reads may be newer.
    with (
        contextlib.closing(ControlClient(alpha.control)) as client,
        pytest.raises(ControlError, match=r"^nothing was changed: .*heartbeat\.misses"),
    ):
        client.ask("reload")


def test_a_reload_says_that_keys_changed(alpha: Daemon) -> None:
    alpha.start()
    key = alpha.folder / "key"
    assert main(["keygen", "--add", str(key)]) == 0
    assert alpha.reload() == ["the keys changed: that needs a restart of the daemon"]
    alpha.stop()
    alpha.start()
    assert alpha.cli("reload", status=0) == ""


def test_a_reload_says_what_needs_a_restart(alpha: Daemon) -> None:
    alpha.start()
    alpha.host["metrics"] = "127.0.0.1:1"
    alpha.pair["heartbeat"]["misses"] = 20
    alpha.pair["checkpoint"]["period"] = "125ms"
    alpha.write()
    expected = [
        "the host file changed: that needs a restart of the daemon",
        "pair vm: checkpoint.period changed",
        "pair vm: heartbeat.misses changed: that needs a restart",
    ]
    assert alpha.reload("that needs a restart'") == expected
    # And says so again as long as it is true.
    assert alpha.reload("that needs a restart'") == [expected[0], expected[2]]


def test_a_period_that_only_fits_a_new_stall_timeout_waits_for_the_restart(alpha: Daemon) -> None:
    alpha.start()
    alpha.pair["checkpoint"] = {"period": "2s", "stall_timeout": "10s"}
    alpha.write()
    (said,) = alpha.reload()
    assert said.startswith("pair vm: checkpoint.period, checkpoint.stall_timeout changed: that")
    assert alpha.status()["period_s"] == 0.05


def test_a_reload_tells_of_pairs_that_come_and_go(alpha: Daemon) -> None:
    alpha.start()
    alpha.pair_file.unlink()
    other = alpha.folder / "pairs.d" / "db.yaml"
    other.write_text(json.dumps({**alpha.pair, "pair": "db"}))
    assert alpha.reload("the file of pair vm") == [
        "pair db is new: that needs a restart of the daemon",
        "the file of pair vm is gone: it runs on until the daemon is restarted",
    ]
    assert alpha.status()["pair"] == "vm"


def test_a_second_daemon_is_refused_and_does_not_disturb_the_first(alpha: Daemon) -> None:
    alpha.start()
    said = alpha.refused()
    assert f"another coloha daemon uses {alpha.folder / 'run'}: stop it first" in said
    assert alpha.status()["pair"] == "vm"
    assert alpha.stop() == 0


@pytest.mark.parametrize("busy", ["channel", "heartbeat", "metrics"])
def test_a_busy_port_is_named(alpha: Daemon, busy: str) -> None:
    port = alpha.ports[["channel", "heartbeat", "metrics"].index(busy)]
    kind = socket.SOCK_DGRAM if busy == "heartbeat" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        said = alpha.refused()
    assert f"coloha: cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert alpha.events() == []  # nothing was begun
    assert list((alpha.folder.parent / "witness").iterdir()) == []
    alpha.start()
    assert alpha.stop() == 0


def test_an_address_of_another_host_is_named(alpha: Daemon) -> None:
    alpha.pair_file.unlink()
    alpha.host["listen"]["heartbeat"] = "192.0.2.1:7771"
    alpha.host_file.write_text(json.dumps(alpha.host))
    assert "cannot listen on 192.0.2.1:7771: Cannot assign requested address" in alpha.refused()


@pytest.mark.parametrize("name", ["run", "state"])
def test_a_folder_that_cannot_be_made_is_named(alpha: Daemon, name: str) -> None:
    (alpha.folder / name).write_text("")
    assert f"coloha: {alpha.folder / name}: " in alpha.refused()


def test_a_damaged_state_is_told_and_the_pair_is_held(alpha: Daemon) -> None:
    state = alpha.folder / "state" / "vm.json"
    state.parent.mkdir()
    state.write_text("{")
    alpha.start()
    alpha.wait(lambda: alpha.events("failed"), "the failure")
    pair = alpha.status()
    assert (pair["phase"], pair.get("protected", False)) == ("failed", False)
    assert f"{state} is damaged" in pair["why_not"]
    assert f"{state} is damaged" in alpha.cli("status", status=1)
    assert not (alpha.folder.parent / "witness" / "vm.json").exists()
    state.unlink()
    alpha.wait(lambda: alpha.status()["phase"] != "failed", "a fresh start")
    assert alpha.stop() == 0


def test_it_ends_even_if_the_witness_hangs(alpha: Daemon) -> None:
    """Else a restart would wait for a file server that is gone."""
    fifo = alpha.folder.parent / "witness" / "vm.json"
    os.mkfifo(fifo)
    alpha.start()
    try:
        alpha.wait(lambda: alpha.events("witness-unreachable"), "the witness hangs")
        assert "did not answer" in alpha.events("witness-unreachable")[0]
        assert "UNREACHABLE" in alpha.cli("status", status=1)
        assert alpha.stop() == 0
    finally:
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))


def test_the_command_line_may_lose_its_reader(alpha: Daemon) -> None:
    """`coloha events --follow | head -1` ends without a complaint."""
    alpha.start()
    follow = [sys.executable, "-m", "coloha", "events", "--follow", "--config"]
    with subprocess.Popen(
        [*follow, str(alpha.host_file)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert "daemon-started" in following.stdout.readline()
        following.stdout.close()
        for period in itertools.count(51):  # it notices when there is something to say
            if following.poll() is not None:
                break
            alpha.pair["checkpoint"]["period"] = f"{period}ms"
            alpha.write()
            alpha.reload()
        assert following.stderr.read() == ""
        assert following.returncode == 0


def test_a_follower_is_told_that_the_daemon_ended(alpha: Daemon) -> None:
    alpha.start()
    with subprocess.Popen(
        [sys.executable, "-m", "coloha", "events", "--follow", "--config", str(alpha.host_file)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert "daemon-started" in following.stdout.readline()
        assert alpha.stop() == 0
        _, said = following.communicate(timeout=PATIENCE_S)
        assert "the daemon closed the connection" in said
        assert following.returncode == 1


def test_each_life_leaves_a_record_that_decides_the_same(alpha: Daemon) -> None:
    folder = alpha.folder / "state" / "flight" / "vm"
    for life, number in enumerate((signal.SIGKILL, signal.SIGTERM), 1):
        alpha.start()
        alpha.wait(lambda: len(alpha.events("daemon-started")) == life, f"life {life}")  # noqa: B023
        alpha.wait(lambda: alpha.status()["phase"] != "init", "the first decision")
        time.sleep(2 * WRITE_EVERY_S)
        alpha.stop(number)
    killed, ended = files(folder)
    for path, torn in ((killed, True), (ended, False)):
        replay = Replay()
        began, *steps = replay.run(read(path))
        assert (began.after.node, began.after.pair, replay.torn) == ("alpha", "vm", torn)
        assert steps[-1].after.phase is not Phase.INIT
