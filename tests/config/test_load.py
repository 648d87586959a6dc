import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from coloha.config import Address, Checkpoint, Heartbeat, PairConfig, Recovery, load, read_keys

from .support import HOST, KEY, PAIR, edit, load_from, load_pair, pair_named, refuse, write


def test_defaults(tmp_path: Path) -> None:
    config = load_from(tmp_path)
    host = config.host
    assert host.node == "alpha"
    assert host.listen.channel == Address("10.9.0.1", 7770)
    assert host.key_file == tmp_path / "key"
    assert host.metrics is None
    assert host.control_socket == Path("/run/coloha/control.sock")
    assert host.state_directory == Path("/var/lib/coloha")
    assert host.pairs_directory == tmp_path / "pairs.d"
    assert host.event_loop == "uvloop"
    (pair,) = config.pairs
    assert pair.name == "web"
    assert config.peer_of(pair) == "beta"
    assert pair.first_primary == "alpha"
    assert pair.vm.memory == 128 * 2**20
    assert (pair.vm.qemu, pair.vm.machine, pair.vm.accelerator) == (
        "qemu-system-x86_64",
        "pc",
        "kvm",
    )
    assert pair.vm.nics[0].model == "virtio-net-pci"
    assert (pair.checkpoint.period, pair.checkpoint.stall_timeout) == (0.05, 3.0)
    assert (pair.heartbeat.interval, pair.heartbeat.misses) == (0.1, 5)
    assert pair.heartbeat.detection_s == pytest.approx(0.5)
    assert (pair.witness.type, pair.witness.timeout) == ("file", 1.0)
    assert pair.recovery == Recovery(sync_timeout="10m", retry_max="60s", cold_start_after="30s")


def test_pairs_are_sorted_and_other_files_ignored(tmp_path: Path) -> None:
    config = load_from(
        tmp_path,
        {
            "pairs.d/db.yaml": pair_named("db", "52:54:00:00:00:02"),
            "pairs.d/app-2.yaml": pair_named("app-2", "52:54:00:00:00:03"),
            "pairs.d/app.yaml": pair_named("app", "52:54:00:00:00:04"),
            "pairs.d/README.md": "not YAML: [",
            "pairs.d/web.yaml~": "not YAML: [",
            "pairs.d/.#web.yaml": "not YAML: [",
        },
    )
    assert [pair.name for pair in config.pairs] == ["app", "app-2", "db", "web"]


def test_no_pairs_is_fine(tmp_path: Path) -> None:
    host_file = write(tmp_path, {})
    (tmp_path / "pairs.d/web.yaml").unlink()
    assert load(host_file).pairs == ()


def test_paths_start_at_the_folder_of_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = "vm:\n  qemu: ./qemu\n  kernel: boot/vmlinuz\n  initrd: ../initrd\n"
    host = HOST + "runtime_directory: run\nstate_directory: ../state\npairs_directory: vms\n"
    write(
        tmp_path,
        {
            "coloha.yaml": host,
            "vms/web.yaml": edit(PAIR, "vm:\n", vm),
            "vms/boot/vmlinuz": "",
            "initrd": "",
        },
    )
    monkeypatch.chdir(tmp_path)
    config = load(Path("coloha.yaml"))
    assert config.host.runtime_directory == tmp_path / "run"
    assert config.host.state_directory == tmp_path / "../state"
    pair = config.pairs[0]
    assert pair.vm.qemu == str(tmp_path / "vms/qemu")
    assert pair.vm.kernel == tmp_path / "vms/boot/vmlinuz"
    assert pair.vm.initrd == tmp_path / "vms/../initrd"
    assert all(
        path.is_absolute()
        for path in (config.host.key_file, config.host.pairs_directory, pair.vm.kernel)
    )


def test_yaml_keeps_text(tmp_path: Path) -> None:
    text = edit(PAIR, "128MiB\n", "128MiB\n  machine: no\n  kernel: 1:23:45\n  append: on\n")
    write(tmp_path, {"pairs.d/1:23:45": ""})
    pair = load_pair(tmp_path, text)
    assert pair.vm.machine == "no"
    assert pair.vm.kernel == tmp_path / "pairs.d/1:23:45"
    assert pair.vm.append == "on"
    assert pair.vm.nics[0].mac == "52:54:00:12:34:56"


def test_mac_is_lower_case(tmp_path: Path) -> None:
    pair = load_pair(tmp_path, edit(PAIR, "52:54:00:12:34:56", "52:54:00:AB:CD:EF"))
    assert pair.vm.nics[0].mac == "52:54:00:ab:cd:ef"


def test_ipv6_and_wildcards(tmp_path: Path) -> None:
    host = HOST.replace("10.9.0.1:", "'[::]:").replace("7770\n", "7770'\n").replace("71\n", "71'\n")
    pair = PAIR
    for node in (1, 2):
        for port in (7770, 7771):
            pair = edit(pair, f"10.9.0.{node}:{port}", f"'[fd00::{node}]:{port}'")
    config = load_from(tmp_path, {"coloha.yaml": host, "pairs.d/web.yaml": pair})
    assert config.host.listen.channel.is_wildcard
    assert str(config.pairs[0].nodes["beta"].heartbeat) == "[fd00::2]:7771"


def test_peer_of_either_node(tmp_path: Path) -> None:
    host = HOST.replace("10.9.0.1", "0.0.0.0").replace("node: alpha", "node: beta")
    config = load_from(tmp_path, {"coloha.yaml": host})
    assert config.peer_of(config.pairs[0]) == "alpha"


def test_first_primary_is_the_first_listed_unless_named(tmp_path: Path) -> None:
    assert load_pair(tmp_path, PAIR + "first_primary: beta\n").first_primary == "beta"
    alpha, beta = PAIR.index("  alpha:"), PAIR.index("  beta:")
    vm = PAIR.index("vm:")
    swapped = PAIR[:alpha] + PAIR[beta:vm] + PAIR[alpha:beta] + PAIR[vm:]
    assert load_pair(tmp_path, swapped).first_primary == "beta"


def test_everything_is_read_only(tmp_path: Path) -> None:
    config = load_from(tmp_path)
    pair = config.pairs[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.host = config.host  # type: ignore[misc]
    for section, name in ((pair, "pair"), (pair.checkpoint, "period"), (config.host, "node")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, "x")


def test_key_is_stripped(tmp_path: Path) -> None:
    config = load_from(tmp_path, {"key": f"\n {KEY}\n"})
    assert read_keys(config.host.key_file) == (KEY.strip().encode(),)


def test_key_may_be_a_link_to_a_private_file(tmp_path: Path) -> None:
    host_file = write(tmp_path, {"real": KEY})
    (tmp_path / "real").chmod(0o400)
    (tmp_path / "key").unlink()
    (tmp_path / "key").symlink_to("real")
    assert load(host_file).host.key_file == tmp_path / "key"


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + PAIR.replace("\n", "\r\n").encode()
    assert load_from(tmp_path, {"pairs.d/web.yaml": text}) == load_from(tmp_path)


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    pair = load_pair(tmp_path, PAIR)
    assert PairConfig.model_validate_json(pair.model_dump_json()) == pair
    assert '"period":"50ms"' in pair.model_dump_json()


def test_ranges_include_their_ends() -> None:
    assert Checkpoint(period="5ms").period == 0.005
    assert Checkpoint(period="2s", stall_timeout="8s").stall_timeout == 8
    assert Heartbeat(interval="20ms", misses=11).misses == 11
    assert Heartbeat(interval="10s", misses=100).detection_s == 1000
    assert Heartbeat(interval="70ms", misses=3).misses == 3


@pytest.mark.parametrize("microseconds", [*range(20_000, 66_667, 991), 25_000, 50_000, 66_666])
def test_suggested_misses_are_accepted(microseconds: int) -> None:
    interval = f"{microseconds}us"
    with pytest.raises(ValidationError) as caught:
        Heartbeat(interval=interval, misses=3)
    message = caught.value.errors()[0]["msg"]
    suggested = int(message.split("misses: ")[1].split()[0])
    assert Heartbeat(interval=interval, misses=suggested).misses == suggested


def test_longest_runtime_directory(tmp_path: Path) -> None:
    """QEMU's sockets are the longest paths in it: /web/RUN/qmp.sock, RUN of 18 characters."""
    longest = "/" + "r" * (107 - len("/web/") - 18 - len("/qmp.sock") - 1)
    config = load_from(tmp_path, {"coloha.yaml": f"{HOST}runtime_directory: {longest}\n"})
    assert config.pairs
    refuse(
        tmp_path,
        {"coloha.yaml": f"{HOST}runtime_directory: {longest}r\n"},
        ("pairs.d/web.yaml:1:7: pair", "QEMU's sockets 1 bytes too long", "runtime_directory"),
    )
