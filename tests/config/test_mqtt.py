"""The sections `mqtt` and `hooks` of the host file."""

from pathlib import Path

import pytest

from coloha.config import Mqtt
from coloha.core.kinds import TRIGGERS
from tests.config.support import HOST, load_from, refuse

FILES = {"password": "secret", "ca.pem": "", "node.pem": "", "node.key": ""}


def host(text: str) -> str:
    return HOST + text


def secret(folder: Path) -> None:
    """Keep what is written before `load_from` to its owner."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)


def test_without_sections_nobody_is_told(tmp_path: Path) -> None:
    config = load_from(tmp_path).host
    assert config.mqtt is None
    assert config.hooks == {}


def test_a_broker_is_enough(tmp_path: Path) -> None:
    config = load_from(tmp_path, {"coloha.yaml": host("mqtt: {broker: mqtt://10.9.0.9}\n")})
    assert config.host.mqtt == Mqtt(broker="mqtt://10.9.0.9")


def test_all_settings(tmp_path: Path) -> None:
    secret(tmp_path)
    text = (
        "mqtt: {broker: 'mqtts://broker.example.org', topic: site-1/coloha, client_id: me,"
        " username: coloha, password_file: password, ca_file: ca.pem, cert_file: node.pem,"
        " key_file: node.key, keepalive: 30s, queue: 10}\n"
    )
    found = load_from(tmp_path, {"coloha.yaml": host(text)}).host.mqtt
    assert found is not None
    assert (found.host, found.port, found.tls) == ("broker.example.org", 8883, True)
    assert found.password_file == tmp_path / "password"
    assert (found.keepalive, found.queue, found.topic) == (30, 10, "site-1/coloha")


@pytest.mark.parametrize(
    ("url", "name", "port", "tls"),
    [
        ("mqtt://10.9.0.9", "10.9.0.9", 1883, False),
        ("mqtt://10.9.0.9:99", "10.9.0.9", 99, False),
        ("mqtts://[fd00::1]", "fd00::1", 8883, True),
        ("mqtts://[fd00::1]:99", "fd00::1", 99, True),
        ("mqtt://broker", "broker", 1883, False),
    ],
)
def test_where_a_broker_is(url: str, name: str, port: int, tls: bool) -> None:
    section = Mqtt(broker=url)
    assert (section.host, section.port, section.tls) == (name, port, tls)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("10.9.0.9:1883", "is not a URL of a broker: write it like mqtts://"),
        ("http://10.9.0.9", "is not a URL of a broker"),
        ("mqtt://10.9.0.9/topic", "is not a URL of a broker"),
        ("mqtt://me:secret@10.9.0.9", "into mqtt.password_file"),
        ("mqtt://10.9.0", "is no IP address"),
        ("mqtt://[fd00::1::2]", "is no IP address"),
        ("mqtt://10.9.0.9:0", "port 0 does not exist"),
    ],
)
def test_a_broker_that_is_none(tmp_path: Path, url: str, words: str) -> None:
    text = host(f"mqtt: {{broker: '{url}'}}\n")
    refuse(tmp_path, {"coloha.yaml": text}, ("coloha.yaml:6:16: mqtt.broker", words))


def test_what_means_nothing_is_refused(tmp_path: Path) -> None:
    secret(tmp_path)
    text = (
        "mqtt:\n  broker: mqtt://10.9.0.9\n  password_file: password\n  ca_file: ca.pem\n"
        "  key_file: node.key\n  topic: a/+/b\n  client_id: ''\n  qos: 2\n"
    )
    refuse(
        tmp_path,
        {"coloha.yaml": host(text)},
        ("coloha.yaml:8:18: mqtt.password_file", "without username: add username"),
        ("coloha.yaml:9:12: mqtt.ca_file", "without TLS: write mqtts:// in broker"),
        ("coloha.yaml:10:13: mqtt.key_file", "without cert_file: add cert_file"),
        ("coloha.yaml:11:10: mqtt.topic", "cannot begin a topic"),
        ("coloha.yaml:12:14: mqtt.client_id", "is not a client ID"),
        ("coloha.yaml:13:3: mqtt.qos", "unknown key"),
    )


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    secret(tmp_path)
    text = "mqtt: {broker: mqtts://b, username: coloha, cert_file: node.pem}\n"
    refuse(
        tmp_path,
        {"coloha.yaml": host(text)},
        ("coloha.yaml:6:7: mqtt", "add key_file, or remove cert_file"),
        ("coloha.yaml:6:7: mqtt", "add password_file, or remove username"),
    )


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    secret(tmp_path)
    for name in ("password", "node.key"):
        (tmp_path / name).chmod(0o644)
    text = (
        "mqtt: {broker: mqtts://b, username: coloha, password_file: password,"
        " cert_file: node.pem, key_file: node.key}\n"
    )
    refuse(
        tmp_path,
        {"coloha.yaml": host(text)},
        ("coloha.yaml:6:60: mqtt.password_file", "chmod 600"),
        ("coloha.yaml:6:101: mqtt.key_file", "chmod 600"),
    )


def test_hooks(tmp_path: Path) -> None:
    text = (
        "hooks:\n  page:\n    on: [failover, unprotected, error]\n    program: bin/page\n"
        "    arguments: [--loud, '']\n    timeout: 5s\n  log: {on: [any], program: logger}\n"
    )
    hooks = load_from(tmp_path, {"coloha.yaml": host(text)}).host.hooks
    assert hooks["page"].program == str(tmp_path / "bin/page")
    assert hooks["page"].arguments == ("--loud", "")
    assert (hooks["log"].program, hooks["log"].timeout) == ("logger", 30)


def test_every_trigger_may_be_named(tmp_path: Path) -> None:
    words = ", ".join(str(word) for word in TRIGGERS)
    text = f"hooks: {{all: {{on: [{words}], program: logger}}}}\n"
    hooks = load_from(tmp_path, {"coloha.yaml": host(text)}).host.hooks
    assert hooks["all"].on == tuple(str(word) for word in TRIGGERS)


def test_hooks_that_are_none(tmp_path: Path) -> None:
    text = (
        "hooks:\n  page: {on: [failovr, nothing-like-it], program: page}\n"
        "  log: {on: [], program: ''}\n  A: {on: [any], program: logger, shell: true}\n"
    )
    refuse(
        tmp_path,
        {"coloha.yaml": host(text)},
        ("coloha.yaml:7:15: hooks.page.on[0]", "unknown event 'failovr': did you mean 'failover'"),
        ("coloha.yaml:7:24: hooks.page.on[1]", "docs/mqtt.md lists the kinds"),
        ("coloha.yaml:8:13: hooks.log.on", "must have at least 1 entry"),
        ("coloha.yaml:8:26: hooks.log.program", "is empty: write a program"),
        ("coloha.yaml:9:3: hooks.A", "is not a name"),
        ("coloha.yaml:9:35: hooks.A.shell", "unknown key"),
    )
