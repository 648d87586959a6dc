"""A pair's disks on a node: which files there are, and whether they are whole disks."""

import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coloha.config import PairConfig
from coloha.config.disk import Disk
from coloha.core.actions import RunScript, Script
from coloha.core.events import (
    ChannelFailed,
    ChannelReady,
    Failure,
    Invited,
    LaunchFailed,
    Role,
    Run,
    ScriptFailed,
)
from coloha.errors import LaunchError
from coloha.qemu import disks
from coloha.qemu.steps import ScriptError
from lab.assets import load_assets
from tests.adapters.support import PATIENCE_S, Runner, eventually
from tests.runtime.keeper_support import PRIMARY, Side, both, changed, run_qemu, side

SIZE = 1 << 20
VERSION = (11, 1, 3)
SECONDARY = Run("s-7", Role.SECONDARY, 7)


def disk_pair(pair: PairConfig, image: Path, size: int = SIZE) -> PairConfig:
    """With a disk that is read only, and a replicated one."""
    image.write_bytes(bytes(size))
    made = (
        Disk(image=image.with_name("installation"), format="raw", access="read-only"),
        Disk(image=image, format="raw"),
    )
    return changed(pair, "vm", disks=made, qemu_img=str(load_assets().qemu_img))


@contextlib.asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[Side]:
    async with side(folder, "alpha", lambda pair: disk_pair(pair, folder / "image")) as made:
        yield made


def overlays(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.qcow2"))


def test_a_secondary_gets_overlays_and_its_images_are_torn(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with alone(tmp_path) as alpha:
            storage, folder = alpha.keeper.storage, tmp_path / "alpha"
            assert storage.disks == ("1",), "the one that is read only needs nothing"
            assert storage.torn is None
            await storage.prepare(SECONDARY, (SIZE,))
            assert overlays(folder) == ["web-s-7-active1.qcow2", "web-s-7-hidden1.qcow2"]
            assert storage.torn == "they were being copied from beta"
            (folder / "other-s-7-active1.qcow2").touch()
            await storage.prepare(Run("s-8", Role.SECONDARY, 8), (SIZE,))
            assert overlays(folder) == [
                "other-s-7-active1.qcow2",
                "web-s-8-active1.qcow2",
                "web-s-8-hidden1.qcow2",
            ]

    run(main())


def test_nothing_boots_from_torn_images(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with alone(tmp_path) as alpha:
            storage = alpha.keeper.storage
            await storage.prepare(SECONDARY, (SIZE,))
            alpha.keeper.launch(PRIMARY)
            failed = await alpha.told(LaunchFailed)
            assert "not whole (they were being copied from beta)" in failed.reason
            assert f"then remove {tmp_path}/alpha-state/web.disks" in failed.reason
            await storage.mend()
            await storage.prepare(PRIMARY, ())
            assert overlays(tmp_path / "alpha") == []

    run(main())


@pytest.mark.parametrize("wanted", [(), (SIZE + 512,), (SIZE, SIZE)])
def test_sizes_that_differ_are_refused(
    run: Runner, tmp_path: Path, wanted: tuple[int, ...]
) -> None:
    async def main() -> None:
        async with alone(tmp_path) as alpha:
            with pytest.raises(LaunchError, match="make images of the same sizes"):
                await alpha.keeper.storage.prepare(SECONDARY, wanted)
            assert alpha.keeper.storage.torn is None, "nothing was changed"

    run(main())


def test_the_mark_goes_with_the_scripts(run: Runner, tmp_path: Path) -> None:
    """Set before a promotion begins; taken away when what it does is done, and not before."""

    async def main() -> None:
        async with alone(tmp_path) as alpha:
            storage = alpha.keeper.storage
            run_qemu(alpha, SECONDARY, VERSION)
            vm, request = alpha.keeper.vm, alpha.keeper._request
            assert vm is not None
            for script in (Script.PROMOTE, Script.LEAVE_COLO, Script.AWAIT_COLO):
                await storage.tear("of old")
                action = RunScript(1, script, PATIENCE_S)
                with contextlib.suppress(ScriptError):
                    async with storage.around(action, vm, request):
                        assert storage.torn is not None
                        raise ScriptError(Failure.SILENT, "no answer")
                assert storage.torn is not None
                async with storage.around(action, vm, request):
                    assert storage.torn is not None
                assert storage.torn is None
            async with storage.around(RunScript(1, Script.PROMOTE, PATIENCE_S), vm, request):
                assert storage.torn == "what a secondary had kept apart was being merged into them"

    run(main())


def test_a_mark_that_cannot_be_written_ends_the_script(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with alone(tmp_path) as alpha:
            run_qemu(alpha, SECONDARY, VERSION)
            assert alpha.keeper.vm is not None
            (tmp_path / "alpha-state").rmdir()
            action = RunScript(1, Script.PROMOTE, PATIENCE_S)
            with pytest.raises(ScriptError, match=r"web\.disks: No such file") as caught:
                async with alpha.keeper.storage.around(
                    action, alpha.keeper.vm, alpha.keeper._request
                ):
                    raise AssertionError("nothing may begin")
            assert caught.value.failure is Failure.REFUSED

    run(main())


def test_a_pair_without_disks_has_no_mark(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            await alpha.keeper.storage.tear("nothing to tear")
            assert alpha.keeper.storage.torn is None
            assert await alpha.keeper.storage.sizes() == ()

    run(main())


def test_an_image_that_cannot_be_read_is_told(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with alone(tmp_path) as alpha:
            run_qemu(alpha, PRIMARY, VERSION)
            (tmp_path / "image").unlink()
            alpha.keeper.invite(7, 3, PATIENCE_S)
            failed = await alpha.told(ChannelFailed)
            assert "image" in failed.reason
            assert "No such file" in failed.reason

    run(main())


# The way to the image


@contextlib.asynccontextmanager
async def invited(folder: Path) -> AsyncIterator[tuple[Side, Side, socket.socket]]:
    """Two nodes, and in the place of the secondary's NBD server a socket that listens."""
    images = iter(("a", "b"))
    async with both(folder, lambda pair: disk_pair(pair, folder / next(images))) as (alpha, beta):
        alpha.keeper.invite(7, 3, PATIENCE_S)
        await beta.told(Invited)
        run_qemu(beta, SECONDARY, VERSION)
        assert beta.keeper.vm is not None
        child = subprocess.Popen(["sleep", "1000"])
        beta.keeper.vm._process = _Living(child.pid)  # type: ignore[assignment]
        with socket.socket(socket.AF_UNIX) as listener:
            exports = beta.keeper.vm.files.exports
            exports.parent.mkdir(parents=True)
            listener.bind(str(exports))
            listener.listen()
            listener.settimeout(PATIENCE_S)
            try:
                yield alpha, beta, listener
            finally:
                child.kill()
                child.wait()


class _Living:
    """A process that is only looked at."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def close(self) -> None:
        """Nothing."""


def test_a_disks_connection_ends_at_the_server(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with invited(tmp_path) as (alpha, beta, listener):
            vm = alpha.keeper.vm
            assert vm is not None
            request = await alpha.keeper._request(vm, 7)
            assert request.sizes == (SIZE,)
            made = await alpha.keeper._links.connect({disks.peer("1"): replace(request, disk="1")})
            assert list(made) == [disks.peer("1")]
            server, _ = listener.accept()
            with server, made[disks.peer("1")] as connection:
                server.sendall(b"NBDMAGIC")
                connection.settimeout(PATIENCE_S)
                assert connection.recv(100) == b"NBDMAGIC", "not one byte of the handshake"
                connection.sendall(b"hello")
                assert server.recv(100) == b"hello"
                server.shutdown(socket.SHUT_RDWR)
                assert connection.recv(100) == b""
            await eventually(lambda: not beta.keeper._links._relays, "the end of the relay")

    run(main())


def test_a_disk_of_another_session_is_refused(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with invited(tmp_path) as (alpha, beta, listener):
            del beta, listener
            vm = alpha.keeper.vm
            assert vm is not None
            alpha.keeper.run_script(RunScript(4, Script.ENTER_COLO, PATIENCE_S, session=8))
            failed = await alpha.told(ScriptFailed)
            assert (failed.number, failed.failure) == (4, Failure.BROKEN)
            assert "the secondary of this session is gone" in failed.reason
            assert not any(isinstance(event, ChannelReady) for event in alpha.events)

    run(main())
