"""A support bundle has what helps, and no secret, whatever holds one."""

import tarfile
from pathlib import Path

import pytest

from coloha.cli.main import main
from coloha.cli.support_bundle import REMOVED, without
from tests.cli.support import configure
from tests.config.support import PAIR, edit

SECRETS = {
    "key": "0123456789abcdef" * 4,
    "ipmi-password": "Tr0ub4dor&3",
    "broker-password": "correct horse",
    "etcd-password": "battery-staple",
}
HOST = """
fencing:
  beta:
    agent: sh
    parameters: {ip: 10.8.0.2, username: coloha, snmp_community: hush-hush}
    password_file: ipmi-password
mqtt:
  broker: mqtts://broker.example.org
  user: alpha
  password_file: 'broker-password'
"""


def bundled(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as bundle:
        found = {}
        for entry in bundle.getmembers():
            stream = bundle.extractfile(entry)
            assert stream is not None
            found[entry.name.partition("/")[2]] = stream.read()
        return found


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    host_file = configure(tmp_path, PAIR)
    host_file.write_text(host_file.read_text() + HOST)
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret + "\n")
        (tmp_path / name).chmod(0o600)
    run = tmp_path / "run" / "web" / "p-1"
    run.mkdir(parents=True)
    (run / "stderr.log").write_text(f"qemu: password={SECRETS['etcd-password']} is wrong\n")
    (run / "console.log").write_text("login: root\n")
    flight = tmp_path / "state" / "flight" / "web"
    flight.mkdir(parents=True)
    (flight / "1.flight").write_text(f"a record that holds {SECRETS['key']}\n")
    return host_file


def test_what_is_in_it_and_what_is_not(
    host_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bundle.tar.gz"
    assert main(["support-bundle", "--config", str(host_file), str(target)]) == 0
    assert "look at it before" in capsys.readouterr().out
    assert target.stat().st_mode & 0o777 == 0o600
    parts = bundled(target)
    assert {"config/coloha.yaml", "config/web.yaml", "qemu/web/p-1.log", "host/check"} <= set(parts)
    assert {"flight/web/1.flight", "host/addresses", "README"} <= set(parts)
    assert b"no daemon answers" in parts["README"]
    everything = b"\0".join(parts.values())
    for secret in (*SECRETS.values(), "hush-hush"):
        assert secret.encode() not in everything, secret
    assert b"broker.example.org" in parts["config/coloha.yaml"]
    assert b"login: root" not in everything


def test_a_broken_configuration_has_secrets_too(host_file: Path, tmp_path: Path) -> None:
    host_file.write_text(edit(host_file.read_text(), "node: alpha", "node: [") + "}")
    target = tmp_path / "bundle.tar.gz"
    assert main(["support-bundle", "--config", str(host_file), str(target)]) == 0
    everything = b"\0".join(bundled(target).values())
    for secret in (SECRETS["key"], SECRETS["ipmi-password"], "hush-hush"):
        assert secret.encode() not in everything


def test_no_part_of_a_secret_is_left_where_a_long_log_is_cut(
    host_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloha.cli.support_bundle.LONGEST_BYTES", 40)
    secret = SECRETS["key"]
    (tmp_path / "run/web/p-1/stderr.log").write_text(f"before {secret} {'a' * 20}")
    target = tmp_path / "bundle.tar.gz"
    assert main(["support-bundle", "--config", str(host_file), str(target)]) == 0
    log = bundled(target)["qemu/web/p-1.log"].decode()
    assert log.endswith("a" * 20)
    assert secret[-8:] not in log


def test_a_file_that_is_there_stays(
    host_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bundle.tar.gz"
    target.write_text("mine")
    assert main(["support-bundle", "--config", str(host_file), str(target)]) == 1
    assert "cannot be written: File exists" in capsys.readouterr().err
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    ["password: x y", "passwd=x", '"api_token": "x"', "client-secret : x", "PASSWORD='x'"],
)
def test_what_is_called_a_secret_is_one(line: str) -> None:
    assert REMOVED in without([], line.encode())
    assert b"x" not in without([], line.encode()).replace(b"[removed]", b"")


@pytest.mark.parametrize("line", ["tokens", "password_fil", "a secretary came", "key_file: key"])
def test_what_is_not_stays(line: str) -> None:
    assert without([], line.encode()) == line.encode()
