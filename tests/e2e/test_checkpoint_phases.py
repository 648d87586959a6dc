"""A crash at each phase of a checkpoint, of either side: a proxy holds the checkpoint there."""

from collections.abc import Iterator

import pytest

from lab.cluster import CHANNEL_PORT
from lab.proxy import PHASES, RunningProxy
from tests.e2e.support import Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Scene, dict[str, RunningProxy]]]:
    """One pair, with a proxy in the way of what comes in on either host."""
    with scene() as made:
        hosts = made.topology.hosts
        proxies = {name: RunningProxy(host, CHANNEL_PORT) for name, host in hosts.items()}
        # The connection there is was made before: the next one goes through the proxy.
        _, secondary = made.wait_protected()
        made.cluster.kill_qemu(secondary)
        made.cluster.wait("unprotected", lambda: not made.cluster.protected())
        yield made, proxies
        made.finish()


@pytest.mark.parametrize("victim", ["primary", "secondary"])
@pytest.mark.parametrize("phase", PHASES)
def test_crash(stage: tuple[Scene, dict[str, RunningProxy]], phase: str, victim: str) -> None:
    made, proxies = stage
    primary, secondary = made.wait_protected()
    made.answers_go_on()
    proxies[secondary].stall(phase)
    made.cluster.kill_qemu(primary if victim == "primary" else secondary)
    proxies[secondary].go_on()
    survivor = secondary if victim == "primary" else primary
    made.wait_promoted(survivor)
    made.answers_go_on()
    assert made.wait_protected()[0] == survivor


@pytest.mark.parametrize("phase", PHASES)
def test_checkpoint_that_never_ends(
    stage: tuple[Scene, dict[str, RunningProxy]], phase: str
) -> None:
    """The stream stands still for good: the primary goes on alone and starts over."""
    made, proxies = stage
    primary, secondary = made.wait_protected()
    before = made.generation()
    proxies[secondary].stall(phase)
    made.cluster.wait("the next generation", lambda: made.generation() > before)
    made.answers_go_on()
    proxies[secondary].go_on()
    assert made.wait_protected() == (primary, secondary)


def test_crash_right_after_the_acknowledgement(
    stage: tuple[Scene, dict[str, RunningProxy]],
) -> None:
    """The acknowledgement is let through, and the primary dies while it releases."""
    made, proxies = stage
    for _ in range(5):
        primary, secondary = made.wait_protected()
        made.answers_go_on(5)
        proxies[secondary].stall("loaded")
        proxies[secondary].go_on()
        made.cluster.kill_qemu(primary)
        made.wait_promoted(secondary)
        made.answers_go_on(5)
