"""Fencing: what is confirmed, what failed, and what nobody knows."""

import asyncio
import functools
import logging
from pathlib import Path
from typing import Any

import pytest

from coloha.adapters import fence as module
from coloha.adapters.fence import Fencer
from coloha.core.events import Fenced
from coloha.errors import FenceError
from tests.adapters.agent import HANGS, IS_OFF, IS_ON, NO, OK, Agent, answer
from tests.adapters.support import Runner, eventually
from tests.qemu.children import state_of

CONFIRMED, FAILED, UNKNOWN = Fenced.CONFIRMED, Fenced.FAILED, Fenced.UNKNOWN


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    return Agent(tmp_path)


def fencer(program: Agent, **settings: Any) -> Fencer:
    return Fencer("alpha", "beta", program.section(**settings))


def dead(pid: int) -> bool:
    return state_of(pid) in ("", "Z")


@pytest.mark.parametrize(
    ("off", "status", "outcome", "words"),
    [
        (OK, IS_OFF, CONFIRMED, "sees that it is off"),
        (OK, IS_ON, UNKNOWN, "status: it is on"),
        (OK, NO, UNKNOWN, "status: exit code 1 (no way)"),
        (OK, answer(7), UNKNOWN, "status: exit code 7"),
        (OK, answer(0, do="os.kill(os.getpid(), 9)"), UNKNOWN, "status: killed by signal 9"),
        (NO, IS_ON, FAILED, "off: exit code 1 (no way); status: it is on"),
        (answer(2), IS_ON, FAILED, "off: exit code 2"),
        (NO, NO, UNKNOWN, "off: exit code 1 (no way); status: exit code 1"),
        # That it is off now is not what was asked: somebody may be restarting it.
        (NO, IS_OFF, UNKNOWN, "off: exit code 1 (no way); status: it is off"),
        (answer(0, do="os.kill(os.getpid(), 9)"), IS_ON, UNKNOWN, "off: killed by signal 9"),
        (answer(0, do="os.kill(os.getpid(), 9)"), IS_OFF, UNKNOWN, "off: killed by signal 9"),
    ],
)
def test_outcomes(
    run: Runner, agent: Agent, off: Any, status: Any, outcome: Fenced, words: str
) -> None:
    agent.answers(off=[off], status=[status])
    report = run(fencer(agent).fence())
    assert report.outcome is outcome
    assert words in report.reason
    assert agent.actions == ["off", "status"]


@pytest.mark.parametrize("which", ["off", "status"])
def test_a_timeout_is_unknown_and_kills_all_of_the_agent(
    run: Runner, agent: Agent, which: str
) -> None:
    hangs = answer(
        0,
        do="import subprocess; child = subprocess.Popen(['sleep', '600']);"
        "(folder / 'child').write_text(str(child.pid)); time.sleep(600)",
    )
    agent.answers(**{"off": [OK], "status": [IS_OFF], which: [hangs]})

    async def main() -> None:
        report = await fencer(agent, timeout="3s").fence()
        assert report.outcome is UNKNOWN
        assert f"{which}: no answer within 3 s" in report.reason
        for name in ("pid", "child"):
            pid = int((agent.folder / name).read_text())
            await eventually(functools.partial(dead, pid), f"the {name} is dead")

    run(main())


@pytest.mark.parametrize("missing", ["fence_none", "/none/fence_none"])
def test_an_agent_that_is_not_there_failed(run: Runner, agent: Agent, missing: str) -> None:
    report = run(fencer(agent, agent=missing, retries=1).fence())
    assert report.outcome is FAILED
    assert report.reason == f"{missing} cannot be run (No such file or directory)"


def test_a_password_that_cannot_be_read_failed(run: Runner, agent: Agent) -> None:
    agent.answers(off=[OK], status=[IS_OFF])
    secret = agent.folder / "secret"
    section = agent.section().model_copy(update={"password_file": secret})
    report = run(Fencer("alpha", "beta", section).fence())
    assert report.outcome is FAILED
    assert "cannot be used (No such file" in report.reason
    assert agent.told == []


def test_another_attempt_confirms(run: Runner, agent: Agent) -> None:
    agent.answers(off=[NO, OK], status=[NO, IS_OFF])
    assert run(fencer(agent, retries=1).fence()).outcome is CONFIRMED


def test_a_device_that_needs_a_moment(run: Runner, agent: Agent) -> None:
    agent.answers(off=[OK], status=[IS_ON, IS_OFF])
    assert run(fencer(agent, retries=2).fence()).outcome is CONFIRMED


def test_what_once_was_unknown_never_becomes_failed(run: Runner, agent: Agent) -> None:
    """The lost `off` may still be on its way to the device."""
    agent.answers(off=[NO], status=[NO, IS_ON])
    assert run(fencer(agent, retries=1).fence()).outcome is UNKNOWN


def test_attempts_are_bounded(run: Runner, agent: Agent) -> None:
    agent.answers(off=[NO], status=[IS_ON])
    assert run(fencer(agent, retries=2).fence()).outcome is FAILED
    assert agent.actions == ["off", "status"] * 3


@pytest.mark.parametrize(("off", "outcome"), [(OK, CONFIRMED), (NO, UNKNOWN), (answer(2), UNKNOWN)])
def test_an_agent_without_a_status_is_believed_if_told_so(
    run: Runner, agent: Agent, off: Any, outcome: Fenced
) -> None:
    agent.answers(off=[off])
    assert run(fencer(agent, verify="agent").fence()).outcome is outcome
    assert agent.actions == ["off"]


def test_what_the_agent_is_told(
    run: Runner, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = agent.folder / "secret"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    agent.answers(off=[answer(1, "login admin:hunter2 refused")], status=[IS_ON])
    section = {"parameters": {"ip": "10.8.0.2", "lanplus": "1"}, "password_file": str(secret)}
    report = run(fencer(agent, **section).fence())
    assert report.reason == "off: exit code 1 (login admin:*** refused); status: it is on"
    (arguments, text), _ = agent.told
    assert arguments == []
    assert text.splitlines() == [
        "nodename=beta",
        "ip=10.8.0.2",
        "lanplus=1",
        "action=off",
        "password=hunter2",
        "passwd=hunter2",
    ]
    assert "hunter2" not in caplog.text


def test_an_agent_that_talks_without_end(run: Runner, agent: Agent) -> None:
    flood = "print('x' * 5_000_000, flush=True)"
    agent.answers(off=[answer(1, "y" * 500, do=flood)], status=[IS_ON])
    assert len(run(fencer(agent).fence()).reason) < 300


def test_what_an_agent_leaves_running_does_not_hold_its_answer_up(
    run: Runner, agent: Agent
) -> None:
    """It keeps the agent's output open, as ssh's shared connections do."""
    leaves = answer(0, do="import subprocess; subprocess.Popen(['sleep', '30'])")
    agent.answers(off=[leaves], status=[IS_OFF])
    assert run(fencer(agent, timeout="20s").fence()).outcome is CONFIRMED


def test_two_who_ask_at_once_share_one_fencing(run: Runner, agent: Agent) -> None:
    agent.answers(off=[answer(0, do="time.sleep(0.3)")], status=[IS_OFF])

    async def main() -> None:
        shared = fencer(agent)
        reports = await asyncio.gather(shared.fence(), shared.fence())
        assert [report.outcome for report in reports] == [CONFIRMED, CONFIRMED]
        assert agent.actions == ["off", "status"]
        await shared.fence()
        assert agent.actions == ["off", "status"] * 2

    run(main())


def test_it_goes_on_without_the_one_who_asked_until_it_is_closed(run: Runner, agent: Agent) -> None:
    agent.answers(off=[HANGS])

    async def main() -> None:
        shared = fencer(agent)
        asking = asyncio.create_task(shared.fence())
        await eventually((agent.folder / "pid").exists, "the agent runs")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        pid = int((agent.folder / "pid").read_text())
        assert not dead(pid)
        await shared.close()
        await eventually(lambda: dead(pid), "the agent is dead")

    run(main())


def test_nobody_fences_himself(agent: Agent) -> None:
    with pytest.raises(ValueError, match="switch itself off"):
        Fencer("beta", "beta", agent.section())


@pytest.mark.parametrize("code", [0, 2])
def test_monitor(run: Runner, agent: Agent, code: int) -> None:
    agent.answers(monitor=[answer(code)])
    run(fencer(agent).monitor())
    assert agent.actions == ["monitor"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(1, "no route"), "cannot reach its device: exit code 1 (no route)"),
        (HANGS, "no answer within 2 s"),
    ],
)
def test_a_monitor_that_fails(run: Runner, agent: Agent, reply: Any, words: str) -> None:
    agent.answers(monitor=[reply])
    with pytest.raises(FenceError) as caught:
        run(fencer(agent, timeout="2s").monitor())
    assert words in str(caught.value)
    assert "fencing.beta of the host file" in str(caught.value)


def test_the_monitor_of_an_agent_that_is_not_there(run: Runner, agent: Agent) -> None:
    with pytest.raises(FenceError, match="fence_none cannot be run"):
        run(fencer(agent, agent="fence_none").monitor())
