"""The keeper's channels: invitations, and what stands against them."""

from pathlib import Path

import pytest

from coloha.config import PairConfig
from coloha.core.actions import RunScript, Script
from coloha.core.events import (
    ChannelFailed,
    ChannelReady,
    Failure,
    Invited,
    QemuExited,
    Role,
    Run,
    ScriptFailed,
)
from coloha.runtime import keeper as keeper_module
from coloha.runtime.keeper import MAX_OFFERS
from tests.adapters.channel_support import Raw
from tests.adapters.support import PATIENCE_S, Runner, eventually
from tests.runtime.keeper_support import (
    PRIMARY,
    both,
    changed,
    run_qemu,
    side,
)


def test_a_channel_is_made_and_admitted(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            alpha.keeper.invite(7, 3, PATIENCE_S)
            assert await beta.told(Invited) == Invited(7, 3, None)
            assert alpha.events == []
            beta.keeper.admit(7)
            assert await alpha.told(ChannelReady) == ChannelReady(7)
            assert alpha.failures == beta.failures == []

    run(main())


def test_the_longest_stall_timeout_makes_a_channel_too(run: Runner, tmp_path: Path) -> None:
    def patient(pair: PairConfig) -> PairConfig:
        return changed(pair, "checkpoint", stall_timeout=600.0)

    async def main() -> None:
        async with both(tmp_path, patient) as (alpha, beta):
            alpha.keeper.invite(7, 3, PATIENCE_S)
            await beta.told(Invited)
            beta.keeper.admit(7)
            await alpha.told(ChannelReady)

    run(main())


def test_a_refusal_comes_with_its_reason(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            alpha.keeper.invite(7, 3, PATIENCE_S)
            await beta.told(Invited)
            beta.keeper.drop(7, "beta is in phase boot")
            assert await alpha.told(ChannelFailed) == ChannelFailed(7, "beta is in phase boot")

    run(main())


def test_a_node_that_is_down_is_told(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            beta.server.stop()
            alpha.keeper.invite(7, 3, PATIENCE_S)
            failed = await alpha.told(ChannelFailed)
            assert failed.session == 7
            assert "127.0.0.1" in failed.reason

    run(main())


def test_pair_files_that_differ_are_a_problem(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            beta.keeper._config = changed(beta.keeper._config, "vm", cpus=4)
            alpha.keeper.invite(7, 3, PATIENCE_S)
            invited = await beta.told(Invited)
            assert "the files of pair web differ between beta and alpha" in str(invited.problem)

    run(main())


def huge(pair: PairConfig) -> PairConfig:
    return changed(pair, "vm", memory=2**44)


def test_too_little_memory_is_a_problem(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path, huge) as (alpha, beta):
            alpha.keeper.invite(7, 3, PATIENCE_S)
            invited = await beta.told(Invited)
            assert f"needs {2**44 * 2 // 2**20} MiB, twice the guest's" in str(invited.problem)

    run(main())


def test_a_qemu_that_does_not_understand_the_primarys_is_refused(
    run: Runner, tmp_path: Path
) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            alpha.keeper.invite(7, 3, PATIENCE_S)
            await beta.told(Invited)
            run_qemu(beta, Run("s-7", Role.SECONDARY, 7), (10, 2, 0))
            beta.keeper.run_script(RunScript(1, Script.ACCEPT_COLO, PATIENCE_S, session=7))
            failed = await beta.told(ScriptFailed)
            assert (failed.number, failed.failure) == (1, Failure.REFUSED)
            assert "the primary runs QEMU 11.1.3, the secondary 10.2.0" in failed.reason
            assert "install the same version on both" in failed.reason

    run(main())


def test_memory_is_looked_at_for_every_secondary(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path, huge) as (alpha, beta):
            run_qemu(beta, Run("s-5", Role.SECONDARY, 5), (11, 1, 3))  # it is dead by now
            alpha.keeper.invite(7, 3, PATIENCE_S)
            invited = await beta.told(Invited)
            assert "twice the guest's" in str(invited.problem)

    run(main())


def test_a_death_that_nobody_told_is_told_when_asked_for(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with side(tmp_path, "alpha") as alpha:
            run_qemu(alpha, PRIMARY, (11, 1, 3))
            alpha.keeper.kill(PRIMARY)
            assert (await alpha.told(QemuExited)).run == PRIMARY

    run(main())


def test_the_oldest_of_too_many_invitations_is_dropped(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            for session in range(1, MAX_OFFERS + 3):
                alpha.keeper.invite(session, 3, PATIENCE_S)
                await beta.told(Invited)
            for session in (1, 2):
                failed = await alpha.told(ChannelFailed)
                assert failed == ChannelFailed(session, "too many invitations")
            beta.keeper.admit(1)  # it is gone: nothing happens
            beta.keeper.admit(MAX_OFFERS + 2)
            assert await alpha.told(ChannelReady) == ChannelReady(MAX_OFFERS + 2)

    run(main())


def test_letting_go_hangs_up(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            for session, admitted in ((7, True), (8, False)):
                alpha.keeper.invite(session, 3, PATIENCE_S)
                await beta.told(Invited)
                if admitted:
                    duplicate = beta.keeper._offers[session].connection.dup()
                    beta.keeper.admit(session)
                    await alpha.told(ChannelReady)
            # A new invitation supersedes the channel of the one before.
            assert await Raw(duplicate).ended()
            duplicate.close()
            await beta.keeper.let_go()
            failed = await alpha.told(ChannelFailed)
            assert failed.session == 8

    run(main())


@pytest.mark.parametrize("admitted", [False, True])
def test_a_channel_ends_with_the_qemu_that_did_not_take_it(
    run: Runner, tmp_path: Path, admitted: bool
) -> None:
    """Else the secondary would wait for its first copy, and its node for the secondary."""

    async def main() -> None:
        async with both(tmp_path) as (alpha, beta):
            alpha.keeper.invite(7, 3, PATIENCE_S)
            await beta.told(Invited)
            duplicate = beta.keeper._offers[7].connection.dup()
            if admitted:
                beta.keeper.admit(7)
                await alpha.told(ChannelReady)
            assert alpha.keeper.vm is not None
            alpha.keeper.vm._say(QemuExited(PRIMARY))
            assert (await alpha.told(QemuExited)).run == PRIMARY
            assert await Raw(duplicate).ended()
            duplicate.close()

    run(main())


def test_an_outcome_that_will_never_come_is_a_failure(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        async with both(tmp_path) as (alpha, _):
            monkeypatch.setattr(keeper_module, "invite", fail)
            alpha.keeper.invite(7, 3, PATIENCE_S)
            await eventually(lambda: alpha.failures, "the failure")
            assert str(alpha.failures[0]) == "a bug"

    run(main())
