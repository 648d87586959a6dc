"""The scripts, against a model of QEMU: which commands, in which order, and what else they do."""

import itertools
from collections.abc import Iterable

import pytest

from coloha.core.actions import Script
from coloha.core.commit import Message
from coloha.core.events import Adopted, ColoMode, Committed, Failure, Kept, Role
from coloha.qemu.scripts import DEADMAN_MS, HOLD_US, Plan, buffer_id, sink_id, write
from coloha.qemu.steps import Call, Command, ScriptError, Tape
from tests.qemu.driver import FOLLOWING, PROTECTED, Driver, primary, secondary, short
from tests.qemu.model import AbortError

TWO = ("net0", "net1")

START: dict[Script, tuple[Role, tuple[Script, ...]]] = {
    Script.ADOPT: (Role.PRIMARY, PROTECTED),
    Script.CHECK: (Role.PRIMARY, ()),
    Script.ENTER_COLO: (Role.PRIMARY, ()),
    Script.ARM: (Role.PRIMARY, (Script.ENTER_COLO,)),
    Script.EPOCH: (Role.PRIMARY, PROTECTED),
    Script.RELEASE: (Role.PRIMARY, (*PROTECTED, Script.EPOCH)),
    Script.LEAVE_COLO: (Role.PRIMARY, PROTECTED),
    Script.ACCEPT_COLO: (Role.SECONDARY, ()),
    Script.AWAIT_COLO: (Role.SECONDARY, (Script.ACCEPT_COLO,)),
    Script.PROMOTE: (Role.SECONDARY, FOLLOWING),
    Script.POWER_DOWN: (Role.PRIMARY, PROTECTED),
}
"""Where each script usually begins."""

assert set(START) == set(Script)


def at_start(script: Script, *, eager: bool = False, netdevs: tuple[str, ...] = TWO) -> Driver:
    role, before = START[script]
    made = primary if role is Role.PRIMARY else secondary
    return made(*before, eager=eager, netdevs=netdevs)


def said(driver: Driver) -> list[str]:
    return [short(command) for command in driver.qemu.executed]


def failing(driver: Driver, script: Script) -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        driver.run(script)
    return caught.value


# What each script says


def test_epoch() -> None:
    driver = at_start(Script.EPOCH)
    result = driver.run(Script.EPOCH)
    assert isinstance(result, Committed)
    assert said(driver) == [
        "stop",
        *("hold-a-net0 off", "hold-a-net0 on", "hold-a-net1 off", "hold-a-net1 on"),
        "trigger",
    ]
    calls = [op for op in driver.ops if isinstance(op, Call)]
    assert len(calls) == 1, "one write: nothing of the daemon's slowness gets in between"


def test_epoch_of_a_vm_without_network() -> None:
    driver = at_start(Script.EPOCH, netdevs=())
    assert isinstance(driver.run(Script.EPOCH), Committed)
    assert said(driver) == ["stop", "trigger"]


def test_an_epochs_pause_is_from_stop_to_resume() -> None:
    tape = Tape()
    steps = write(Script.EPOCH, Plan(("net0",), return_path=True), 1.0, tape)
    call = next(steps)
    assert isinstance(call, Call)
    tape.messages += [Message("NOISE", 1.0), Message("STOP", 2.0)]
    replies = [Message(command.name, 2.1, reply=True) for command in call.commands]
    tape.messages += [*replies, Message("RESUME", 7.5)]
    steps.send(replies)
    with pytest.raises(StopIteration) as end:
        steps.send(tape.next_event(frozenset({"RESUME"})))
    assert end.value.value == Committed(pause_s=5.5)


def test_release() -> None:
    driver = at_start(Script.RELEASE)
    driver.run(Script.RELEASE)
    assert said(driver) == [
        *("hold-b-net0 off", "hold-b-net0 on", "hold-b-net1 off", "hold-b-net1 on"),
    ]
    assert len(driver.ops) == 1


def test_arm_makes_b_before_a() -> None:
    driver = at_start(Script.ARM)
    driver.run(Script.ARM)
    assert said(driver) == [
        "qom-list",
        *("add hold-b-net0", "add hold-a-net0", "add hold-b-net1", "add hold-a-net1"),
    ]
    added = [dict(c.arguments) for c in driver.qemu.executed if c.name == "object-add"]
    for properties in added:
        assert properties["queue"] == "rx"
        assert properties["status"] == "on"
        assert properties["interval"] == HOLD_US


def test_the_buffers_hold_an_hour_by_themselves() -> None:
    assert 3600 * 10**6 < HOLD_US < 2**32


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("script", [Script.ENTER_COLO, Script.ACCEPT_COLO])
def test_capabilities(script: Script, return_path: bool) -> None:
    driver = at_start(script)
    driver.plan = Plan(TWO, return_path)
    driver.run(script)
    first = driver.qemu.executed[0]
    assert first.name == "migrate-set-capabilities"
    listed = first.arguments["capabilities"]
    assert isinstance(listed, list)
    assert all(entry["state"] is True for entry in listed)
    named = {entry["capability"] for entry in listed}
    assert named == {"x-colo", "events"} | ({"return-path"} if return_path else set())


def test_enter_colo() -> None:
    driver = at_start(Script.ENTER_COLO)
    driver.run(Script.ENTER_COLO)
    assert said(driver) == ["migrate-set-capabilities", "migrate-set-parameters", "migrate"]
    parameters = driver.qemu.executed[1].arguments
    assert parameters["x-checkpoint-delay"] == DEADMAN_MS
    assert driver.qemu.status == "running"


def test_accept_and_await_colo() -> None:
    driver = at_start(Script.ACCEPT_COLO)
    driver.run(Script.ACCEPT_COLO)
    assert said(driver) == ["migrate-set-capabilities", "migrate-incoming"]
    driver.run(Script.AWAIT_COLO)
    assert driver.qemu.mode == "secondary"
    assert driver.qemu.status == "running"


def test_leave_colo() -> None:
    driver = at_start(Script.LEAVE_COLO)
    driver.run(Script.LEAVE_COLO)
    ending, buffers, waiting = split(said(driver), "x-colo-lost-heartbeat", "del hold-a-net1")
    assert ending == ["query-yank!", "yank!", "query-colo-status", "x-colo-lost-heartbeat"]
    assert buffers == [
        *("qom-list", "del hold-b-net0", "del hold-b-net1", "del hold-a-net0", "del hold-a-net1")
    ]
    assert set(waiting) == {"query-migrate", "query-status"}, "and no cont: it was not paused"
    assert driver.qemu.filters == []


def split(listed: list[str], *ends: str) -> list[list[str]]:
    """Cut a list behind each of these."""
    places = [0, *(listed.index(end) + 1 for end in ends), len(listed)]
    return [listed[start:stop] for start, stop in itertools.pairwise(places)]


def test_leave_colo_resumes_a_guest_that_an_epoch_stopped() -> None:
    driver = primary()
    driver.qemu.execute(Command("stop"))
    driver.run(Script.LEAVE_COLO)
    assert "cont" in said(driver)
    assert driver.qemu.status == "running"


def test_promote() -> None:
    driver = at_start(Script.PROMOTE)
    driver.run(Script.PROMOTE)
    ending, waiting, opening = split(said(driver), "x-colo-lost-heartbeat", "qom-list")
    assert ending == [
        *("query-yank!", "yank!", "query-colo-status", "query-status", "x-colo-lost-heartbeat")
    ]
    assert set(waiting) == {"query-colo-status", "query-status", "qom-list"}
    assert opening == ["del sink-net0", "del sink-net1", "announce-self"]
    assert driver.qemu.status == "running"
    assert driver.qemu.filters == []


def cut_while_loading(*then: str) -> Driver:
    """A secondary with a checkpoint that has arrived; `then` is what it does after the yank."""
    driver = at_start(Script.PROMOTE)
    qemu = driver.qemu
    qemu.status = "colo"
    steps = {
        "nothing": lambda: None,
        "load": lambda: setattr(qemu, "status", "running"),
        "spoil": lambda: setattr(qemu, "bad", True),
        "exit": qemu.leave_colo,
    }
    qemu.at_yank = [steps[name] for name in then]
    return driver


@pytest.mark.parametrize("then", [("load", "exit"), ("nothing", "load"), ("exit",), ()])
def test_promote_waits_for_the_checkpoint_under_way(then: tuple[str, ...]) -> None:
    """It loads, or was cut short; and COLO_EXIT may have come before anyone listened."""
    driver = cut_while_loading(*then)
    driver.run(Script.PROMOTE)
    assert driver.qemu.status == "running"
    assert said(driver).count("x-colo-lost-heartbeat") == 1


@pytest.mark.parametrize("then", [("spoil", "exit"), ("nothing", "nothing", "spoil")])
def test_a_copy_that_is_spoilt_after_the_stream_is_cut_is_not_promoted(
    then: tuple[str, ...],
) -> None:
    driver = cut_while_loading(*then)
    assert failing(driver, Script.PROMOTE).failure is Failure.BROKEN
    assert "x-colo-lost-heartbeat" not in said(driver)
    assert driver.qemu.status == "colo"


def test_check() -> None:
    driver = at_start(Script.CHECK)
    driver.run(Script.CHECK)
    assert said(driver) == ["query-status"]


def test_adopt_a_primary_holds_first() -> None:
    driver = at_start(Script.ADOPT)
    for each in driver.qemu.filters:
        each.on = False
    assert driver.run(Script.ADOPT) == Adopted(ColoMode.PRIMARY)
    assert all(each.on for each in driver.qemu.filters)
    switched = [line for line in said(driver) if line.endswith(" on")]
    assert switched == [f"{buffer_id(x, net)} on" for net in TWO for x in "ba"]


@pytest.mark.parametrize(
    ("driver", "mode"), [(primary(), "none"), (secondary(*FOLLOWING), "secondary")]
)
def test_adopting_anything_else_changes_nothing(driver: Driver, mode: str) -> None:
    assert driver.run(Script.ADOPT) == Adopted(ColoMode(mode))
    assert all(line.startswith("query-") for line in said(driver))


def test_adopting_a_primary_that_is_not_armed_yet() -> None:
    """The daemon died between the end of the first copy and the making of the buffers."""
    driver = primary(Script.ENTER_COLO, netdevs=TWO)
    assert driver.run(Script.ADOPT) == Adopted(ColoMode.PRIMARY)


@pytest.mark.parametrize("made", [1, 2, 3])
def test_adopting_a_primary_that_is_half_armed(made: int) -> None:
    driver = primary(*PROTECTED, netdevs=TWO)
    del driver.qemu.filters[made:]
    assert driver.run(Script.ADOPT) == Adopted(ColoMode.PRIMARY)


# The window in which QEMU aborts


@pytest.mark.parametrize("eager", [False, True])
def test_the_delay_is_set_before_colo_begins(eager: bool) -> None:
    """After that the model would abort, as QEMU does, until it is in COLO."""
    driver = primary(eager=eager)
    driver.run(Script.ENTER_COLO)
    names = said(driver)
    delays = [
        place for place, c in enumerate(driver.qemu.executed) if "x-checkpoint-delay" in c.arguments
    ]
    assert len(delays) == 1
    assert delays[0] < names.index("migrate")


def in_the_window() -> Driver:
    """A primary that said MIGRATION colo, and never comes to RESUME."""
    driver = primary(netdevs=TWO)
    driver.qemu.entering.pop()
    assert failing(driver, Script.ENTER_COLO).failure is Failure.STALLED
    assert driver.qemu.mode == "primary"
    driver.qemu.executed.clear()
    return driver


@pytest.mark.parametrize("script", [Script.ADOPT, Script.CHECK, Script.LEAVE_COLO])
def test_what_may_follow_a_stalled_entry_does_not_set_the_delay(script: Script) -> None:
    driver = in_the_window()
    driver.run(script)
    assert "trigger" not in said(driver)
    assert "migrate-set-parameters" not in said(driver)


def test_the_model_aborts_in_the_window() -> None:
    with pytest.raises(AbortError):
        in_the_window().run(Script.EPOCH)


# How scripts fail


def commands_of(script: Script) -> Iterable[str]:
    driver = at_start(script)
    driver.run(script)
    return dict.fromkeys(command.name for command in driver.qemu.executed)


REFUSALS = [(script, name) for script in Script for name in commands_of(script)]


@pytest.mark.parametrize(("script", "name"), REFUSALS)
def test_a_refused_command_is_told(script: Script, name: str) -> None:
    driver = at_start(script)
    driver.qemu.refuse[name] = "not today"
    if script is Script.EPOCH:
        if name == "migrate-set-parameters":  # no checkpoint was begun, none will end
            assert failing(driver, script).failure is Failure.STALLED
        else:
            result = driver.run(script)
            assert isinstance(result, Kept)
            assert result.reason == f"{name}: not today"
        return
    error = failing(driver, script)
    assert error.failure is Failure.REFUSED
    assert error.reason == f"{name}: not today"


@pytest.mark.parametrize(("script", "name"), REFUSALS)
def test_silence_ends_a_script(script: Script, name: str) -> None:
    driver = at_start(script)
    driver.silent = name
    assert failing(driver, script).failure is Failure.SILENT


@pytest.mark.parametrize(
    ("script", "name", "error"),
    [
        (Script.LEAVE_COLO, "yank", "Instance not found"),
        (Script.PROMOTE, "yank", "Instance not found"),
    ],
)
def test_refusals_that_mean_it_is_done_already(script: Script, name: str, error: str) -> None:
    driver = at_start(script)
    driver.qemu.refuse[name] = error
    driver.run(script)


@pytest.mark.parametrize("script", [Script.LEAVE_COLO, Script.PROMOTE])
def test_a_failover_that_is_under_way_already(script: Script) -> None:
    driver = at_start(script)
    driver.qemu.execute(Command("x-colo-lost-heartbeat"))
    driver.run(script)
    assert driver.qemu.mode == "none"
    assert driver.qemu.status == "running"


@pytest.mark.parametrize("script", [Script.ENTER_COLO, Script.AWAIT_COLO])
@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("COLO_EXIT", {"mode": "primary", "reason": "error"}),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}),
        ("MIGRATION", {"status": "failed"}),
        ("MIGRATION", {"status": "completed"}),
        ("MIGRATION", {"status": "cancelled"}),
    ],
)
@pytest.mark.parametrize("at", [1, 2])
def test_a_first_copy_that_comes_to_nothing(
    script: Script, event: str, data: object, at: int
) -> None:
    driver = at_start(script)
    qemu = driver.qemu
    arrivals = qemu.entering if script is Script.ENTER_COLO else qemu.coming
    arrivals[at:] = [lambda: qemu.say(event, data)]
    error = failing(driver, script)
    assert error.failure is Failure.BROKEN
    assert event in error.reason


@pytest.mark.parametrize("event", ["COLO_EXIT", "SHUTDOWN"])
def test_an_epoch_that_colo_does_not_survive(event: str) -> None:
    driver = at_start(Script.EPOCH)
    qemu = driver.qemu
    qemu.coming.append(lambda: qemu.say(event))
    error = failing(driver, Script.EPOCH)
    assert error.failure is Failure.BROKEN
    assert event in error.reason


def test_an_epoch_without_an_acknowledgement() -> None:
    driver = at_start(Script.EPOCH)
    driver.qemu.secondary_lives = False
    assert failing(driver, Script.EPOCH).failure is Failure.STALLED


@pytest.mark.parametrize("eager", [False, True])
def test_an_epoch_amid_another_checkpoint_is_kept(eager: bool) -> None:
    """The next one commits, even if it begins at once. `eager`: the other one ends before all
    commands are executed, so that the one asked for comes after it.
    """
    driver = at_start(Script.EPOCH, eager=eager)
    driver.qemu.begin_checkpoint()
    driver.qemu.advance()
    result = driver.run(Script.EPOCH)
    assert isinstance(result, Kept)
    assert ("before every command" in result.reason) == eager
    assert isinstance(driver.run(Script.EPOCH), Committed)


def test_an_epoch_amid_two_other_checkpoints() -> None:
    """Both end before all commands are executed."""
    driver = at_start(Script.EPOCH, eager=True)
    qemu = driver.qemu
    qemu.begin_checkpoint()
    qemu.coming *= 2
    assert isinstance(driver.run(Script.EPOCH), Kept)
    assert isinstance(driver.run(Script.EPOCH), Committed)


def test_a_late_checkpoint_that_does_not_end() -> None:
    driver = at_start(Script.EPOCH, eager=True)
    qemu = driver.qemu
    qemu.begin_checkpoint()
    qemu.advance()
    load = qemu.coming.pop()
    qemu.coming += [load, lambda: setattr(qemu, "secondary_lives", False)]
    assert failing(driver, Script.EPOCH).failure is Failure.STALLED


# Races with QEMU


@pytest.mark.parametrize("already", [0, 1, 2, 3])
def test_the_secondary_is_quicker_than_the_script_that_waits_for_it(already: int) -> None:
    driver = secondary(Script.ACCEPT_COLO)
    for _ in range(already):
        driver.qemu.advance()
    driver.run(Script.AWAIT_COLO)
    assert driver.qemu.status == "running"


@pytest.mark.parametrize("script", [Script.LEAVE_COLO, Script.PROMOTE])
@pytest.mark.parametrize("eager", [False, True])
def test_failover_ends_with_a_running_guest(script: Script, eager: bool) -> None:
    driver = at_start(script, eager=eager)
    driver.run(script)
    assert driver.qemu.status == "running"
    assert driver.qemu.mode == "none"


def test_a_secondary_before_colo_has_no_vm_to_become() -> None:
    driver = secondary(Script.ACCEPT_COLO)
    driver.qemu.advance()
    error = failing(driver, Script.PROMOTE)
    assert error.failure is Failure.REFUSED
    assert "x-colo-lost-heartbeat" not in said(driver)
    assert {each.id for each in driver.qemu.filters} == {sink_id("net0")}
