"""The streams of mode `compare` between two nodes: who may join one, and what its end does."""

import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coloha.config import PairConfig
from coloha.config.nic import Nic
from coloha.core.events import Invited, Role, Run
from coloha.qemu.steps import ScriptError
from tests.adapters.support import PATIENCE_S, Runner, eventually
from tests.runtime.keeper_support import PRIMARY, Side, both, changed, run_qemu
from tests.runtime.test_storage import VERSION, _Living

SECONDARY = Run("s-7", Role.SECONDARY, 7)


def compared(pair: PairConfig) -> PairConfig:
    nics = (Nic(mac="52:54:00:12:34:56", bridge="br0"),)
    return changed(changed(pair, "vm", nics=nics), "checkpoint", mode="compare")


@contextlib.asynccontextmanager
async def invited(folder: Path) -> AsyncIterator[tuple[Side, Side, socket.socket]]:
    """Two nodes, and in the place of the secondary's input a socket that listens."""
    async with both(folder, compared) as (alpha, beta):
        run_qemu(alpha, PRIMARY, VERSION)
        alpha.keeper.invite(7, 3, PATIENCE_S)
        await beta.told(Invited)
        run_qemu(beta, SECONDARY, VERSION)
        assert beta.keeper.vm is not None
        child = subprocess.Popen(["sleep", "1000"])
        beta.keeper.vm._process = _Living(child.pid)  # type: ignore[assignment]
        with socket.socket(socket.AF_UNIX) as listener:
            path = beta.keeper.vm.files.stream("in0")
            path.parent.mkdir(parents=True)
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(PATIENCE_S)
            try:
                yield alpha, beta, listener
            finally:
                child.kill()
                child.wait()


def test_the_end_of_a_stream_cuts_the_checkpoints(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with invited(tmp_path) as (alpha, beta, listener):
            assert alpha.keeper.vm is not None
            assert beta.keeper.vm is not None
            cut: list[bool] = []
            monkeypatch.setattr(beta.keeper.vm, "cut", lambda: cut.append(True))
            request = await alpha.keeper._request(alpha.keeper.vm, 7)
            wanted = {"to-peer-net0": replace(request, stream="in0")}
            made = await alpha.keeper._links.connect(wanted)
            server, _ = listener.accept()
            with server, made["to-peer-net0"] as connection:
                connection.sendall(b"frame")
                server.settimeout(PATIENCE_S)
                assert server.recv(100) == b"frame"
                assert not cut
            await eventually(lambda: cut == [True], "the cut")

    run(main())


@pytest.mark.parametrize(
    ("session", "stream", "why"),
    [(7, "in1", "there is no stream 'in1' here"), (8, "in0", "this session is gone")],
)
def test_a_stream_that_nobody_waits_for_is_refused(
    run: Runner, tmp_path: Path, session: int, stream: str, why: str
) -> None:
    async def main() -> None:
        async with invited(tmp_path) as (alpha, _, _):
            assert alpha.keeper.vm is not None
            request = await alpha.keeper._request(alpha.keeper.vm, session)
            with pytest.raises(ScriptError, match=why):
                await alpha.keeper._links.connect({"x": replace(request, stream=stream)})

    run(main())
