"""Scripts that were cut short, by the machine or by the daemon's death, and what comes after."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.core.actions import Script
from coloha.core.events import Adopted, ColoMode, Committed
from coloha.qemu.scripts import buffer_id
from coloha.qemu.steps import Command, ScriptError
from tests.qemu.driver import FOLLOWING, PROTECTED, CutShortError, Driver, primary, secondary
from tests.qemu.model import Qemu
from tests.qemu.relaxed import relaxed

TWO = ("net0", "net1")

EAGER = pytest.mark.parametrize("eager", [False, True])


def cut(driver: Driver, script: Script, commands: int) -> bool:
    """Run a script for so many commands; return whether it was at its end before."""
    try:
        driver.run(script, commands=commands)
    except CutShortError:
        return False
    return True


def armed_in_order(qemu: Qemu) -> bool:
    """Whether all output meets A, then B, and both hold."""
    ids = [each.id for each in qemu.filters]
    pairs = [(buffer_id("b", netdev), buffer_id("a", netdev)) for netdev in TWO]
    return (
        sorted(ids) == sorted(name for pair in pairs for name in pair)
        and all(ids.index(b) < ids.index(a) for b, a in pairs)
        and all(each.on for each in qemu.filters)
    )


def all_in_order(qemu: Qemu) -> bool:
    """Whether the world got every packet, once, in order."""
    return all(packets == list(range(1, qemu.sent + 1)) for packets in qemu.wire.values())


def nothing_uncommitted(qemu: Qemu) -> bool:
    return all(packet <= qemu.committed for packets in qemu.wire.values() for packet in packets)


@EAGER
@pytest.mark.parametrize(
    "before", [(), (Script.ENTER_COLO,), PROTECTED, (*PROTECTED, Script.EPOCH)]
)
def test_leaving_again_after_any_cut(eager: bool, before: tuple[Script, ...]) -> None:
    commands, ended = 0, False
    while not ended:
        driver = primary(*before, eager=eager, netdevs=TWO)
        ended = cut(driver, Script.LEAVE_COLO, commands)
        driver.run(Script.LEAVE_COLO)
        driver.settle()
        assert driver.qemu.status == "running"
        assert driver.qemu.mode == "none"
        assert driver.qemu.filters == []
        assert all_in_order(driver.qemu)
        commands += 1
    assert commands > 5


@EAGER
def test_leaving_after_an_entry_cut_anywhere(eager: bool) -> None:
    commands, ended = 0, False
    while not ended:
        driver = primary(eager=eager, netdevs=TWO)
        ended = cut(driver, Script.ENTER_COLO, commands)
        for _ in range(6):
            for script in (Script.LEAVE_COLO, Script.LEAVE_COLO):
                driver.run(script)
            assert driver.qemu.status == "running"
            driver.qemu.advance()
        assert driver.qemu.mode == "none"
        commands += 1
    assert commands == 5


@EAGER
@pytest.mark.parametrize("stopped", [0, 1, 2, 3])
def test_leaving_after_an_epoch_cut_anywhere(eager: bool, stopped: int) -> None:
    for commands in range(7):
        driver = primary(*PROTECTED, eager=eager, netdevs=TWO)
        cut(driver, Script.EPOCH, commands)
        for _ in range(stopped):
            driver.qemu.advance()
        driver.run(Script.LEAVE_COLO)
        driver.settle()
        assert driver.qemu.status == "running"
        assert all_in_order(driver.qemu)


@EAGER
def test_arming_again_after_any_cut(eager: bool) -> None:
    commands, ended = 0, False
    while not ended:
        driver = primary(Script.ENTER_COLO, eager=eager, netdevs=TWO)
        ended = cut(driver, Script.ARM, commands)
        driver.run(Script.ARM)
        assert armed_in_order(driver.qemu)
        driver.run(Script.ARM)
        assert armed_in_order(driver.qemu)
        commands += 1
    assert commands == 6


@EAGER
def test_arming_after_a_cut_leave(eager: bool) -> None:
    """Were A older than B, B would let go into A, and the next epoch into the world."""
    commands, ended = 0, False
    while not ended:
        driver = primary(*PROTECTED, eager=eager, netdevs=TWO)
        ended = cut(driver, Script.LEAVE_COLO, commands)
        driver.settle()
        driver.run(Script.ARM)
        assert armed_in_order(driver.qemu), commands
        commands += 1


@EAGER
def test_promoting_again_after_any_cut(eager: bool) -> None:
    for things in range(4):
        commands, ended = 0, False
        while not ended:
            driver = secondary(*FOLLOWING, eager=eager, netdevs=TWO)
            ended = cut(driver, Script.PROMOTE, commands)
            for _ in range(things):
                driver.qemu.advance()
            driver.run(Script.PROMOTE)
            assert driver.qemu.status == "running"
            assert driver.qemu.mode == "none"
            assert driver.qemu.filters == []
            assert driver.qemu.announced >= 1
            commands += 1
        assert commands > 5


def test_a_secondary_is_silent_until_it_is_promoted() -> None:
    driver = secondary(*FOLLOWING, netdevs=TWO)
    for _ in range(10):
        driver.qemu.guest_sends()
    assert driver.qemu.sent > 0
    assert driver.qemu.wire == {netdev: [] for netdev in TWO}
    driver.run(Script.PROMOTE)
    driver.qemu.guest_sends()
    assert all(packets[-1] == driver.qemu.sent for packets in driver.qemu.wire.values())


@EAGER
def test_adopting_after_any_cut_holds_everything(eager: bool) -> None:
    for script in (Script.ARM, Script.EPOCH, Script.RELEASE, Script.ADOPT):
        commands, ended = 0, False
        while not ended:
            before = (Script.ENTER_COLO,) if script is Script.ARM else (*PROTECTED, Script.EPOCH)
            driver = primary(*before, eager=eager, netdevs=TWO)
            ended = cut(driver, script, commands)
            assert driver.run(Script.ADOPT) == Adopted(ColoMode.PRIMARY)
            assert armed_in_order(driver.qemu)
            commands += 1


# Output commit, whatever happens

CHANCES = st.one_of(
    st.just("epoch"),
    st.just("guest"),
    st.just("time"),
    st.just("deadman"),
    st.tuples(st.sampled_from(["epoch", "release", "adopt"]), st.integers(0, 7)),
    st.tuples(st.just("cancel"), st.integers(0, 2)),
)
"""A tuple is the daemon's death after so many commands, or a script cut at a wait."""


def lived(driver: Driver, chances: list[str | tuple[str, int]]) -> Iterator[object]:
    """Live through `chances` as the machine does: release right after a commit alone."""
    qemu, committed = driver.qemu, False
    for chance in chances:
        if chance == "guest":
            qemu.guest_sends()
        elif chance == "time":
            qemu.advance()
        elif chance == "deadman":
            qemu.begin_checkpoint()
        elif chance == "epoch":
            committed = isinstance(driver.run(Script.EPOCH), Committed)
            yield chance
            if committed:
                driver.run(Script.RELEASE)
        elif chance[0] == "cancel":
            with_cut(driver, Script.EPOCH, ops=int(chance[1]))
            committed = False
        elif chance[0] != "release" or committed:
            with_cut(driver, Script(chance[0]), commands=int(chance[1]))
            yield chance
            driver.run(Script.ADOPT)
            committed = False
        yield chance


def with_cut(driver: Driver, script: Script, **limits: int) -> None:
    try:
        driver.run(script, **limits)
    except CutShortError:
        return


def protected(eager: bool = False) -> Driver:
    """A primary whose output is held; what it said before needed no commit."""
    driver = primary(*PROTECTED, eager=eager, netdevs=TWO)
    said = max(packets[-1] for packets in driver.qemu.wire.values())
    driver.qemu.committed = max(driver.qemu.committed, said)
    return driver


@relaxed(400)
@given(st.lists(CHANCES, max_size=25), st.booleans())
def test_nothing_is_said_that_the_secondary_does_not_remember(
    chances: list[str | tuple[str, int]], eager: bool
) -> None:
    driver = protected(eager)
    qemu = driver.qemu
    try:
        for _ in lived(driver, chances):
            assert nothing_uncommitted(qemu)
    except ScriptError as error:
        raise AssertionError(f"nothing broke, but {error}") from error
    assert nothing_uncommitted(qemu)
    driver.run(Script.LEAVE_COLO)
    driver.settle()
    assert qemu.status == "running"
    assert all_in_order(qemu)


def test_an_epoch_lets_go_all_that_was_said_before_it() -> None:
    driver = protected()
    for _ in range(5):
        driver.qemu.guest_sends()
    said = driver.qemu.sent
    driver.run(Script.EPOCH)
    assert all(len(packets) < said for packets in driver.qemu.wire.values())
    driver.run(Script.RELEASE)
    assert all(packets[-1] >= said for packets in driver.qemu.wire.values())
    assert nothing_uncommitted(driver.qemu)


def test_the_model_sees_what_leaks() -> None:
    """Emptying A, then B, without a commit must show; the other way round nothing gets out."""
    leaks = 0
    for order in ("ab", "ba"):
        driver = protected()
        driver.qemu.guest_sends()
        for letter in order:
            for value in ("off", "on"):
                path = f"/objects/{buffer_id(letter, 'net0')}"
                arguments = {"path": path, "property": "status", "value": value}
                driver.qemu.execute(Command("qom-set", arguments))
        leaks += not nothing_uncommitted(driver.qemu)
    assert leaks == 1
