"""Broken configurations, each with everything that is wrong with it and where."""

import os
from pathlib import Path

import pytest

from coloha.config import load
from coloha.errors import ConfigError

from .support import (
    HOST,
    PAIR,
    check,
    edit,
    pair_named,
    problems_of,
    refuse,
    refuse_pair,
    write,
)

NIC = "    - mac: 52:54:00:12:34:56\n      bridge: br0\n"


def test_everything_in_three_files_at_once(tmp_path: Path) -> None:
    host = edit(edit(HOST, "node: alpha", "node: Alpha"), "10.9.0.1:7771", "alpha:7771")
    web = edit(edit(PAIR, "memory: 128MiB", "memory: 128MB"), "type: file", "type: fil")
    db = edit(pair_named("db", "52:54:00:00:00:02"), "  beta:\n", "  beta:\n    chanel: x\n")
    refuse(
        tmp_path,
        {"coloha.yaml": host, "pairs.d/web.yaml": web, "pairs.d/db.yaml": db},
        ("coloha.yaml:1:7: node", "'Alpha' is not a name", "a-z"),
        ("coloha.yaml:4:14: listen.heartbeat", "'alpha'", "numeric IP address", "DNS"),
        ("pairs.d/db.yaml:7:5: nodes.beta.chanel", "unknown key 'chanel'", "mean 'channel'"),
        ("pairs.d/web.yaml:10:11: vm.memory", "unknown unit 'MB'", "write 128MiB"),
        ("pairs.d/web.yaml:15:3: witness", "unknown type 'fil'", "did you mean 'file'"),
    )


def test_duplicate_keys(tmp_path: Path) -> None:
    text = edit(PAIR, "pair: web\n", "pair: web\npair: app\n") + "  type: file\n"
    refuse_pair(
        tmp_path,
        text,
        ("2:1: pair", "duplicate key", "line 1", "remove"),
        ("18:3: witness.type", "duplicate key", "line 16", "remove"),
    )


def test_unknown_keys(tmp_path: Path) -> None:
    text = PAIR + "checkpoint:\n  perod: 50ms\n  qqq: 1\nheartbeat: {intervall: 1s}\n"
    refuse_pair(
        tmp_path,
        text,
        ("18:3: checkpoint.perod", "unknown key 'perod', did you mean 'period'?"),
        (
            "19:3: checkpoint.qqq",
            "unknown key 'qqq': use mode, period, stall_timeout, "
            "compare_timeout, expired_scan_cycle, max_queue_size",
        ),
        ("20:13: heartbeat.intervall", "unknown key 'intervall', did you mean 'interval'?"),
    )


def test_units_and_ranges(tmp_path: Path) -> None:
    text = edit(PAIR, "memory: 128MiB", "memory: 134217728\n  cpus: 256")
    text += "checkpoint:\n  period: 50\n  stall_timeout: 5min\n"
    text += "heartbeat:\n  interval: 11s\n  misses: 2\n"
    text += "recovery: {sync_timeout: 0s, retry_max: 2h, cold_start_after: [30s]}\n"
    refuse_pair(
        tmp_path,
        text,
        ("10:11: vm.memory", "134217728 has no unit", "write 128MiB"),
        ("11:9: vm.cpus", "256 is out of range: write at most 255"),
        ("19:11: checkpoint.period", "50 has no unit", "write 50ms or 0.05s"),
        ("20:18: checkpoint.stall_timeout", "unknown unit 'min'", "write 5m"),
        ("22:13: heartbeat.interval", "11s is out of range: write 20ms to 10s"),
        ("23:11: heartbeat.misses", "2 is out of range: write at least 3"),
        ("24:26: recovery.sync_timeout", "0us is out of range: write 1s to 24h"),
        ("24:41: recovery.retry_max", "2h is out of range: write 1s to 1h"),
        ("24:63: recovery.cold_start_after", "must be a duration, not a list"),
    )


def test_memory(tmp_path: Path) -> None:
    for size, message in (
        ("15MiB", "15MiB is out of range: write 16MiB to 16TiB"),
        ("17TiB", "17TiB is out of range: write 16MiB to 16TiB"),
        ("17825793B", "must be a whole number of MiB: write 18MiB"),
    ):
        refuse_pair(tmp_path, edit(PAIR, "128MiB", size), ("10:11: vm.memory", message))


def test_missing_keys(tmp_path: Path) -> None:
    text = "pair: web\nvm: {}\nnodes:\n\n    alpha:\n      channel: 10.9.0.1:7770\n"
    refuse(
        tmp_path,
        {"coloha.yaml": "# nothing\nlisten:\n  channel: 10.9.0.1:1\n", "pairs.d/web.yaml": text},
        ("coloha.yaml:2:1: key_file", "missing: add this key"),
        ("coloha.yaml:2:1: node", "missing: add this key"),
        ("coloha.yaml:3:3: listen.heartbeat", "missing: add this key"),
        ("pairs.d/web.yaml:1:1: witness", "missing: add this key"),
        ("pairs.d/web.yaml:2:5: vm.memory", "missing: add this key"),
        ("pairs.d/web.yaml:6:7: nodes.alpha.heartbeat", "missing: add this key"),
    )


def test_wrong_types(tmp_path: Path) -> None:
    text = edit(PAIR, "pair: web", "pair: 12")
    text = edit(text, "memory: 128MiB", "memory: 128MiB\n  cpus: '2'\n  machine:\n  append: true")
    text = edit(text, NIC, "    mac: 52:54:00:12:34:56\n")
    text = edit(text, "10.9.0.2:7770", "{}")
    text += "checkpoint:\nheartbeat: fast\nrecovery: []\nfirst_primary: [alpha]\n"
    refuse_pair(
        tmp_path,
        text,
        ("1:7: pair", "must be text, not 12: put it in quotes"),
        ("7:14: nodes.beta.channel", "must be an address, not a section: write it like"),
        ("11:9: vm.cpus", "must be a number, not text: write 2 without quotes"),
        ("12:11: vm.machine", "is empty: write a value"),
        ("13:11: vm.append", "must be text, not true: put it in quotes"),
        ("15:5: vm.nics", "must be a list, not a section: write each item as '- item'"),
        ("19:12: checkpoint", "is empty: indent its keys"),
        ("20:12: heartbeat", "must be a section, not 'fast'"),
        ("21:11: recovery", "must be a section, not a list"),
        ("22:16: first_primary", "must be text, not a list"),
    )


def test_wrong_words(tmp_path: Path) -> None:
    text = edit(
        PAIR,
        "vm:\n",
        "vm:\n  accelerator: KVM\n  qemu: ''\n  cpu: a b\n  cpus: 1.5\n  machine: pc usb\n",
    )
    text = edit(text, "bridge: br0", "bridge: br0\n      model: virtio")
    text += "checkpoint: {mode: 1}\n"
    refuse_pair(
        tmp_path,
        text,
        ("10:16: vm.accelerator", "unknown value 'KVM', did you mean 'kvm'?"),
        ("11:9: vm.qemu", "is empty: write a program's name or its path"),
        ("12:8: vm.cpu", "'a b' is not a CPU model"),
        ("13:9: vm.cpus", "must be a whole number, not 1.5"),
        ("14:12: vm.machine", "'pc usb' is not a machine type"),
        ("19:14: vm.nics[0].model", "unknown value 'virtio', did you mean 'virtio-net-pci'?"),
        ("23:20: checkpoint.mode", "cannot be 1: use buffer, compare"),
    )


def test_nics(tmp_path: Path) -> None:
    nics = (
        "    - mac: 53:54:00:12:34:56\n"
        "      bridge: br0\n"
        "      tap: tap0\n"
        "    - {mac: 52-54-00-12-34-56, tap: tap-name-too-long}\n"
        "    - mac: 52:54:00:12:34\n"
        "    - {mac: 00:00:00:00:00:00, bridge: a/b, tap: tap1}\n"
        "    - mac: 52540012\n"
        "      bridge: ''\n"
    )
    refuse_pair(
        tmp_path,
        edit(PAIR, NIC, nics),
        ("12:12: vm.nics[0].mac", "multicast", "make its first octet even"),
        ("14:12: vm.nics[0].tap", "bridge and tap exclude each other"),
        ("15:13: vm.nics[1].mac", "'52-54-00-12-34-56' is not a MAC address", "52:54:00"),
        ("15:37: vm.nics[1].tap", "is not an interface name", "up to 15"),
        ("16:7: vm.nics[2]", "is not connected: add either bridge or tap"),
        ("16:12: vm.nics[2].mac", "is not a MAC address: write six octets"),
        ("17:13: vm.nics[3].mac", "is no NIC's address"),
        ("17:40: vm.nics[3].bridge", "'a/b' is not an interface name"),
        ("17:50: vm.nics[3].tap", "bridge and tap exclude each other"),
        ("18:12: vm.nics[4].mac", "must be text, not 52540012: put it in quotes"),
        ("19:15: vm.nics[4].bridge", "'' is not an interface name"),
    )


def test_too_many_nics(tmp_path: Path) -> None:
    nics = "".join(NIC.replace(":56", f":{number:02}") for number in range(9))
    refuse_pair(
        tmp_path, edit(PAIR, NIC, nics), ("12:5: vm.nics", "at most 8 entries: remove some")
    )


def test_boot(tmp_path: Path) -> None:
    both = "vm:\n  kernel: absent\n  firmware: ..\n  initrd: bad\0name\n"
    both = both.replace("bad\0name", '"bad\\0name"')
    refuse_pair(
        tmp_path,
        edit(PAIR, "vm:\n", both),
        ("10:11: vm.kernel", "cannot be used (No such file or directory): create it"),
        ("11:13: vm.firmware", "is not a regular file"),
        ("12:11: vm.initrd", "holds the character '\\x00'"),
    )
    write(tmp_path, {"pairs.d/image": ""})
    refuse_pair(
        tmp_path,
        edit(PAIR, "vm:\n", "vm:\n  kernel: image\n  firmware: image\n"),
        ("11:13: vm.firmware", "kernel and firmware exclude each other"),
    )
    refuse_pair(
        tmp_path,
        edit(PAIR, "vm:\n", "vm:\n  initrd: image\n  append: quiet\n"),
        ("10:11: vm.initrd", "means nothing without kernel"),
        ("11:11: vm.append", "means nothing without kernel"),
    )
    refuse_pair(
        tmp_path,
        edit(PAIR, "vm:\n", "vm:\n  machine: pc,accel=tcg\n  firmware: image\n"),
        ("10:12: vm.machine", "set vm.accelerator instead"),
    )


RESERVED = {
    **dict.fromkeys(("-qmp", "-qmp-pretty", "-mon", "-incoming"), "belongs to coloha"),
    **dict.fromkeys(("-daemonize", "-pidfile", "--qmp"), "belongs to coloha"),
    **dict.fromkeys(("-S", "-preconfig"), "starts and stops the guest itself"),
    **dict.fromkeys(("-action", "-no-shutdown", "-no-reboot"), "follows the guest's shutdown"),
    "-loadvm": "comes from the other node",
    "-name": "change 'pair' instead",
    **dict.fromkeys(("-m", "--m"), "set vm.memory instead"),
    **dict.fromkeys(("-machine", "-M", "--machine"), "set vm.machine instead"),
    **dict.fromkeys(("-accel", "-enable-kvm", "--enable-kvm"), "set vm.accelerator instead"),
    **dict.fromkeys(("-netdev", "-nic", "-net", "--nic"), "list the NIC in vm.nics"),
    "-smp": "set vm.cpus instead",
    "-cpu": "set vm.cpu instead",
    "-kernel": "set vm.kernel instead",
    "-initrd": "set vm.initrd instead",
    "-append": "set vm.append instead",
    "-bios": "set vm.firmware instead",
    **dict.fromkeys(("-nodefaults", "-no-user-config", "-readconfig"), "other configuration"),
    **dict.fromkeys(("-runas", "-run-with", "-chroot"), "where coloha is started"),
}


def test_reserved_options(tmp_path: Path) -> None:
    lines = [f"    - {option}\n" for option in RESERVED]
    text = edit(PAIR, "  nics:\n", "  extra_arguments:\n" + "".join(lines) + "  nics:\n")
    refuse_pair(
        tmp_path,
        text,
        *(
            (
                f"{12 + index}:7: vm.extra_arguments[{index}]",
                f"{option} is reserved for coloha: ",
                reason,
            )
            for index, (option, reason) in enumerate(RESERVED.items())
        ),
    )


def test_other_options_are_not_reserved(tmp_path: Path) -> None:
    words = ["-device", "virtio-rng-pci", "-s", "-memory", "--", "-", "m", "-rtc", "a=-m"]
    text = edit(PAIR, "  nics:\n", f"  extra_arguments: {words}\n  nics:\n")
    assert load(write(tmp_path, {"pairs.d/web.yaml": text})).pairs[0].vm.extra_arguments == tuple(
        words
    )


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["-drive", "file=/d.img,if=virtio"], "-drive file=/d.img"),
        (["-drive", "file=/d.img,if=virtio,readonly=off"], "-drive file=/d.img"),
        (["-blockdev", "driver=file,node-name=d,filename=/d.img"], "-blockdev driver=file"),
        (["-hda", "/d.img"], "-hda /d.img"),
        (["-device", "virtio-rng-pci", "--hdb", "/d.img"], "--hdb /d.img"),
        (["-drive"], "-drive can be written"),
    ],
)
def test_disks_the_guest_could_write_to(tmp_path: Path, words: list[str], refused: str) -> None:
    text = edit(PAIR, "  nics:\n", f"  extra_arguments: {words}\n  nics:\n")
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": text},
        ("pairs.d/web.yaml:11:20: vm.extra_arguments", refused),
    )


@pytest.mark.parametrize(
    "value", ["file=/cd.iso,media=cdrom,readonly=on", "driver=file,node-name=d,read-only=on"]
)
def test_read_only_disks(tmp_path: Path, value: str) -> None:
    option = "-drive" if "media" in value else "-blockdev"
    text = edit(PAIR, "  nics:\n", f'  extra_arguments: [{option}, "{value}"]\n  nics:\n')
    assert load(write(tmp_path, {"pairs.d/web.yaml": text})).pairs[0].vm.extra_arguments


def test_relations_between_settings(tmp_path: Path) -> None:
    text = PAIR + "checkpoint:\n  period: 1s\n  mode: buffer\nheartbeat:\n  interval: 40ms\n"
    refuse_pair(
        tmp_path,
        text,
        ("18:3: checkpoint.stall_timeout", "3s is less than 4 periods: write at least 4s"),
        ("21:3: heartbeat.misses", "a silence of 200ms", "more than 200ms", "misses: 6"),
    )
    refuse_pair(
        tmp_path,
        PAIR + "checkpoint: {stall_timeout: 239ms, period: 60ms}\n",
        ("17:29: checkpoint.stall_timeout", "239ms is less than 4 periods: write at least 240ms"),
    )
    refuse_pair(
        tmp_path,
        PAIR + "recovery: {cold_start_after: 2999ms}\nfirst_primary: gamma\n",
        ("18:16: first_primary", "'gamma' is not under nodes: write alpha or beta"),
    )
    refuse_pair(
        tmp_path,
        PAIR + "recovery: {cold_start_after: 2999ms}\n",
        ("17:30: recovery.cold_start_after", "2999ms leaves the other node no time", "at least 3s"),
    )


def test_nodes(tmp_path: Path) -> None:
    three = edit(PAIR, "vm:\n", "  gamma: {channel: 0.0.0.0:1, heartbeat: 10.9.0.3:1}\nvm:\n")
    refuse_pair(
        tmp_path,
        three,
        ("9:20: nodes.gamma.channel", "0.0.0.0:1 is no address to connect to"),
    )
    three = edit(three, "0.0.0.0:1", "10.9.0.3:1")
    refuse_pair(tmp_path, three, ("3:3: nodes", "at most 2 entries: remove some"))
    one = edit(PAIR, PAIR[PAIR.index("  beta:") : PAIR.index("vm:")], "")
    refuse_pair(tmp_path, one, ("3:3: nodes", "at least 2 entries: add some"))
    refuse_pair(
        tmp_path,
        edit(PAIR, "  beta:", "  Beta_:"),
        ("6:3: nodes.Beta_", "'Beta_' is not a name"),
    )


def test_name_and_file_must_agree(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"pairs.d/app.yaml": pair_named("web", "52:54:00:00:00:02")},
        ("pairs.d/app.yaml:1:7: pair", "is 'web'", "file is named 'app'", "make the two equal"),
    )


def test_yml_is_refused(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, {"pairs.d/app.yml": PAIR}))
    assert problems == ["pairs.d/app.yml: is not read: rename it to app.yaml"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    host_file = write(tmp_path, {"pairs.d/large.yaml": PAIR + "#" * 2**20})
    (tmp_path / "pairs.d/folder.yaml").mkdir()
    (tmp_path / "pairs.d/dangling.yaml").symlink_to("absent")
    os.mkfifo(tmp_path / "pairs.d/fifo.yaml")
    check(
        problems_of(host_file),
        ("pairs.d/dangling.yaml", "cannot be read (No such file or directory)"),
        ("pairs.d/fifo.yaml", "is not a regular file"),
        ("pairs.d/folder.yaml", "is not a regular file"),
        ("pairs.d/large.yaml", "is larger than 1MiB"),
    )


def test_no_host_file_still_checks_the_pairs(tmp_path: Path) -> None:
    host_file = write(tmp_path, {"pairs.d/web.yaml": edit(PAIR, "128MiB", "1G")})
    host_file.unlink()
    check(
        problems_of(host_file),
        ("coloha.yaml", "cannot be read (No such file or directory)"),
        ("pairs.d/web.yaml:10:11: vm.memory", "write 1GiB"),
    )


def test_nothing_there_is_one_problem(tmp_path: Path) -> None:
    check(problems_of(tmp_path / "coloha.yaml"), ("coloha.yaml", "cannot be read", "create it"))


@pytest.mark.parametrize("setting", ["", "pairs_directory: vms\n"])
def test_broken_host_file_still_checks_its_pairs(tmp_path: Path, setting: str) -> None:
    folder = "vms" if setting else "pairs.d"
    host = edit(HOST, "key_file: key", "key_file: 1") + setting
    refuse(
        tmp_path,
        {"coloha.yaml": host, f"{folder}/app.yaml": pair_named("app", "52:54:00:00:00:0g")},
        ("coloha.yaml:5:11: key_file", "must be text, not 1"),
        (f"{folder}/app.yaml:12:12: vm.nics[0].mac", "is not a MAC address"),
    )


def test_no_pairs_directory(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"coloha.yaml": HOST + "pairs_directory: absent\n"},
        ("coloha.yaml:6:18: pairs_directory", "absent cannot be listed", "create the folder"),
    )


def test_host_settings(tmp_path: Path) -> None:
    host = HOST + f"metrics: 10.9.0.1:7770\nruntime_directory: /{'r' * 95}\nevent_loop: uvlop\n"
    refuse(
        tmp_path,
        {"coloha.yaml": host},
        ("coloha.yaml:6:10: metrics", "10.9.0.1:7770 is taken by listen.channel"),
        ("coloha.yaml:7:20: runtime_directory", "2 bytes too long", "shorten it"),
        ("coloha.yaml:8:13: event_loop", "unknown value 'uvlop', did you mean 'uvloop'?"),
    )


@pytest.mark.parametrize(
    ("channel", "metrics"),
    [("10.9.0.1:7770", "0.0.0.0:7770"), ("0.0.0.0:7770", "127.0.0.1:7770")],
)
def test_metrics_and_channel_on_every_address(tmp_path: Path, channel: str, metrics: str) -> None:
    host = edit(HOST, "10.9.0.1:7770", channel)
    refuse(
        tmp_path,
        {"coloha.yaml": f"{host}metrics: {metrics}\n"},
        ("coloha.yaml:6:10: metrics", f"{metrics} is taken by listen.channel"),
    )


def test_metrics_may_share_a_port_with_another_address(tmp_path: Path) -> None:
    host = HOST + "metrics: 127.0.0.1:7770\n"
    assert str(load(write(tmp_path, {"coloha.yaml": host})).host.metrics) == "127.0.0.1:7770"


def test_messages_stay_short_and_on_one_line(tmp_path: Path) -> None:
    host = edit(HOST, "node: alpha", f"node: {'x' * 5000}\n{'y' * 500}: 1")
    host = edit(host, "10.9.0.1:7770", '"[fe80::1%a\\nb]:1"') + '"a\\nb": 1\n"": 2\n'
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, {"coloha.yaml": host}))
    problems = caught.value.problems
    assert [problem.line for problem in problems] == [1, 2, 4, 7, 8]
    assert [problem.path for problem in problems[3:]] == ["'a\\nb'", "''"]
    for problem in problems:
        assert len(problem.path) + len(problem.message) < 300
        assert "\n" not in str(problem)


def test_compare_needs_something_to_compare_in_time(tmp_path: Path) -> None:
    text = PAIR + "checkpoint: {mode: compare, compare_timeout: 1s, expired_scan_cycle: 600ms}\n"
    refuse_pair(
        tmp_path,
        text,
        ("17:70: checkpoint.expired_scan_cycle", "may wait 1600ms", "write stall_timeout: 3200ms"),
    )
    text = edit(PAIR, "bridge: br0", "bridge: br0\n      output: open")
    refuse_pair(
        tmp_path,
        text + "checkpoint: {mode: compare}\n",
        ("18:20: checkpoint.mode", "compares nothing", "`held`"),
    )
    attach = "vm:\n  attach: {node: beta, monitor: /a, second_monitor: /b}\n"
    refuse_pair(
        tmp_path,
        edit(PAIR, "vm:\n", attach) + "checkpoint: {mode: compare}\n",
        ("18:20: checkpoint.mode", "vm.attach", "write buffer"),
    )
