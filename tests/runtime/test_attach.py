"""A QEMU that somebody else started: taken, found again, killed, refused with the reason."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coloha.config import PairConfig
from coloha.config.attach import Attach
from coloha.config.nic import Nic
from coloha.core.actions import RunScript, Script
from coloha.core.events import (
    Launched,
    LaunchFailed,
    QemuExited,
    Role,
    Run,
    ScriptDone,
)
from coloha.errors import LaunchError
from coloha.qemu.attach import listener
from lab.assets import load_assets
from lab.namespace import wait_until
from tests.adapters.support import Runner, eventually
from tests.runtime.keeper_support import PRIMARY, Side, changed, side

pytestmark = pytest.mark.qemu

SECONDARY = Run("s-2a", Role.SECONDARY, 0x2A)
NET = ("-netdev", "socket,id=net0,udp=127.0.0.1:9,localaddr=127.0.0.1:0")


@contextlib.contextmanager
def foreign(folder: Path, *words: str, machine: str = "pc", memory: int = 16) -> Iterator[int]:
    """A QEMU as somebody would start it, with two monitors; its pid."""
    base = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", machine]
    base += ["-accel", "qtest", "-m", str(memory)]
    for name in ("m1", "m2"):
        base += ["-qmp", f"unix:{folder}/{name},server=on,wait=off"]
    process = subprocess.Popen([load_assets().qemu, *base, *words], stdin=subprocess.DEVNULL)
    try:
        wait_until((folder / "m2").exists, "its monitors", 30)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def attached(folder: Path, **vm: object) -> Callable[[PairConfig], PairConfig]:
    """The pair's file, for such a QEMU on alpha."""
    where = Attach(node="alpha", monitor=folder / "m1", second_monitor=folder / "m2")
    qemu = str(load_assets().qemu)
    more = {"attach": where, "qemu": qemu, "accelerator": "qtest", **vm}
    return lambda pair: changed(pair, "vm", **more)


def nics(count: int) -> tuple[Nic, ...]:
    return tuple(Nic(mac=f"52:54:00:00:00:0{n}", bridge="br0") for n in range(count))


async def launched(alpha: Side, run: Run = PRIMARY) -> Launched | LaunchFailed:
    alpha.keeper.launch(run)
    kinds = (Launched, LaunchFailed)
    await eventually(lambda: any(isinstance(e, kinds) for e in alpha.events), "an outcome")
    told = next(e for e in alpha.events if isinstance(e, kinds))
    alpha.events.remove(told)
    return told


def test_it_is_taken_found_again_and_killed(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        with foreign(tmp_path, *NET, "-device", "virtio-net-pci,netdev=net0") as pid:
            change = attached(tmp_path, nics=nics(1))
            async with side(tmp_path, "alpha", change) as alpha:
                assert await launched(alpha) == Launched(PRIMARY)
                assert alpha.keeper.vm is not None
                assert alpha.keeper.vm.pid == pid
                await alpha.keeper.let_go()
                assert alpha.keeper.find() == PRIMARY, "the next daemon finds it"
                alpha.keeper.run_script(RunScript(1, Script.ADOPT, 5.0))
                assert isinstance(await alpha.told(ScriptDone), ScriptDone)
                alpha.keeper.kill(PRIMARY)
                assert (await alpha.told(QemuExited)).run == PRIMARY
                assert alpha.failures == []

    run(main())


def test_there_is_none_yet(run: Runner, tmp_path: Path) -> None:
    """Whoever starts it is waited for; a failed attempt leaves no trace."""

    async def main() -> None:
        async with side(tmp_path, "alpha", attached(tmp_path)) as alpha:
            for number in range(2):
                failed = await launched(alpha, Run(f"p-{number}", Role.PRIMARY))
                assert isinstance(failed, LaunchFailed)
                assert f"no QEMU listens on {tmp_path}/m1" in failed.reason
            with foreign(tmp_path):
                assert isinstance(await launched(alpha, Run("p-9", Role.PRIMARY)), Launched)
                alpha.keeper.kill(Run("p-9", Role.PRIMARY))
                await alpha.told(QemuExited)

    run(main())


@pytest.mark.parametrize(
    ("words", "vm", "reason"),
    [
        (("-S",), {}, "its guest is prelaunch: start it first"),
        ((), {"memory": 32 * 2**20}, "16777216 bytes of memory, vm.memory is 33554432"),
        ((), {"cpus": 2}, "it has 1 CPUs, vm.cpus is 2"),
        ((), {"machine": "q35"}, "vm.machine is q35"),
        ((), {"nics": nics(1)}, "the output of netdev net0 cannot be held"),
    ],
)
def test_what_it_lacks_is_told_and_it_is_left_alone(
    run: Runner, tmp_path: Path, words: tuple[str, ...], vm: dict[str, object], reason: str
) -> None:
    async def main() -> None:
        with foreign(tmp_path, *words) as pid:
            async with side(tmp_path, "alpha", attached(tmp_path, **vm)) as alpha:
                failed = await launched(alpha)
                assert isinstance(failed, LaunchFailed)
                assert reason in failed.reason
                assert alpha.keeper.find() is None
                os.kill(pid, 0)
                again = await launched(alpha, Run("p-2", Role.PRIMARY))
                assert isinstance(again, LaunchFailed)
                assert reason in again.reason, "the monitors were let go"

    run(main())


def test_disks_that_coloha_did_not_attach_are_refused(run: Runner, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(2**20))
    drive = f"driver=raw,node-name=d,file.driver=file,file.filename={image}"

    async def main() -> None:
        with foreign(tmp_path, "-blockdev", drive, "-device", "virtio-blk-pci,drive=d,id=vda"):
            async with side(tmp_path, "alpha", attached(tmp_path)) as alpha:
                failed = await launched(alpha)
                assert isinstance(failed, LaunchFailed)
                assert "its guest writes to" in failed.reason
                assert "vda" in failed.reason

    run(main())


def test_one_that_is_started_anew_keeps_the_secondary_away(run: Runner, tmp_path: Path) -> None:
    """It would be a second voice: it is told, at each attempt to protect."""

    async def main() -> None:
        with foreign(tmp_path) as pid:
            async with side(tmp_path, "alpha", attached(tmp_path)) as alpha:
                failed = await launched(alpha, SECONDARY)
                assert isinstance(failed, LaunchFailed)
                assert f"(pid {pid})" in failed.reason
                assert "clients hear two VMs" in failed.reason
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda: _gone(tmp_path / "m1"), "its end")
                assert await launched(alpha, Run("s-2b", Role.SECONDARY, 0x2B)) == Launched(
                    Run("s-2b", Role.SECONDARY, 0x2B)
                )
                alpha.keeper.kill(Run("s-2b", Role.SECONDARY, 0x2B))
                await alpha.told(QemuExited)

    run(main())


def test_who_listens_is_not_who_made_the_socket(tmp_path: Path) -> None:
    """Managers of VMs make it and hand it on; and nobody may listen on one that is there."""
    path = tmp_path / "socket"
    assert listener(path) is None
    text = (
        "import os, socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "os.set_inheritable(s.fileno(), True)\n"
        "child = os.spawnvp(os.P_NOWAIT, 'sleep', ['sleep', '60'])\n"
        "print(child, flush=True); s.close(); sys.stdin.read()\n"
    )
    maker = subprocess.Popen(
        ["python3", "-c", text, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    child = int(maker.stdout.readline())
    try:
        wait_until(lambda: _listens(path) == child, "the maker to let go", 10)
        assert listener(path) == child
    finally:
        os.kill(child, signal.SIGKILL)
        maker.communicate("")
    wait_until(lambda: listener(path) is None, "its end", 10)


def _gone(path: Path) -> bool:
    try:
        return listener(path) is None
    except LaunchError:
        return False  # it dies


def _listens(path: Path) -> int | None:
    try:
        return listener(path)
    except LaunchError:
        return None  # both hold it for a moment


def test_a_note_of_another_life_means_nothing(run: Runner, tmp_path: Path) -> None:
    """The number of a process is given to another one."""

    async def main() -> None:
        async with side(tmp_path, "alpha", attached(tmp_path)) as alpha:
            directory = tmp_path / "alpha" / "web" / "p-1"
            directory.mkdir(parents=True)
            for note in ({"pid": os.getpid(), "started": 1}, {"pid": 0}, "x"):
                (directory / "attached.json").write_text(json.dumps(note))
                assert alpha.keeper.find() is None
            await asyncio.sleep(0)

    run(main())
