"""`coloha check`: would the pairs work here?"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from coloha.adapters.witness import encode_record
from coloha.cli.main import main
from coloha.core.record import first_record
from coloha.qemu import probe as probe_module
from coloha.runtime.keeper import available_memory_bytes
from lab.assets import Assets, load_assets
from lab.etcd import EtcdCluster
from lab.namespace import CHECKOUT, Namespace
from tests.adapters.agent import HANGS, Agent, answer
from tests.adapters.etcd_support import etcd, put, value_of
from tests.adapters.mqtt_support import PASSWORD, USER, broker, password_file
from tests.adapters.support import PATIENCE_S
from tests.cli.support import configure
from tests.config.support import PAIR

__all__ = ["etcd"]

Captured = pytest.CaptureFixture[str]

FAKE = """#!{python}
import json, sys
if {complaint!r}:
    sys.exit({complaint!r})
def say(what):
    print(json.dumps(what), flush=True)
say({{"QMP": {{"version": {{}}, "capabilities": []}}}})
answers = {{
    "query-version": {{"qemu": dict(zip(("major", "minor", "micro"), {version!r}))}},
    "query-migrate-capabilities": [{{"capability": name}} for name in {capabilities!r}],
}}
decoder, text = json.JSONDecoder(), sys.stdin.read()
while text:
    command, end = decoder.raw_decode(text)
    text = text[end:].lstrip()
    say({{"return": answers.get(command["execute"], {{}}), "id": command["id"]}})
"""


def fake_qemu(
    folder: Path,
    version: tuple[int, int, int] = (11, 0, 0),
    capabilities: tuple[str, ...] = ("xbzrle", "x-colo"),
    complaint: str = "",
) -> Path:
    """A program that answers as a QEMU of that make would."""
    path = folder / "fake-qemu"
    path.write_text(
        FAKE.format(
            python=sys.executable,
            version=version,
            capabilities=capabilities,
            complaint=complaint,
        )
    )
    path.chmod(0o755)
    return path


def write(folder: Path, vm: dict[str, Any], **changes: Any) -> Path:
    """A configuration with this VM; the witness's folder is there."""
    (folder / "witness").mkdir(exist_ok=True)
    pair = yaml.safe_load(PAIR)
    pair["witness"]["directory"] = str(folder / "witness")
    pair["vm"] = {"memory": "16MiB", **vm}
    return configure(folder, yaml.safe_dump({**pair, **changes}, sort_keys=False))


def findings(capsys: Captured, host_file: Path, code: int) -> list[str]:
    """What `check` prints, having exited so."""
    assert main(["check", "--config", str(host_file)]) == code
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def problems(capsys: Captured, host_file: Path) -> list[str]:
    """The problems found, of which there is at least one."""
    found = findings(capsys, host_file, 1)
    return [line.removeprefix("PROBLEM web: ") for line in found if line.startswith("PROBLEM")]


@pytest.fixture(scope="module")
def assets() -> Assets:
    return load_assets()


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("accelerator", ["tcg", "qtest"])
def test_the_labs_qemu_will_do(
    tmp_path: Path, capsys: Captured, assets: Assets, machine: str, accelerator: str
) -> None:
    vm = {"qemu": str(assets.qemu), "machine": machine, "accelerator": accelerator}
    found = findings(capsys, write(tmp_path, vm), 0)
    assert all(line.startswith("ok      web: ") for line in found)
    assert any("COLO built in, return-path on" in line for line in found)
    assert found[0] == "ok      web: configuration"
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "witness").iterdir()) == []


@pytest.mark.qemu
def test_devices_that_cost_are_named(tmp_path: Path, capsys: Captured, assets: Assets) -> None:
    """It is advice: a guest may need them."""
    words = ["-device", "virtio-rng-pci", "-device", "ide-cd,drive=x", "-vga", "std"]
    vm = {"qemu": str(assets.qemu), "accelerator": "qtest", "extra_arguments": words}
    found = findings(capsys, write(tmp_path, vm), 0)
    advice = [line for line in found if "each pause" in line]
    assert [line.split(":")[1].strip() for line in advice] == ["VGA", "ide-cd"]
    assert "3.8 ms longer" in advice[0]


@pytest.mark.qemu
def test_an_accelerator_that_is_not_there(tmp_path: Path, capsys: Captured, assets: Assets) -> None:
    """QEMU's own words say what is missing; here /dev/kvm is, in a namespace of its own."""
    host_file = write(tmp_path, {"qemu": str(assets.qemu), "accelerator": "kvm"})
    script = 'mount -t tmpfs none /dev && exec "$@"'
    check = [sys.executable, "-m", "coloha", "check", "--config", str(host_file)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *check],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (problem,) = (line for line in done.stdout.splitlines() if line.startswith("PROBLEM"))
    assert "with accelerator kvm: " in problem
    assert "KVM" in problem


@pytest.mark.parametrize(
    ("version", "vm", "words"),
    [
        ((7, 2, 0), {"machine": "q35"}, "QEMU 7.2.0 aborts the secondary of a q35 machine"),
        ((10, 2, 1), {"accelerator": "tcg"}, "QEMU 10.2.1 deadlocks at the first checkpoint"),
        ((7, 1, 9), {}, "QEMU 7.1.9 is too old for coloha: install QEMU 7.2 or newer"),
        ((8, 2, 4), {}, "QEMU 8.2.4 asserts in COLO's incoming coroutine"),
    ],
)
def test_a_version_that_breaks_colo_is_refused(
    tmp_path: Path,
    capsys: Captured,
    version: tuple[int, int, int],
    vm: dict[str, Any],
    words: str,
) -> None:
    qemu = str(fake_qemu(tmp_path, version))
    host_file = write(tmp_path, {"qemu": qemu, "accelerator": "qtest", **vm})
    (problem,) = problems(capsys, host_file)
    assert problem.startswith(words)


@pytest.mark.parametrize(
    ("version", "vm", "path"),
    [
        ((7, 2, 0), {}, "off"),
        ((10, 2, 1), {}, "off"),
        ((11, 0, 0), {"machine": "q35", "accelerator": "tcg"}, "on"),
    ],
)
def test_a_version_that_works_is_accepted(
    tmp_path: Path, capsys: Captured, version: tuple[int, int, int], vm: dict[str, Any], path: str
) -> None:
    qemu = str(fake_qemu(tmp_path, version))
    found = findings(capsys, write(tmp_path, {"qemu": qemu, "accelerator": "qtest", **vm}), 0)
    assert f"COLO built in, return-path {path}" in found[1]


def test_a_qemu_without_colo_is_refused(tmp_path: Path, capsys: Captured) -> None:
    qemu = str(fake_qemu(tmp_path, capabilities=("xbzrle",)))
    (problem,) = problems(capsys, write(tmp_path, {"qemu": qemu}))
    assert "was built without COLO" in problem


def test_a_missing_program_is_named(tmp_path: Path, capsys: Captured) -> None:
    (problem,) = problems(capsys, write(tmp_path, {"qemu": "/nowhere/qemu"}))
    assert problem.startswith("/nowhere/qemu: no such program: install QEMU")


def test_a_program_that_fails_is_quoted(tmp_path: Path, capsys: Captured) -> None:
    qemu = str(fake_qemu(tmp_path, complaint="libfoo.so.7: cannot open shared object file"))
    (problem,) = problems(capsys, write(tmp_path, {"qemu": qemu}))
    assert "libfoo.so.7: cannot open shared object file" in problem


def test_a_file_that_is_no_program_is_a_problem(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "qemu"
    path.write_bytes(b"\x7fELF" + bytes(100))
    path.chmod(0o755)
    (problem,) = problems(capsys, write(tmp_path, {"qemu": str(path)}))
    assert str(path) in problem


def test_a_program_that_hangs_is_given_up_on(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "PROBE_S", 0.5)
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    (problem,) = problems(capsys, write(tmp_path, {"qemu": str(path)}))
    assert "did not answer within 0.5 s" in problem


def test_missing_interfaces_and_witness_are_all_named(tmp_path: Path, capsys: Captured) -> None:
    nics = [
        {"mac": "52:54:00:00:00:01", "bridge": "nobridge"},
        {"mac": "52:54:00:00:00:02", "tap": "notap"},
        {"mac": "52:54:00:00:00:03", "bridge": "lo"},
    ]
    vm = {"qemu": str(fake_qemu(tmp_path)), "nics": nics}
    host_file = write(tmp_path, vm, witness={"type": "file", "directory": "/nowhere/witness"})
    *interfaces, witness = problems(capsys, host_file)
    assert interfaces == [
        "NIC 0 on bridge nobridge: bridge nobridge does not exist on this host, make it first",
        "NIC 1 on tap notap: tap notap does not exist on this host, make it first",
        "NIC 2 on bridge lo: bridge lo does not exist on this host, make it first",
    ]
    assert witness.startswith("witness")
    assert "/nowhere/witness" in witness
    assert "mount" in witness


def test_disks_are_looked_at(tmp_path: Path, capsys: Captured) -> None:
    qemu_img = load_assets().qemu_img
    (tmp_path / "raw").write_bytes(bytes(3 << 20))
    disks = [
        {"image": str(tmp_path / "raw"), "format": "raw"},
        {"image": str(tmp_path / "raw"), "format": "qcow2", "access": "read-only"},
    ]
    vm = {"qemu": str(fake_qemu(tmp_path)), "qemu_img": str(qemu_img), "disks": disks[:1]}
    assert any(
        "raw, 3 MiB, replicated" in line for line in findings(capsys, write(tmp_path, vm), 0)
    )
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    disks[1]["image"] = str(tmp_path / "other")
    (problem,) = problems(capsys, write(tmp_path, {**vm, "disks": disks}))
    assert problem.startswith("disk 1: ")
    assert "qcow2" in problem
    (problem,) = problems(capsys, write(tmp_path, {**vm, "qemu_img": "no-such-program"}))
    assert "install it (Debian: qemu-utils), or set vm.qemu_img" in problem


def test_a_host_file_of_the_other_node_is_a_problem(tmp_path: Path, capsys: Captured) -> None:
    """Copied without a change of `node`, it would start a second VM."""
    nodes = yaml.safe_load(PAIR)["nodes"]
    nodes["alpha"] = {"channel": "192.0.2.7:7770", "heartbeat": "192.0.2.7:7771"}
    vm = {"qemu": str(fake_qemu(tmp_path))}
    host_file = write(tmp_path, vm, nodes=nodes)
    text = host_file.read_text().replace("127.0.0.1:", "0.0.0.0:")
    host_file.write_text(text)
    (problem,) = problems(capsys, host_file)
    assert "alpha has the address 192.0.2.7, and this host has not" in problem
    assert "is `node` in the host file right?" in problem


def test_a_witness_that_cannot_be_written_is_a_problem(tmp_path: Path, capsys: Captured) -> None:
    vm = {"qemu": str(fake_qemu(tmp_path))}
    host_file = write(tmp_path, vm, witness={"type": "file", "directory": "/sys/kernel"})
    (problem,) = problems(capsys, host_file)
    assert "/sys/kernel/web.probe.lock" in problem


def test_a_witness_in_etcd_is_asked_at_every_member(
    tmp_path: Path, capsys: Captured, etcd: EtcdCluster
) -> None:
    vm = {"qemu": str(fake_qemu(tmp_path)), "accelerator": "qtest"}
    witness = {"type": "etcd", "endpoints": etcd.endpoints, "prefix": "/check/"}
    found = findings(capsys, write(tmp_path, vm, witness=witness), 0)
    assert f"ok      web: witness etcd at {etcd.endpoints[0]}, record: none yet" in found
    put(etcd.endpoints[0], "/check/web", encode_record(first_record("life", "alpha")))
    found = findings(capsys, write(tmp_path, vm, witness=witness), 0)
    assert found[-1].endswith("record: solo(1, alpha)")
    witness["endpoints"] = [*etcd.endpoints, "http://127.0.0.1:1"]
    (problem,) = problems(capsys, write(tmp_path, vm, witness=witness))
    assert problem == "witness: http://127.0.0.1:1: Connection refused: is etcd running there?"
    assert value_of(etcd.endpoints[0], "/check/web.probe") is None


def test_memory_that_is_not_there_is_a_problem(tmp_path: Path, capsys: Captured) -> None:
    (problem,) = problems(
        capsys, write(tmp_path, {"qemu": str(fake_qemu(tmp_path)), "memory": "8TiB"})
    )
    assert problem.startswith("a secondary needs 16777216 MiB (twice the guest's), ")
    assert problem.endswith(" MiB are available")
    available = int(problem.split()[-4])
    assert 0 < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert available_memory_bytes() > 0


def test_the_memory_of_all_pairs_together_is_told(tmp_path: Path, capsys: Captured) -> None:
    host_file = write(tmp_path, {"qemu": str(fake_qemu(tmp_path))})
    pair = yaml.safe_load((tmp_path / "pairs.d" / "web.yaml").read_text())
    (tmp_path / "pairs.d" / "db.yaml").write_text(json.dumps({**pair, "pair": "db"}))
    found = findings(capsys, host_file, 0)
    told = [line for line in found if line.endswith("; all pairs together need up to 64 MiB")]
    assert len(told) == 2


def test_without_pairs_there_is_nothing_to_check(tmp_path: Path, capsys: Captured) -> None:
    host_file = write(tmp_path, {})
    (tmp_path / "pairs.d" / "web.yaml").unlink()
    assert findings(capsys, host_file, 0) == [f"no pairs in {tmp_path / 'pairs.d'}"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Namespace]:
    namespace = Namespace("host", tmp_path)
    namespace.start()
    try:
        namespace.wait_ready()
        namespace.ip("link add br0 type bridge\ntuntap add dev mytap mode tap\n")
        yield namespace
    finally:
        namespace.kill()


@pytest.mark.qemu
def test_interfaces_that_are_there_are_fine(tmp_path: Path, host: Namespace) -> None:
    nics = [
        {"mac": "52:54:00:00:00:01", "bridge": "br0"},
        {"mac": "52:54:00:00:00:02", "tap": "mytap"},
    ]
    host_file = write(tmp_path, {"qemu": str(fake_qemu(tmp_path)), "nics": nics})
    argv = [sys.executable, "-m", "coloha", "check", "--config", str(host_file)]
    process = host.popen(
        argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert "ok      web: NIC 0 on bridge br0" in out
    assert "ok      web: NIC 1 on tap mytap" in out


@pytest.mark.parametrize(
    ("on_silence", "words"),
    [("hold", "both hold the output until they do, or an operator"), ("primary", "goes on alone")],
)
def test_no_witness_is_spelt_out(
    tmp_path: Path, capsys: Captured, on_silence: str, words: str
) -> None:
    qemu = str(fake_qemu(tmp_path))
    witness = {"type": "none", "on_silence": on_silence}
    vm = {"qemu": qemu, "accelerator": "qtest"}
    found = findings(capsys, write(tmp_path, vm, witness=witness), 0)
    assert words in found[-1]


def host_with(folder: Path, text: str) -> Path:
    host_file = write(folder, {"qemu": str(fake_qemu(folder))})
    host_file.write_text(host_file.read_text() + text)
    return host_file


def of_host(capsys: Captured, host_file: Path, code: int) -> list[str]:
    """What is said of the host itself."""
    found = findings(capsys, host_file, code)
    return [line for line in found if line[8:].startswith("alpha: ")]


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (answer(0, "all is well"), "ok      alpha: fencing of beta: {} reaches its device"),
        (answer(2), "ok      alpha: fencing of beta: {} reaches its device"),
        (answer(1, "no route"), "PROBLEM alpha: fencing of beta: {} cannot reach its device: exit"),
        (HANGS, "PROBLEM alpha: fencing of beta: {} cannot reach its device: no answer within 1 s"),
    ],
)
def test_fence_agents_are_asked_and_never_to_switch_off(
    tmp_path: Path, capsys: Captured, reply: Any, line: str
) -> None:
    agent = Agent(tmp_path)
    agent.answers(monitor=[reply])
    timeout = "1s" if reply is HANGS else "60s"
    text = f"fencing: {{beta: {{agent: {agent.path}, timeout: {timeout}}}}}\n"
    (found,) = of_host(capsys, host_with(tmp_path, text), int(line.startswith("PROBLEM")))
    assert found.startswith(line.format(agent.path))
    assert set(agent.actions) <= {"monitor"}


def test_a_fence_agent_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    text = "fencing: {beta: {agent: fence_none}}\n"
    (found,) = of_host(capsys, host_with(tmp_path, text), 1)
    assert found.startswith("PROBLEM alpha: fencing of beta: fence_none: fence_none cannot be run")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "optional, device: /dev/none",
            ["ok      alpha: watchdog (optional), not used: /dev/none cannot be used"],
        ),
        ("optional, device: /proc/version", ["ok      alpha: watchdog (optional), not used: "]),
        (
            "optional, device: /dev/null",
            [
                "ok      alpha: watchdog /dev/null is there; coloha arms it for 5 s",
                "ok      alpha: watchdog (optional) resets this host too late for web",
            ],
        ),
        ("off, device: /dev/none", []),
    ],
)
def test_the_watchdog(tmp_path: Path, capsys: Captured, text: str, lines: list[str]) -> None:
    found = of_host(capsys, host_with(tmp_path, f"watchdog: {{mode: {text}}}\n"), 0)
    assert len(found) == len(lines)
    for said, start in zip(found, lines, strict=True):
        assert said.startswith(start)


def test_a_required_watchdog_that_is_missing(tmp_path: Path, capsys: Captured) -> None:
    text = "watchdog: {mode: required, device: /dev/none}\n"
    host_file = host_with(tmp_path, text)
    pair = host_file.parent / "pairs.d/web.yaml"
    pair.write_text(pair.read_text() + "heartbeat: {interval: 1s, misses: 10}\n")
    (found,) = of_host(capsys, host_file, 1)
    assert found.startswith("PROBLEM alpha: watchdog: /dev/none cannot be used")


def test_the_broker(tmp_path: Path, capsys: Captured) -> None:
    with broker(tmp_path, users={USER: PASSWORD}) as there:
        file = password_file(tmp_path)
        text = f"mqtt: {{broker: '{there.url}', username: {USER}, password_file: {file}}}\n"
        host_file = host_with(tmp_path, text)
        (found,) = of_host(capsys, host_file, 0)
        assert found == f"ok      alpha: MQTT: {there.url} lets this node in as {USER}"
        assert "as coloha-alpha-check " in there.log
        password_file(tmp_path, "guessed")
        (found,) = of_host(capsys, host_file, 1)
        assert found.startswith(f"PROBLEM alpha: MQTT: {there.url}: it refuses the user: correct")
        there.stop()
        (found,) = of_host(capsys, host_file, 1)
        assert found.endswith("Connection refused: is a broker running there?")


def test_hooks(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "page").write_text("#!/bin/sh\ntouch ran\n")
    text = (
        "hooks:\n  a: {on: [any], program: 'true'}\n  b: {on: [failover, error], program: ./page}\n"
        "  c: {on: [any], program: ./none}\n  d: {on: [any], program: no-such-program}\n"
    )
    found = of_host(capsys, host_with(tmp_path, text), 1)
    assert found == [
        "ok      alpha: hook a: true, for any",
        f"PROBLEM alpha: hook b: {tmp_path}/page cannot be run: run chmod +x {tmp_path}/page",
        f"PROBLEM alpha: hook c: {tmp_path}/none is not there: install it, or correct the path",
        "PROBLEM alpha: hook d: no-such-program is not in PATH: install it, or write its path",
    ]
    (tmp_path / "page").chmod(0o755)
    assert f"ok      alpha: hook b: {tmp_path}/page, for failover, error" in of_host(
        capsys, host_with(tmp_path, text), 1
    )
    assert not (tmp_path / "ran").exists()
