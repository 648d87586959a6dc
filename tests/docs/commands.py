"""Every command that a document tells to type, and what runs it.

Each line of an indented or fenced block is a command, unless the block has a language of its own or
is listed as a picture. A new command is missing here: have a test run it, or say why none can.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import Block, blocks, named, pages

HERE = "tests/docs/test_commands.py::"

TWO_HOSTS = "tests/units/test_two_hosts.py::test_from_nothing_to_a_survived_crash"
OUTLIVES = "tests/units/test_two_hosts.py::test_the_vm_outlives_what_is_done_to_its_service"

RUN = {
    "coloha keygen /etc/coloha/key": TWO_HOSTS,
    **dict.fromkeys(
        (
            "coloha keygen --add /etc/coloha/key",
            "coloha keygen --use /etc/coloha/key",
            "coloha keygen --drop /etc/coloha/key",
            "systemctl restart coloha",
        ),
        OUTLIVES,
    ),
    **dict.fromkeys(
        (
            "apt install python3-venv qemu-system-x86 qemu-utils iproute2 polkitd",
            "sh systemd/install.sh",
            "ip link add br0 type bridge",
            "ip link set eno2 master br0 up",
            "ip link set br0 up",
            "mkdir -p /mnt/witness",
            "install -d -o coloha -g coloha /srv/web",
            "qemu-img create -f qcow2 /srv/web/disk.qcow2 10G",
            "chown -R coloha:coloha /srv/web",
            "systemctl enable --now coloha",
        ),
        TWO_HOSTS,
    ),
    "coloha check": HERE + "test_what_the_command_line_is_asked",
    "coloha events": HERE + "test_what_the_command_line_is_asked",
    "coloha status": HERE + "test_what_the_command_line_is_asked",
    "coloha replay /var/lib/coloha/flight/PAIR": HERE + "test_records_are_replayed",
    "coloha replay --from 03:10 --to 03:25 /var/lib/coloha/flight/PAIR": HERE
    + "test_records_are_replayed",
    "coloha simulate": HERE + "test_histories_are_simulated",
    "coloha simulate --seed 1 --histories 1000000 --jobs 4": HERE + "test_histories_are_simulated",
    "coloha simulate --fault cut --fault qemu-crash": HERE + "test_histories_are_simulated",
    "coloha simulate --arbiter hold-fence": HERE + "test_histories_are_simulated",
    "coloha simulate --explore 6": HERE + "test_histories_are_simulated",
    "coloha simulate --help": HERE + "test_histories_are_simulated",
    "make chaos": "tests/e2e/test_chaos.py::test_chaos",
    'make chaos ARGS="--seed 7 --faults 100"': HERE + "test_what_make_is_asked_is_understood",
    'make chaos ARGS="--kinds link host-kill two --faults 10"': HERE
    + "test_what_make_is_asked_is_understood",
    "coloha events --json | tail -n 1 | COLOHA_KIND=test COLOHA_PAIR=web"
    " /usr/local/bin/page": "tests/docs/test_mqtt.py::test_a_hook_is_tried_by_hand",
    "mosquitto_sub -h broker.example.org -p 8883 --capath /etc/ssl/certs -u watcher"
    " -P \"$PASSWORD\" -v -q 1 -t 'coloha/#'": "tests/docs/test_mqtt.py"
    "::test_the_command_to_look_on",
    "make demo": HERE + "test_what_make_is_asked_is_understood",
}
"""Command: the test that runs it, or as much of it as a test may."""

NOT_HERE = {
    "mount -t nfs witness:/srv/witness /mnt/witness": "no NFS; the hosts of tests share a folder",
    "scp -p /etc/coloha/key beta:/etc/coloha/key": "no ssh between the hosts of tests: copied",
    "docker build -t coloha .": "no container engine; python -m lab.image carries the steps out",
    "docker run": "no container engine; python -m lab.image runs the daemon as this would",
    "docker exec coloha coloha status": "no container engine",
    "etcdctl role add coloha": "etcdctl is not here; tests/adapters/test_witness_etcd_access.py",
    "etcdctl role grant-permission coloha --prefix=true readwrite /coloha/": "as above",
    "etcdctl user add coloha": "as above; it asks for a password",
    "etcdctl user grant-role coloha coloha": "as above",
    "make test": "it is what runs this",
}
"""Command, or how it begins: why no test can run it on a developer's machine."""

PICTURES = {
    ("README.md", "clients"): "picture",
    ("README.md", "failover       detection"): "what make demo prints",
    ("README.md", "node: alpha"): "host file: test_the_files_of_the_readme_load",
    ("README.md", "pair: web"): "pair file: test_the_files_of_the_readme_load",
    ("docs/architecture.md", ""): "pictures and courses of events",
    ("docs/design.md", ""): "pictures, moves of the record",
    ("docs/mqtt.md", "user coloha"): "access list: test_what_the_broker_must_allow",
    ("docs/mqtt.md", "#!/bin/sh"): "program: test_the_program_does_what_it_says",
    ("docs/runbook.md", "On 2026-11-25"): "what coloha replay prints",
    ("docs/timing.md", "time "): "a course of events",
}
"""Documents, and how blocks in them begin that hold no command."""


def is_picture(block: Block) -> bool:
    return any(
        named(block.path) == document and block.lines[0].startswith(begin)
        for document, begin in PICTURES
    )


def commands() -> Iterator[tuple[str, str]]:
    """Every command, with its document and line."""
    for path in pages():
        yield from commands_of(path)


def commands_of(path: Path) -> Iterator[tuple[str, str]]:
    for block in blocks(path):
        if block.language not in ("", "sh", "console") or is_picture(block):
            continue
        for number, line in enumerate(block.lines, block.line):
            command = line.partition(" # ")[0].partition("     ")[0].strip()
            if command and not command.startswith("#"):
                yield command, f"{named(path)}:{number}"


def declared(command: str) -> str | None:
    """What is said of a command: the test that runs it, or why there is none."""
    for begin, why in NOT_HERE.items():
        if command == begin or command.startswith(begin + " "):
            return why
    return RUN.get(command)
