"""The QEMUs of Debian 12, 13 and its backports: a pair's life on each, under KVM, without an OS.

COLOHA_KVM=absent says that this machine has no KVM: then QEMU's own emulation has to do, with which
coloha refuses all but the newest (docs/qemu.md), and the run's summary says so. Without it a
machine without KVM fails.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloha.core.actions import Script
from coloha.errors import LaunchError
from lab.assets import load_assets
from tests.qemu.loops import Loop, eventually
from tests.qemu.pairs import Node, again, epochs, pair
from tests.qemu.test_compare import compared
from tests.qemu.test_disks import areas, die, disk_pair, write

pytestmark = pytest.mark.qemu

QEMUS = {"7.2": "qemu_7_2", "10.0": "qemu_10_0", "11": "qemu"}
ABSENT = os.environ.get("COLOHA_KVM") == "absent"
ACCELERATOR = "tcg" if ABSENT else "kvm"


@pytest.fixture(params=QEMUS)
def qemu(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The version and the path of one of them."""
    if not ABSENT:
        assert os.access("/dev/kvm", os.R_OK | os.W_OK), (
            "/dev/kvm is missing or not ours: give this user access to it, or declare with "
            "COLOHA_KVM=absent that this machine has none"
        )
    return request.param, str(getattr(load_assets(), QEMUS[request.param]))


@contextlib.contextmanager
def without_kvm(wanted: str) -> Iterator[None]:
    """An older QEMU without KVM is refused, with the reason."""
    if ABSENT and wanted != "11":
        with pytest.raises(LaunchError, match="accelerator: kvm"):
            yield
    else:
        yield


async def version(node: Node) -> str:
    found = await node.command("query-version")
    assert isinstance(found, dict)
    return "{major}.{minor}".format(**found["qemu"])


def test_each_version_lives_through_it_all(run: Loop, folder: Path, qemu: tuple[str, str]) -> None:
    """Bring-up, epochs, hold and release; each node takes over once; both ways to end a session."""

    wanted, path = qemu

    async def main() -> None:
        async with pair(folder, 2, qemu=path, accelerator=ACCELERATOR) as both:
            elder, heir = await both.start_both()
            assert (await version(elder)).startswith(wanted)
            for number in (0x30, 0x31):
                await both.protect(elder, heir)
                await epochs(elder, 3)
                while await both.wire.frames():
                    pass  # the socket takes 11 frames at a time, QEMU keeps the rest
                await elder.speak(2)
                assert await both.wire.frames() == 0, "held"
                await epochs(elder, 1)
                assert set(await both.wire.heard(4)) == {elder.run.id}, "released; one voice"
                elder.vm.kill()
                await eventually(elder.vm.dead.is_set, "the death of the primary")
                await heir.do(Script.PROMOTE)
                assert await heir.status() == "running"
                assert set(await both.wire.heard(1)) == {heir.run.id}, "the network is told"
                elder, heir = heir, await both.start(again(number))
            await both.protect(elder, heir)
            await epochs(elder, 2)
            heir.vm.kill()
            await eventually(heir.vm.dead.is_set, "the death of the secondary")
            await elder.do(Script.LEAVE_COLO)
            assert await elder.status() == "running"
            fresh = await both.start(again(0x40))
            await both.protect(elder, fresh)
            await epochs(elder, 2)

    with without_kvm(wanted):
        run(main())


def test_each_version_replicates_disks(run: Loop, folder: Path, qemu: tuple[str, str]) -> None:
    """A promoted copy has what was committed, and no more; then it is protected itself."""
    wanted, path = qemu

    async def main() -> None:
        async with disk_pair(folder, "qcow2", qemu=path, accelerator=ACCELERATOR) as both:
            elder, heir = await both.start_both()
            await write(elder, 0, 1)
            await both.join(elder, heir)
            await write(elder, 1, 2)
            await epochs(elder, 2)
            await write(elder, 1, 99)
            await die(elder)
            await heir.do(Script.PROMOTE)
            assert await areas(heir) == [1, 2, 0, 0]
            fresh = await both.on("a", again(0x30))
            await both.join(heir, fresh)
            await write(heir, 2, 3)
            await epochs(heir, 2)
            await die(heir)
            await fresh.do(Script.PROMOTE)
            assert await areas(fresh) == [1, 2, 3, 0]

    with without_kvm(wanted):
        run(main())


def test_each_version_compares(run: Loop, folder: Path, qemu: tuple[str, str]) -> None:
    """Mode `compare`: a copy takes over, is protected itself, and goes on alone."""
    wanted, path = qemu

    async def main() -> None:
        async with compared(folder, 2, path, ACCELERATOR) as both:
            elder, heir = await both.start_both()
            await both.join(elder, heir)
            await epochs(elder, 3)
            elder.vm.kill()
            await eventually(elder.vm.dead.is_set, "the death of the primary")
            await heir.do(Script.PROMOTE)
            fresh = await both.start(again(0x30))
            await both.join(heir, fresh)
            await epochs(heir, 3)
            fresh.vm.kill()
            await eventually(fresh.vm.dead.is_set, "the death of the secondary")
            await heir.do(Script.LEAVE_COLO)
            assert await heir.status() == "running"

    with without_kvm(wanted):
        run(main())
