"""Take one safeguard out of the code, and see a test go red.

Each case is applied to a copy of the checkout, in which the tests named must then fail. It guards
the tests: a safeguard that nobody would miss is not tested.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Sabotage:
    """In `file`, `old` becomes `new`; then `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


CASES = [
    Sabotage(
        "no stop before A is emptied",
        "coloha/qemu/scripts.py",
        'commands = [Command("stop"), *_cycle("a", plan)]\n    empties = range(1,',
        'commands = [*_cycle("a", plan)]\n    empties = range(0,',
        "tests/qemu/test_scripts.py",
    ),
    Sabotage(
        "the commit predicate is not asked",
        "coloha/qemu/scripts.py",
        "    if problem is not None:\n",
        "    if False:\n",
        "tests/qemu/test_scripts.py",
    ),
    Sabotage(
        "the commit predicate is content with any RESUME",
        "coloha/core/commit.py",
        "    if len(stops) != 1:",
        "    if False:",
        "tests/qemu/test_commit.py",
    ),
    Sabotage(
        "the secondary promotes without the witness",
        "coloha/core/secondary.py",
        "    elif _guards(c):\n        own(c)\n",
        "    elif _guards(c):\n        c.start(Script.PROMOTE, PROMOTE_TIMEOUT_S)\n"
        "        c.go(Phase.PROMOTE)\n",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "the primary opens its output without the witness",
        "coloha/core/primary.py",
        "        if own(c, forced=ordered):\n            c.go(Phase.LEAVE)\n",
        "        if True:\n            c.go(Phase.LEAVE)\n",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "heartbeats are believed without their MAC",
        "coloha/core/wire.py",
        "        if not good:\n            raise RejectedError(Reject.MAC)\n",
        "        good = good or keys\n",
        "tests/adapters/test_wire.py",
    ),
    Sabotage(
        "channels are believed without their MAC",
        "coloha/adapters/channel.py",
        "        return hmac.compare_digest(mac, self._mac(direction, body))\n",
        "        return True\n",
        "tests/adapters/test_channel_hostile.py::test_nodes_with_different_keys_do_not_meet",
    ),
    Sabotage(
        "a heartbeat counts twice",
        "coloha/core/wire.py",
        "(nonce == self.proven and sequence <= self.highest)",
        "False",
        "tests/adapters/test_wire.py",
    ),
    Sabotage(
        "heartbeats of an earlier life count",
        "coloha/core/wire.py",
        "if nonce in self.retired or",
        "if",
        "tests/adapters/test_wire.py",
    ),
    Sabotage(
        "return-path whatever the version",
        "coloha/qemu/versions.py",
        "    return version >= RETURN_PATH_SINCE\n",
        "    return True\n",
        "tests/qemu/test_versions.py",
    ),
    Sabotage(
        "no return-path whatever the version",
        "coloha/qemu/versions.py",
        "    return version >= RETURN_PATH_SINCE\n",
        "    return False\n",
        "tests/qemu/test_versions.py",
    ),
    Sabotage(
        "an order cuts a release short",
        "coloha/core/handover.py",
        "return c.script is None or c.script.script is not Script.RELEASE",
        "return True",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "a switchover throws away what the guest did last",
        "coloha/core/handover.py",
        "return epoch_is_over and c.pacing.started_at >= c.ordered_at",
        "return epoch_is_over",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "a VM that is to be alone is protected",
        "coloha/core/primary.py",
        "    elif c.durable.alone:\n",
        "    elif False:\n",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "release without a lease",
        "coloha/core/primary.py",
        "    if c.releasable and c.now < c.pulse.lease_until():",
        "    if c.releasable:",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "a killed QEMU's session is not given up",
        "coloha/core/absorb.py",
        "    if taking_part:\n",
        "    if False:\n",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "any QEMU found running is kept",
        "coloha/core/common.py",
        "    elif _entitled(c):\n",
        "    elif True:\n",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "an adopted QEMU's generation is not remembered",
        "coloha/core/common.py",
        "            c.enter_generation()  # the daemon before",
        "            pass  # the daemon before",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "protection needs no commit",
        "coloha/core/primary.py",
        "    elif c.committed == 0:\n",
        "    elif False:\n",
        "tests/core/test_transcripts.py",
    ),
    Sabotage(
        "a replay believes what was recorded",
        "coloha/flight/replay.py",
        "        if decided != entry.outcome:\n",
        "        if False:\n",
        "tests/flight/test_replay.py::test_a_divergence_says_where_and_what",
    ),
    Sabotage(
        "a field of the state is not recorded",
        "coloha/flight/codec.py",
        "            object.__setattr__(made, name, value)\n",
        "            pass\n",
        "tests/flight/test_codec.py::"
        "test_a_machine_made_from_its_json_goes_on_as_if_nothing_had_been",
    ),
    Sabotage(
        "steps are lost without a fresh state",
        "coloha/runtime/recorder.py",
        "                self._begin(Begins.GAP, now, fresh=True)\n",
        "                self._retry_at = None\n",
        "tests/runtime/test_recorder.py::test_a_slow_disk_leaves_a_gap_not_a_wrong_record",
    ),
]


def copy_of_the_checkout(target: Path) -> None:
    for name in ("coloha", "lab", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)


def run_tests(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def without(folder: Path) -> subprocess.CompletedProcess[str]:
    copy_of_the_checkout(folder)
    return run_tests(folder, *sorted({case.tests for case in CASES}))


def sabotaged(case: Sabotage, folder: Path) -> subprocess.CompletedProcess[str]:
    copy_of_the_checkout(folder)
    target = folder / case.file
    text = target.read_text()
    assert text.count(case.old) == 1, "the safeguard moved: follow it"
    target.write_text(text.replace(case.old, case.new))
    return run_tests(folder, case.tests)


Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every case by name, two at a time: each is a process of its own, and starts slowly."""
    with ThreadPoolExecutor(2) as pool:
        found = {"none": pool.submit(without, tmp_path_factory.mktemp("copy"))}
        for case in CASES:
            found[case.name] = pool.submit(sabotaged, case, tmp_path_factory.mktemp("copy"))
        yield found


def test_without_sabotage_all_is_well(runs: Runs) -> None:
    ran = runs["none"].result()
    assert ran.returncode == 0, ran.stdout[-2000:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sabotage_is_noticed(case: Sabotage, runs: Runs) -> None:
    ran = runs[case.name].result()
    assert ran.returncode == 1, f"nobody noticed:\n{ran.stdout[-2000:]}"
    assert "failed" in ran.stdout.splitlines()[-1]
