"""Which tests run beside which, and where the fresh histories of this run begin (tests/sim).

`make test` has three workers, for two cores: most tests mostly wait. Pairs of real QEMUs with a
Linux guest share cores badly: so one worker runs them, one test after the other, and comes before
the others in line for a processor. Those run the rest by files: first what happens in real time,
then what computes, which takes the processors that are left.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

SEED = int(os.environ.setdefault("COLOHA_SEED", str(secrets.randbelow(1 << 40))))
"""The same in every process of a run: workers inherit it."""

GUESTS = ("tests/e2e/", "tests/units/test_two_hosts.py")
"""Tests with pairs that run a Linux guest."""
TOLERANT = "tests/e2e/test_output_commit.py"
"""But one whose pair knows no haste."""

PATIENT = frozenset({"core", "sim", "config", "flight", "docs", "test_sabotage.py"})
"""Tests that only compute."""

PATIENCE_S = 600
"""What a test may take that waits for processors, seconds."""
BESIDE_GUESTS, PATIENTLY = 5, 10
"""How nice such tests are to others."""
OWN_FOLDER = pytest.StashKey[str]()

hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """pytest's own folders are deep, and a socket's path has room for 107 bytes."""
    if config.option.basetemp is None:
        config.option.basetemp = config.stash[OWN_FOLDER] = tempfile.mkdtemp(prefix="t-")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What a failure left behind stays."""
    if exitstatus == 0 and OWN_FOLDER in session.config.stash:
        shutil.rmtree(session.config.stash[OWN_FOLDER], ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    return f"simulated histories: seeds from {SEED} (COLOHA_SEED={SEED} repeats them)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("COLOHA_KVM") == "absent":
        terminalreporter.write_line(
            "COLOHA_KVM=absent: of QEMU's versions only the newest was tried, and without KVM"
        )


def part(nodeid: str) -> str:
    """The folder of tests, or the file if it is in none."""
    return Path(nodeid.partition("::")[0]).parts[1]


def hasty(nodeid: str) -> bool:
    return nodeid.startswith(GUESTS) and not nodeid.startswith(TOLERANT)


def patient(nodeid: str) -> bool:
    return part(nodeid) in PATIENT


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a worker all hasty tests, or a file of others, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return "guests" if hasty(nodeid) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Groups:
    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (not hasty(item.nodeid), patient(item.nodeid)))


def pytest_itemcollected(item: pytest.Item) -> None:
    if patient(item.nodeid):
        item.add_marker(pytest.mark.timeout(PATIENCE_S))


def niceness(nodeid: str) -> int:
    if patient(nodeid):
        return PATIENTLY
    return 0 if hasty(nodeid) else BESIDE_GUESTS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Not SCHED_IDLE: one that starves while it holds a file system's lock stops everybody.
        with contextlib.suppress(PermissionError):  # there is a way back for root only
            os.setpriority(os.PRIO_PROCESS, 0, niceness(item.nodeid))
    return (yield)


@pytest.fixture(scope="session")
def first_seed() -> int:
    return SEED
