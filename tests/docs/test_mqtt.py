"""docs/mqtt.md: payloads, commands, tables."""

import asyncio
import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from coloha.adapters.mqtt import connect
from coloha.core.kinds import KINDS, EventClass
from coloha.runtime.hooks import LONGEST_TEXT, SIDE_BY_SIDE, WAITING, environment
from coloha.runtime.mqtt import FIRST_WAIT_S, LONGEST_WAIT_S, STATE, message
from lab.assets import load_assets
from lab.broker import Broker, Certificates
from lab.namespace import CHECKOUT
from tests.adapters.authority import Authority
from tests.adapters.mqtt_support import PASSWORD, USER, broker, password_file, section
from tests.config.support import HOST, load_from
from tests.docs.pages import DOCS, blocks, code, rows
from tests.docs.pages import section as part
from tests.runtime.daemon_support import COLOHA, Daemon
from tests.runtime.tellers_support import occurrence, until
from tests.runtime.test_metrics import everything

PAGE = DOCS / "mqtt.md"


def block(language: str, number: int = 0) -> str:
    return [each.text for each in blocks(PAGE) if each.language == language][number]


def table(heading: str) -> list[list[str]]:
    return list(rows(part(PAGE, heading)))


def test_every_kind_is_in_its_class() -> None:
    said = {code(row[0]): re.findall(r"`([^`]+)`", row[2]) for row in table("Events")}
    assert said == {
        about.value: [kind for kind, of in KINDS.items() if of is about] for about in EventClass
    }


def test_the_settings_load(tmp_path: Path) -> None:
    password_file(tmp_path).rename(tmp_path / "mqtt-password")
    text = HOST + block("yaml") + block("yaml", 1)
    host = load_from(tmp_path, {"coloha.yaml": text}).host
    assert host.mqtt is not None
    assert host.mqtt.port == 8883
    assert set(host.hooks) == {"page", "log"}


def test_payloads_have_these_fields() -> None:
    state, event = json.loads(block("json")), json.loads(block("json", 1))
    assert tuple(state) == ("at", "node", *STATE)
    assert tuple(event) == tuple(json.loads(message(occurrence(1))))
    assert event["id"] == json.loads(message(occurrence(118, node="beta", at=event["at"])))["id"]


def test_the_environment_has_these_variables() -> None:
    names = {code(row[0]) for row in table("Hooks")}
    assert names == {name for name in environment(occurrence(1)) if name.startswith("COLOHA_")} - {
        "COLOHA_CACHE",
        "COLOHA_KVM",
        "COLOHA_SEED",
    }


def test_the_metrics_are_there() -> None:
    served = everything()
    named = [code(row[0]) for row in table("When the broker does not answer") if len(row) == 2]
    assert len(named) == 4
    for name in named:
        assert f"\n{name} " in served


def test_the_numbers_are_the_codes() -> None:
    text = PAGE.read_text()
    assert (FIRST_WAIT_S, LONGEST_WAIT_S) == (0.5, 30)
    assert f"at most {LONGEST_TEXT} characters" in text
    assert SIDE_BY_SIDE == 4
    assert f"Four hooks run at once; {WAITING} events wait for each" in text


def publish(there: Broker, *topics: str, **settings: object) -> None:
    async def main() -> None:
        async with connect(section(there.url, **settings), "coloha-beta") as connection:
            for topic in topics:
                await connection.publish(topic, "online", retain=True)

    asyncio.run(main())


def test_the_command_to_look_on(tmp_path: Path) -> None:
    (line,) = [each.text for each in blocks(PAGE) if each.text.startswith("mosquitto_sub")]
    ours = Authority(tmp_path, "ours")
    tls = Certificates(ours.file, *ours.sign("server"))
    users = {USER: PASSWORD, "watcher": PASSWORD}
    with broker(tmp_path, users=users, tls=tls) as there:
        settings = {"username": USER, "password_file": password_file(tmp_path)}
        publish(there, "coloha/beta/availability", ca_file=ours.file, **settings)
        here = {
            "mosquitto_sub": shlex.quote(str(load_assets().mosquitto_sub)),
            "broker.example.org": there.ip,
            "8883": str(there.port),
            "--capath /etc/ssl/certs": f"--cafile {ours.file}",
        }
        for old, new in here.items():
            assert line.count(old) == 1
            line = line.replace(old, new)
        heard = subprocess.run(
            ["sh", "-c", f"{line.strip()} -W 20 -C 1"],
            env={"PASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert heard.stdout == "coloha/beta/availability online\n"


def test_what_the_broker_must_allow(tmp_path: Path) -> None:
    access = next(each.text for each in blocks(PAGE) if each.text.startswith("user coloha"))
    users = {"watcher": PASSWORD, USER: PASSWORD}
    with broker(tmp_path, users=users, access=f"{access}user watcher\ntopic read #\n") as there:
        listener = there.listen()
        settings = {"username": USER, "password_file": password_file(tmp_path)}
        publish(there, "other/topic", "coloha/beta/availability", **settings)
        until(lambda: listener.messages, "what is allowed")
        assert [each.topic for each in listener.messages] == ["coloha/beta/availability"]


def test_the_program_does_what_it_says(tmp_path: Path) -> None:
    """With a curl that writes down what it is to send: there is no such service."""
    page, curl = tmp_path / "page", tmp_path / "curl"
    page.write_text(block("sh"))
    curl.write_text(f'#!/bin/sh\nfor last; do :; done; echo "$last"; cat > {tmp_path}/sent\n')
    for program in (page, curl):
        program.chmod(stat.S_IRWXU)
    event = occurrence(1, "promoted", text="the VM runs on this node now")
    done = subprocess.run(
        [page],
        env={**environment(event), "PATH": f"{tmp_path}:/usr/bin:/bin"},
        input=message(event),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "https://alerts.example.org/coloha\n"
    assert (tmp_path / "sent").read_text() == message(event)


@pytest.mark.parametrize("daemons", ["uvloop"], indirect=True)
def test_a_hook_is_tried_by_hand(alpha: Daemon, tmp_path: Path) -> None:
    (line,) = [each.text for each in blocks(DOCS / "runbook.md") if "tail -n 1 |" in each.text]
    alpha.start()
    coloha, page = tmp_path / "coloha", tmp_path / "page"
    words = " ".join(map(shlex.quote, COLOHA))
    coloha.write_text(f'#!/bin/sh\nexec {words} "$1" --config {alpha.host_file} "$2"\n')
    page.write_text("#!/bin/sh\necho $COLOHA_KIND $COLOHA_PAIR; cat\n")
    for program in (coloha, page):
        program.chmod(stat.S_IRWXU)
    assert line.count("/usr/local/bin/page") == 1
    done = subprocess.run(
        ["sh", "-c", line.replace("/usr/local/bin/page", str(page))],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, event = done.stdout.splitlines()
    assert first == "test web"
    assert json.loads(event)["node"] == "alpha"
