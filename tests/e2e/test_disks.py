"""Two disks and two NICs, on real QEMU with a Linux guest: nothing acknowledged is ever lost."""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.client import RunningClient, start_client
from lab.cluster import disk_image
from lab.disks import check_file_system, read_log
from lab.strike import BOOT_S
from tests.e2e.support import PATIENT, Scene, scene, wait
from tests.e2e.test_guest_life import order

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(900)]

FAILOVERS = int(os.environ.get("COLOHA_DISK_FAILOVERS", "3"))
SEED = 2611
DISKS = 2
NICS = [{"mac": f"52:54:00:c0:10:a{number}", "bridge": "br0"} for number in (1, 2)]
SECOND_IP, SECOND_CLIENT_IP = "10.78.0.10", "10.78.0.2"
SLOW = replace(PATIENT, period="200ms")
"""Under TCG, and with the images on one disk, a checkpoint takes some 40 ms."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(
        SLOW, disks=DISKS, vm={"nics": NICS}, guest_words=f"second={SECOND_IP}/24", shared=True
    ) as made:
        yield made


def second_client(stage: Scene) -> RunningClient:
    """A client of the guest's other NIC."""
    client = stage.topology.client
    client.ip(f"addr add {SECOND_CLIENT_IP}/24 dev eth0\n")
    path = stage.topology.directory / "second.jsonl"
    words = ("--name", "d", "--shared", "--think-ms", "2", "--connect-s", str(BOOT_S))
    return start_client(client, f"{SECOND_IP}:7", path, *words)


def logged(image: Path, copy: Path) -> list[tuple[int, str]]:
    """What the guest's log on an image says; its file system must be whole."""
    shutil.copyfile(image, copy)
    check_file_system(copy)
    return [(entry.value, entry.token) for entry in read_log(copy)]


def test_all_that_was_acknowledged_is_on_both_disks(stage: Scene, tmp_path: Path) -> None:
    """Crashes at random instants, both hosts in turn; then the guest switches itself off."""
    second = second_client(stage)
    rng = random.Random(SEED)
    for _ in range(FAILOVERS):
        primary, secondary = stage.wait_protected()
        wait(rng.uniform(0.2, 1.2))
        stage.cluster.kill_qemu(primary)
        stage.answers_go_on(5)
        assert stage.wait_protected() == (secondary, primary)
    assert "disks-copied" in stage.kinds(primary)
    reports = {"c": stage.client.stop(), "d": second.stop()}
    primary, secondary = stage.wait_protected()
    order(stage, "poweroff")
    cluster = stage.cluster
    cluster.wait("off", lambda: cluster.phases() == {primary: "off", secondary: "standby"})
    cluster.wait("the end of QEMU", lambda: cluster.qemu(primary) is None)
    hosts = stage.topology.hosts
    for number in range(DISKS):
        ours, theirs = (disk_image(hosts[name], number) for name in (primary, secondary))
        entries = logged(ours, tmp_path / f"disk{number}")
        assert [value for value, _ in entries] == list(range(1, len(entries) + 1))
        for name, report in reports.items():
            assert report.flawless, replace(report, gap_list=[])
            tokens = [token for _, token in entries if token.startswith(f"{name}.")]
            assert tokens == [f"{name}.{count}" for count in range(report.requests)]
            assert report.answers > FAILOVERS
        assert ours.read_bytes() == theirs.read_bytes(), "both images are equal after a clean stop"
    assert stage.lives() == 1
