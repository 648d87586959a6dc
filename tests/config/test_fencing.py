"""Fencing and the watchdog: what the two kinds of file say, and what they say only together."""

from pathlib import Path

import pytest

from coloha.config import FenceAgent, load

from .support import HOST, PAIR, edit, load_from, pair_named, refuse, write

AGENT = """\
fencing:
  beta:
    agent: fence_ipmilan
    parameters: {ip: 10.8.0.2, username: admin, lanplus: 1}
    password_file: key
"""
REQUIRED = PAIR + "fencing: required\n"
SLOW = "heartbeat: {interval: 500ms, misses: 15}\n"


def agent(folder: Path, text: str) -> FenceAgent:
    return load_from(folder, {"coloha.yaml": HOST + text}).host.fencing["beta"]


def test_an_agent(tmp_path: Path) -> None:
    found = agent(tmp_path, AGENT)
    assert found.agent == "fence_ipmilan"
    assert found.parameters == {"ip": "10.8.0.2", "username": "admin", "lanplus": "1"}
    assert found.password_file == tmp_path / "key"
    assert (found.timeout, found.retries, found.verify, found.deadline_s) == (20, 2, "status", 60)
    assert found.delay == 15


def test_an_agent_beside_the_file(tmp_path: Path) -> None:
    assert agent(tmp_path, AGENT.replace("fence_ipmilan", "./off")).agent == f"{tmp_path}/off"


def test_a_broken_agent(tmp_path: Path) -> None:
    text = (
        "fencing:\n  beta:\n    agent: ''\n    parameters: {ip: [1], 'a b': x, lanplus: true}\n"
        "    timeout: 500ms\n    retries: 11\n    verify: yes\n    pasword_file: key\n"
        "    delay: 1h\n  Gamma: {}\n"
    )
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + text},
        ("coloha.yaml:8:12: fencing.beta.agent", "is empty: write a program's name"),
        ("coloha.yaml:9:22: fencing.beta.parameters.ip", "must be text, not a list"),
        ("coloha.yaml:9:27: fencing.beta.parameters.'a b'", "is not the name of a parameter"),
        ("coloha.yaml:9:46: fencing.beta.parameters.lanplus", "must be text, not true: put it"),
        ("coloha.yaml:10:14: fencing.beta.timeout", "500ms is out of range: write 1s to 5m"),
        ("coloha.yaml:11:14: fencing.beta.retries", "11 is out of range"),
        ("coloha.yaml:12:13: fencing.beta.verify", "unknown value 'yes': use status, agent"),
        ("coloha.yaml:13:5: fencing.beta.pasword_file", "did you mean 'password_file'?"),
        ("coloha.yaml:14:12: fencing.beta.delay", "1h is out of range: write 0s to 5m"),
        ("coloha.yaml:15:3: fencing.Gamma", "is not a name"),
        ("coloha.yaml:15:10: fencing.Gamma.agent", "missing"),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("action", "coloha sets it: remove it"),
        ("option", "coloha sets it: remove it"),
        ("nodename", "coloha sets it: remove it"),
        ("password", "write it into password_file"),
        ("passwd", "write it into password_file"),
        ("delay", "delay instead"),
    ],
)
def test_parameters_that_are_not_the_operators(tmp_path: Path, name: str, message: str) -> None:
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + f"fencing: {{beta: {{agent: x, parameters: {{{name}: off}}}}}}\n"},
        ("coloha.yaml:6:40: fencing.beta.parameters", f"{name}: ", message),
    )


def test_a_parameter_stays_on_its_line(tmp_path: Path) -> None:
    """Or its second line would be another parameter: an action, perhaps."""
    text = 'fencing: {beta: {agent: x, parameters: {ip: "1\\naction=on"}}}\n'
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + text},
        ("coloha.yaml:6:40: fencing.beta.parameters", "ip is more than one line"),
    )


def test_an_open_password_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o644)
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + edit(AGENT, "password_file: key", "password_file: secret")},
        ("coloha.yaml:10:20: fencing.beta.password_file", "open to others", "chmod 600"),
    )


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_pair_that_fences_needs_an_agent(tmp_path: Path, mode: str) -> None:
    pair = PAIR + f"fencing: {mode}\n"
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": pair},
        ("pairs.d/web.yaml:17:10: fencing", f"is {mode}", "beta's host", "add fencing.beta"),
    )
    assert load_from(tmp_path, {"coloha.yaml": HOST + AGENT, "pairs.d/web.yaml": pair}).pairs


def test_no_host_switches_itself_off(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + AGENT.replace("beta", "alpha")},
        ("coloha.yaml:7:3: fencing.alpha", "is this host, which never switches itself off"),
    )


def test_an_agent_for_nobody(tmp_path: Path) -> None:
    host = HOST + AGENT.replace("beta", "bta")
    refuse(
        tmp_path,
        {"coloha.yaml": host},
        ("coloha.yaml:7:3: fencing.bta", "no pair of this host has a node bta"),
    )
    host_file = write(tmp_path, {"coloha.yaml": host})
    (tmp_path / "pairs.d/web.yaml").unlink()
    assert load(host_file).host.fencing  # the pairs may come later


def watchdog(text: str) -> str:
    return HOST + f"watchdog: {{{text}}}\n"


def test_a_watchdog(tmp_path: Path) -> None:
    off = load_from(tmp_path).host.watchdog
    assert (off.mode, str(off.device), off.timeout) == ("off", "/dev/watchdog", 5)
    refuse(
        tmp_path,
        {"coloha.yaml": watchdog("mode: on, device: watchdog0, timeout: 1500ms, tmeout: 1s")},
        ("coloha.yaml:6:18: watchdog.mode", "unknown value 'on'", "required"),
        ("coloha.yaml:6:30: watchdog.device", "is relative: write an absolute path"),
        ("coloha.yaml:6:50: watchdog.timeout", "whole seconds, write 2s"),
        ("coloha.yaml:6:58: watchdog.tmeout", "did you mean 'timeout'?"),
    )


def test_a_required_watchdog_must_be_in_time(tmp_path: Path) -> None:
    host = watchdog("mode: required, timeout: 5s")
    text = PAIR + "heartbeat: {interval: 500ms, misses: 13}\n"
    refuse(
        tmp_path,
        {"coloha.yaml": host, "pairs.d/web.yaml": text},
        (
            "pairs.d/web.yaml:17:12: heartbeat",
            "may take over 5s after",
            "500ms x 10",
            "needs 5500ms to reset",
            "misses: 15",
        ),
    )
    in_time = {"coloha.yaml": host, "pairs.d/web.yaml": PAIR + SLOW}
    assert load_from(tmp_path, in_time).pairs


def test_every_pair_must_outlast_a_required_watchdog(tmp_path: Path) -> None:
    app = pair_named("app", "52:54:00:00:00:02")
    files = {"coloha.yaml": watchdog("mode: required"), "pairs.d/web.yaml": PAIR + SLOW}
    refuse(
        tmp_path,
        {**files, "pairs.d/app.yaml": app},
        ("pairs.d/app.yaml:1:1: heartbeat", "100ms x 2", "misses: 59"),
    )


def test_an_optional_watchdog_may_be_late(tmp_path: Path) -> None:
    assert load_from(tmp_path, {"coloha.yaml": watchdog("mode: optional")}).pairs


UNWITNESSED = edit(REQUIRED, "type: file\n  directory: /srv/witness", "type: none")


@pytest.mark.parametrize("delay", ["0s", "5s"])
def test_the_secondary_leaves_the_primary_time(tmp_path: Path, delay: str) -> None:
    """1.5 x 3 s without a commit, and 0.5 s of silence: that long a primary may take."""
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + AGENT + f"    delay: {delay}\n", "pairs.d/web.yaml": UNWITNESSED},
        ("coloha.yaml:7:3: fencing.beta", f"a delay of {delay} lets the secondary of web switch"),
    )


def test_a_witness_needs_no_delay(tmp_path: Path) -> None:
    load_from(
        tmp_path,
        {"coloha.yaml": HOST + AGENT + "    delay: 0s\n", "pairs.d/web.yaml": REQUIRED},
    )
