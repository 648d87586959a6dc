"""Taps and bridges, in a network of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from coloha.config.nic import Nic
from coloha.qemu.command_line import tap_name
from lab.namespace import CHECKOUT, Namespace
from tests.adapters.support import LOOPS, PATIENCE_S

pytestmark = pytest.mark.qemu

PREPARE = """
import asyncio, json, sys
from coloha.adapters import network
from coloha.config.model import Vm
from coloha.errors import LaunchError
from tests.adapters.support import LOOPS
loop, nics, ip_s = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
network.IP_S = float(ip_s)
vm = Vm(memory="16MiB", nics=nics)
with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
    try:
        runner.run(network.make_taps(network.wanted("vm", vm)))
        print("done")
    except LaunchError as error:
        print("LaunchError:", error)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Namespace]:
    """A host with the bridge br0."""
    namespace = Namespace("host", tmp_path)
    namespace.start()
    try:
        namespace.wait_ready()
        namespace.ip("link set lo up\nlink add br0 type bridge\nlink set br0 up\n")
        yield namespace
    finally:
        namespace.kill()


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


def nic(number: int = 0, **ends: str) -> dict[str, Any]:
    return {"mac": f"52:54:00:00:00:{number:02x}", **ends}


def prepare(
    host: Namespace,
    loop: str,
    *nics: dict[str, Any],
    prefix: Sequence[str] = (),
    ip_s: float = PATIENCE_S,
    **environment: str,
) -> str:
    """What comes of preparing the NICs; anything on stderr is a failure."""
    python = [sys.executable, "-W", "error", "-c", PREPARE]
    process = host.popen(
        [*prefix, *python, loop, json.dumps(nics), str(ip_s)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    said, complained = process.communicate(timeout=PATIENCE_S)
    assert complained == ""
    assert process.returncode == 0
    return str(said).strip()


def link(host: Namespace, name: str) -> dict[str, Any]:
    """What `ip` knows of an interface; {} if there is none."""
    found = host.run(["ip", "-json", "-details", "link", "show", "dev", name])
    if found.returncode:
        return {}
    (shown,) = json.loads(found.stdout)
    assert isinstance(shown, dict)
    return shown


def tap(index: int = 0) -> str:
    return tap_name("vm", index, Nic(mac="52:54:00:00:00:00", bridge="br0"))


def is_ready(host: Namespace, index: int, bridge: str) -> bool:
    shown = link(host, tap(index))
    return (
        shown.get("linkinfo", {}).get("info_kind") == "tun"
        and shown["linkinfo"]["info_data"]["type"] == "tap"
        and shown["master"] == bridge
        and "UP" in shown["flags"]
    )


def test_a_tap_is_made_for_each_bridge(host: Namespace, loop: str) -> None:
    host.ip("link add br1 type bridge\n")
    assert prepare(host, loop, nic(bridge="br0"), nic(1, bridge="br1")) == "done"
    assert is_ready(host, 0, "br0")
    assert is_ready(host, 1, "br1")


def test_doing_it_again_changes_nothing(host: Namespace, loop: str) -> None:
    assert prepare(host, loop, nic(bridge="br0")) == "done"
    first = link(host, tap())
    for _ in range(2):
        assert prepare(host, loop, nic(bridge="br0")) == "done"
    assert link(host, tap()) == first


def test_a_tap_that_was_left_half_made_is_completed(host: Namespace, loop: str) -> None:
    host.ip(f"link add br1 type bridge\ntuntap add dev {tap()} mode tap\n")
    assert prepare(host, loop, nic(bridge="br0")) == "done"
    assert is_ready(host, 0, "br0")
    # The configuration moved to another bridge.
    assert prepare(host, loop, nic(bridge="br1")) == "done"
    assert is_ready(host, 0, "br1")


def test_a_tap_of_the_operator_is_left_as_it_is(host: Namespace, loop: str) -> None:
    host.ip("tuntap add dev mine mode tap\n")
    before = link(host, "mine")
    assert prepare(host, loop, nic(tap="mine")) == "done"
    assert link(host, "mine") == before


def test_a_missing_tap_is_named(host: Namespace, loop: str) -> None:
    said = prepare(host, loop, nic(bridge="br0"), nic(1, tap="mine"))
    assert said == "LaunchError: tap mine does not exist: make it, or set `bridge` instead"
    assert link(host, tap()) == {}  # nothing was begun


@pytest.mark.parametrize("there", ["nothing", "no bridge"])
def test_a_missing_bridge_is_named(host: Namespace, loop: str, there: str) -> None:
    if there == "no bridge":
        host.ip("tuntap add dev br7 mode tap\n")
    said = prepare(host, loop, nic(bridge="br0"), nic(1, bridge="br7"))
    assert said == "LaunchError: br7 is not a bridge of this host: make it before the pair"
    assert link(host, tap()) == {}


def test_a_vm_without_nics_needs_nothing(host: Namespace, loop: str) -> None:
    assert prepare(host, loop, PATH="/nowhere") == "done"


def test_without_iproute2_the_package_is_named(host: Namespace, loop: str) -> None:
    said = prepare(host, loop, nic(bridge="br0"), PATH="/nowhere")
    assert said == "LaunchError: ip (package iproute2): No such file or directory"


def test_without_the_right_to_make_taps_that_is_said(host: Namespace, loop: str) -> None:
    prefix = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]
    said = prepare(host, loop, nic(bridge="br0"), prefix=prefix)
    assert said.startswith("LaunchError: cannot set up taps (is CAP_NET_ADMIN missing?): ")
    assert "not permitted" in said
    assert link(host, tap()) == {}


def test_a_program_that_hangs_is_ended(host: Namespace, loop: str, tmp_path: Path) -> None:
    fake = tmp_path / "ip"
    fake.write_text("#!/bin/sh\nexec sleep 1000\n")
    fake.chmod(0o755)
    said = prepare(host, loop, nic(bridge="br0"), ip_s=0.5, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert said == "LaunchError: ip did not end within 0.5 s"
    assert not [process for process in host.pids() if "sleep" in process.argv]
