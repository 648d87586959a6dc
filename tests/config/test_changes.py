"""What both nodes must agree on, and what changed between two versions of a pair file."""

from pathlib import Path

import pytest

from coloha.config import PairConfig, changed_settings, live_settings

from .support import HOST, PAIR, edit, load_from, load_pair, write

FULL = (
    edit(
        PAIR,
        "vm:\n  memory: 128MiB\n",
        "vm:\n  memory: 128MiB\n  qemu: qemu\n  machine: pc\n  accelerator: kvm\n  cpu: host\n"
        "  cpus: 1\n  kernel: kernel\n  initrd: initrd\n  append: quiet\n"
        "  qemu_img: qemu-img\n  disks: [{image: disk, format: raw, access: replicated}]\n"
        "  extra_arguments: [-rtc, base=utc]\n",
    )
    + "  timeout: 1s\nfirst_primary: alpha\nfencing: none\n"
    "checkpoint: {mode: compare, period: 50ms, stall_timeout: 3s, compare_timeout: 100ms,"
    " expired_scan_cycle: 50ms, max_queue_size: 1000}\n"
    "heartbeat: {interval: 100ms, misses: 5, restart_hold: 5s}\n"
    "recovery: {sync_timeout: 10m, sync_rate: 10MiB, retry_max: 60s, cold_start_after: 30s,"
    " flap_limit: 5, flap_window: 12m, orphan_after: 9m}\n"
)

SHARED = [
    ("52:54:00:12:34:56", "52:54:00:12:34:57", "vm.nics[0].mac"),
    ("bridge: br0", "bridge: br0\n      model: e1000", "vm.nics[0].model"),
    ("memory: 128MiB", "memory: 129MiB", "vm.memory"),
    ("machine: pc", "machine: q35", "vm.machine"),
    ("accelerator: kvm", "accelerator: tcg", "vm.accelerator"),
    ("  cpu: host\n", "", "vm.cpu"),
    ("cpus: 1", "cpus: 2", "vm.cpus"),
    ("append: quiet", "append: loud", "vm.append"),
    ("[-rtc, base=utc]", "[-rtc, base=localtime]", "vm.extra_arguments[1]"),
    ("[-rtc, base=utc]", "[]", "vm.extra_arguments"),
    ("format: raw", "format: qcow2", "vm.disks[0].format"),
    ("access: replicated", "access: read-only", "vm.disks[0].access"),
    ("  disks: [{image: disk, format: raw, access: replicated}]\n", "", "vm.disks"),
    ("  initrd: initrd\n", "", "vm.initrd"),
    ("10.9.0.2:7770", "10.9.0.2:7772", "nodes.beta.channel"),
    ("10.9.0.2:7771", "10.9.0.2:7772", "nodes.beta.heartbeat"),
    ("  beta:", "  gamma:", "nodes"),
    ("first_primary: alpha", "first_primary: beta", "first_primary"),
    ("stall_timeout: 3s", "stall_timeout: 4s", "checkpoint.stall_timeout"),
    ("mode: compare", "mode: buffer", "checkpoint.mode"),
    ("compare_timeout: 100ms", "compare_timeout: 101ms", "checkpoint.compare_timeout"),
    ("scan_cycle: 50ms", "scan_cycle: 51ms", "checkpoint.expired_scan_cycle"),
    ("max_queue_size: 1000", "max_queue_size: 1001", "checkpoint.max_queue_size"),
    ("interval: 100ms", "interval: 101ms", "heartbeat.interval"),
    ("misses: 5", "misses: 6", "heartbeat.misses"),
    ("restart_hold: 5s", "restart_hold: 6s", "heartbeat.restart_hold"),
    ("fencing: none", "fencing: optional", "fencing"),
]

LOCAL = [
    ("period: 50ms", "period: 51ms", "checkpoint.period"),
    ("qemu: qemu", "qemu: /opt/qemu", "vm.qemu"),
    ("kernel: kernel", "kernel: other", "vm.kernel"),
    ("initrd: initrd", "initrd: other", "vm.initrd"),
    ("image: disk", "image: other", "vm.disks[0].image"),
    ("qemu_img: qemu-img", "qemu_img: /opt/qemu-img", "vm.qemu_img"),
    ("sync_rate: 10MiB", "sync_rate: 11MiB", "recovery.sync_rate"),
    ("bridge: br0", "bridge: br1", "vm.nics[0].bridge"),
    ("directory: /srv/witness", "directory: /mnt/witness", "witness.directory"),
    ("  timeout: 1s", "  timeout: 2s", "witness.timeout"),
    ("sync_timeout: 10m", "sync_timeout: 11m", "recovery.sync_timeout"),
    ("retry_max: 60s", "retry_max: 61s", "recovery.retry_max"),
    ("cold_start_after: 30s", "cold_start_after: 31s", "recovery.cold_start_after"),
    ("flap_limit: 5", "flap_limit: 6", "recovery.flap_limit"),
    ("flap_window: 12m", "flap_window: 13m", "recovery.flap_window"),
    ("orphan_after: 9m", "orphan_after: 8m", "recovery.orphan_after"),
]


def full_pair(folder: Path, text: str = FULL) -> PairConfig:
    agent = "fencing: {beta: {agent: fence_x}}\n" if "fencing: none" not in text else ""
    files = dict.fromkeys((f"pairs.d/{name}" for name in ("kernel", "initrd", "disk", "other")), "")
    files |= {"coloha.yaml": HOST + agent, "pairs.d/web.yaml": text}
    return load_from(folder, files).pairs[0]


@pytest.mark.parametrize(("old", "new", "path"), SHARED)
def test_fingerprint_has_shared_settings(tmp_path: Path, old: str, new: str, path: str) -> None:
    before = full_pair(tmp_path)
    after = full_pair(tmp_path, edit(FULL, old, new))
    assert changed_settings(before, after) == [path]
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize(("old", "new", "path"), LOCAL)
def test_fingerprint_lacks_local_settings(tmp_path: Path, old: str, new: str, path: str) -> None:
    before = full_pair(tmp_path)
    after = full_pair(tmp_path, edit(FULL, old, new))
    assert changed_settings(before, after) == [path]
    assert before.fingerprint() == after.fingerprint()


def test_fingerprint_has_which_output_is_held(tmp_path: Path) -> None:
    held = load_pair(tmp_path, PAIR)
    open_ = load_pair(tmp_path, edit(PAIR, "bridge: br0", "bridge: br0\n      output: open"))
    assert changed_settings(held, open_) == ["vm.nics[0].output"]
    assert held.fingerprint() != open_.fingerprint()


def test_every_setting_is_either_shared_or_local() -> None:
    def leaves(value: object, path: str) -> set[str]:
        if isinstance(value, dict):
            return {leaf for key, sub in value.items() for leaf in leaves(sub, f"{path}.{key}")}
        return {path}

    pair = PairConfig(
        pair="web",
        nodes={name: {"channel": f"{ip}:1", "heartbeat": f"{ip}:2"} for name, ip in NODES},
        vm={"memory": "128MiB"},
        witness={"type": "file", "directory": "/srv"},
    )
    settings = {leaf.removeprefix(".") for leaf in leaves(pair.model_dump(), "")}
    settings -= {"nodes.alpha.channel", "nodes.alpha.heartbeat"}  # the same models as beta's
    # A list is one leaf here, a type has one value only, a name is the file's.
    settings -= {"vm.nics", "witness.type", "pair", "vm.firmware"}
    settings -= {"vm.attach"}  # excludes disks: see below
    covered = {path for _, _, path in SHARED + LOCAL}
    assert settings <= covered, settings - covered


NODES = (("alpha", "10.9.0.1"), ("beta", "10.9.0.2"))


def test_fingerprint_has_how_the_guest_boots(tmp_path: Path) -> None:
    write(tmp_path, {"pairs.d/image": ""})
    default = load_pair(tmp_path, PAIR)
    kernel = load_pair(tmp_path, edit(PAIR, "vm:\n", "vm:\n  kernel: image\n"))
    firmware = load_pair(tmp_path, edit(PAIR, "vm:\n", "vm:\n  firmware: image\n"))
    assert len({pair.fingerprint() for pair in (default, kernel, firmware)}) == 3


def test_fingerprint_has_the_name(tmp_path: Path) -> None:
    pair = load_pair(tmp_path, PAIR)
    renamed = pair.model_copy(update={"pair": "app"})
    assert pair.fingerprint() != renamed.fingerprint()
    assert changed_settings(pair, renamed) == ["pair"]


def test_fingerprint_ignores_how_a_file_is_written(tmp_path: Path) -> None:
    other = edit(PAIR, "memory: 128MiB", "memory: 0.125GiB")
    other = edit(other, "52:54:00:12:34:56", "'52:54:00:12:34:56'")
    other = "checkpoint: {period: 0.05s}\nfirst_primary: alpha\n" + other + "# the end\n"
    pair, same = load_pair(tmp_path, PAIR), load_pair(tmp_path, other)
    assert pair.fingerprint() == same.fingerprint()
    assert changed_settings(pair, same) == []


def test_fingerprint_ignores_the_order_of_nodes(tmp_path: Path) -> None:
    alpha, beta, vm = (PAIR.index(part) for part in ("  alpha:", "  beta:", "vm:"))
    swapped = PAIR[:alpha] + PAIR[beta:vm] + PAIR[alpha:beta] + PAIR[vm:]
    pair = load_pair(tmp_path, PAIR)
    same = load_pair(tmp_path, swapped + "first_primary: alpha\n")
    assert list(pair.nodes) != list(same.nodes)
    assert pair.fingerprint() == same.fingerprint()


def test_fingerprint_ignores_bridge_or_tap(tmp_path: Path) -> None:
    pair = load_pair(tmp_path, PAIR)
    tap = load_pair(tmp_path, edit(PAIR, "bridge: br0", "tap: tap0"))
    assert changed_settings(pair, tap) == ["vm.nics[0].bridge", "vm.nics[0].tap"]
    assert pair.fingerprint() == tap.fingerprint()


def test_fingerprint_is_stable() -> None:
    # Nodes of two releases compare fingerprints: change this only with a note for operators.
    pair = PairConfig(
        pair="web",
        nodes={name: {"channel": f"{ip}:1", "heartbeat": f"{ip}:2"} for name, ip in NODES},
        vm={"memory": "128MiB", "nics": [{"mac": "52:54:00:12:34:56", "bridge": "br0"}]},
        witness={"type": "file", "directory": "/srv"},
    )
    expected = "53834434994fbe5d354dddc72e1fa35117250edcc8a01d612684b4da50aa35d1"
    assert pair.fingerprint() == expected


def test_several_changes_are_sorted(tmp_path: Path) -> None:
    before = full_pair(tmp_path)
    text = edit(edit(FULL, "misses: 5", "misses: 6"), "period: 50ms", "period: 60ms")
    after = full_pair(
        tmp_path, edit(text, "    - mac", "    - {mac: 52:54:00:00:00:01, tap: t}\n    - mac")
    )
    assert changed_settings(before, after) == ["checkpoint.period", "heartbeat.misses", "vm.nics"]


def test_only_the_period_is_live() -> None:
    assert live_settings() == {"checkpoint.period"}


def test_fingerprint_lacks_who_starts_the_vm(tmp_path: Path) -> None:
    attach = "vm:\n  attach: {node: beta, monitor: /a, second_monitor: /b}\n"
    before, after = load_pair(tmp_path, PAIR), load_pair(tmp_path, edit(PAIR, "vm:\n", attach))
    assert changed_settings(before, after) == ["vm.attach"]
    assert before.fingerprint() == after.fingerprint()
