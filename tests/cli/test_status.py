"""`coloha status`: what it prints of every state a pair can be in, and how it exits."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coloha.cli import status as status_module
from coloha.cli.main import main
from coloha.cli.status import render
from coloha.core.phases import Phase
from lab.namespace import CHECKOUT
from tests.adapters.support import PATIENCE_S
from tests.cli.support import FakeDaemon

ESCAPE = "\x1b"
Captured = pytest.CaptureFixture[str]


def pair(phase: str = "protected", **changes: Any) -> dict[str, Any]:
    """A pair as the daemon's status has it; made up."""
    return {
        "pair": "web",
        "peer": "beta",
        "phase": phase,
        "phase_age_s": 61.0,
        "role": "primary",
        "protected": phase in ("protected", "follow"),
        "why_not": None if phase in ("protected", "follow") else "QEMU died",
        "waits_for": None,
        "waits_at_most_s": None,
        "paused": False,
        "generation": 7,
        "record": "protected(7, alpha, beta)",
        "epochs": 1234,
        "mode": "buffer",
        "demanded": None,
        "loaded": None,
        "period_s": 0.05,
        "last_pause_s": 0.0061,
        "committed_age_s": 0.03,
        "held_age_s": 0.021,
        "heartbeat_age_s": 0.043,
        "lease_left_s": 0.3,
        "witness_error": None,
        "qemu": {"run": "p-1f", "pid": 4711, "answered_age_s": 0.01},
        "open_nics": [],
        "disks": None,
        "disks_torn": None,
        "inbox_dropped": 0,
        **changes,
    }


def failed() -> dict[str, Any]:
    """A pair whose pump has never run."""
    return {"pair": "web", "phase": "failed", "protected": False, "why_not": "vm.json is damaged"}


def status(*pairs: dict[str, Any]) -> dict[str, Any]:
    return {"node": "alpha", "version": "1.2.3", "pid": 1, "uptime_s": 7300.0, "pairs": [*pairs]}


def lines(*pairs: dict[str, Any], colours: bool = False) -> list[str]:
    return list(render(status(*pairs), colours=colours))


def test_a_protected_primary() -> None:
    assert lines(pair()) == [
        "node alpha   coloha 1.2.3   up 2 h",
        "",
        "web: protected   (primary, phase protected for 61.0 s)",
        "  this node     runs the VM, checkpoint by checkpoint",
        "  waits for     -",
        "  generation    7, the record says protected(7, alpha, beta)",
        "  epochs        1234 committed, last pause 6.1 ms, period 50 ms",
        "  output        held until committed, oldest 21 ms",
        "  heartbeat     beta heard 43 ms ago",
        "  qemu          pid 4711, run p-1f",
    ]


def test_a_protected_secondary() -> None:
    shown = lines(
        pair(
            "follow",
            role="secondary",
            loaded=99,
            last_pause_s=None,
            held_age_s=None,
        )
    )
    assert "  checkpoints   99 loaded" in shown
    assert not any("epochs" in line or "output" in line for line in shown)


def test_mode_compare_says_what_it_costs() -> None:
    shown = lines(pair(mode="compare", demanded=17))
    assert any(line.startswith("  mode          compare:") and "may lack" in line for line in shown)
    assert "  output        compared; what differs waits for a checkpoint" in shown
    assert "  differences   17 checkpoints that QEMU asked for by itself" in shown
    follower = lines(pair("follow", role="secondary", mode="compare", last_pause_s=None))
    assert any("may lack" in line for line in follower)


def test_a_primary_alone() -> None:
    shown = lines(
        pair(
            "solo",
            waits_for="beta to come back",
            last_pause_s=None,
            held_age_s=None,
            heartbeat_age_s=None,
        )
    )
    assert shown[2:6] == [
        "web: NOT PROTECTED   (primary, phase solo for 61.0 s)",
        "  this node     runs the VM alone",
        "  why not       QEMU died",
        "  waits for     beta to come back",
    ]
    assert "  epochs        1234 committed, last pause -, period 50 ms" in shown
    assert "  output        open" in shown
    assert "  heartbeat     beta not heard yet" in shown


def test_an_unreachable_witness_is_loud() -> None:
    shown = lines(pair(witness_error="/srv/witness hangs: the file system does not answer"))
    assert any("UNREACHABLE: /srv/witness hangs" in line for line in shown)


def test_a_pause_is_loud() -> None:
    assert any("PAUSED by an operator" in line for line in lines(pair(paused=True)))


def test_a_nic_that_is_not_held_is_shown() -> None:
    shown = "\n".join(lines(pair(open_nics=["52:54:00:00:00:02"])))
    assert "52:54:00:00:00:02: never held, nothing is promised there" in shown


def test_the_copy_of_the_disks_is_shown() -> None:
    copying = {
        "copied_bytes": 3 << 20,
        "total_bytes": 12 << 20,
        "bytes_per_s": 1 << 20,
        "left_s": 9,
    }
    shown = "\n".join(lines(pair("sync", disks=copying, disks_torn="they were being copied")))
    assert "25% of 12 MiB copied, 1.0 MiB/s, 9.0 s left at least" in shown
    assert "not whole on this node: they were being copied" in shown
    assert not any("PAUSED" in line for line in lines(pair()))


def test_how_long_it_waits_at_most() -> None:
    shown = lines(pair("solo", waits_for="the pair to calm down", waits_at_most_s=75.0))
    assert "  waits for     the pair to calm down (at most 75.0 s)" in shown


def test_a_failed_pair_has_a_reason_and_nothing_made_up() -> None:
    assert lines(failed())[2:] == [
        "web: NOT PROTECTED   (?, phase failed for -)",
        "  this node     has failed here, and starts over",
        "  why not       vm.json is damaged",
    ]
    later = lines(pair("failed", protected=False, why_not="InvariantError: two voices"))
    assert later[2] == "web: NOT PROTECTED   (primary, phase failed for 61.0 s)"
    assert later[4] == "  why not       InvariantError: two voices"


@pytest.mark.parametrize("phase", [*map(str, Phase), "failed"])
@pytest.mark.parametrize("role", ["primary", "secondary", "none"])
def test_every_state_can_be_shown(phase: str, role: str) -> None:
    nothing = {
        "role": role,
        "last_pause_s": None,
        "held_age_s": None,
        "heartbeat_age_s": None,
        "committed_age_s": None,
        "qemu": {"run": None, "pid": None, "answered_age_s": None},
    }
    for changes in ({"role": role}, nothing):
        shown = lines(pair(phase, **changes))
        assert f"phase {phase} " in shown[2]
        assert ("NOT PROTECTED" in shown[2]) == (phase not in ("protected", "follow"))
        assert "None" not in "\n".join(shown)
        assert ESCAPE not in "\n".join(shown)


def test_several_pairs_are_told_apart() -> None:
    shown = lines(pair(), pair(pair="db", phase="solo"))
    assert [line for line in shown if not line.startswith(" ") and ":" in line] == [
        "web: protected   (primary, phase protected for 61.0 s)",
        "db: NOT PROTECTED   (primary, phase solo for 61.0 s)",
    ]


def test_colours_are_green_and_red_and_end() -> None:
    good, bad = lines(pair(), colours=True)[2], lines(pair("solo"), colours=True)[2]
    assert "\x1b[32m\x1b[1mprotected\x1b[0m" in good
    assert "\x1b[31m\x1b[1mNOT PROTECTED\x1b[0m" in bad


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([], 0),
        ([pair()], 0),
        ([pair(), pair("follow", pair="db")], 0),
        ([pair("solo")], 1),
        ([pair(), pair("solo", pair="db")], 1),
        ([failed()], 1),
    ],
)
def test_the_exit_code_says_whether_all_are_protected(
    tmp_path: Path, capsys: Captured, pairs: list[dict[str, Any]], code: int
) -> None:
    daemon = FakeDaemon(tmp_path)
    daemon.status["pairs"] = pairs
    with daemon.serving():
        assert main(["status", "--config", str(daemon.host_file)]) == code
        printed = capsys.readouterr()
        assert printed.out.splitlines() == list(render(daemon.status, colours=False))
        assert printed.err == ""
        assert main(["status", "--json", "--config", str(daemon.host_file)]) == code
        assert json.loads(capsys.readouterr().out) == daemon.status


def test_one_pair_is_asked_for(tmp_path: Path, capsys: Captured) -> None:
    daemon = FakeDaemon(tmp_path)
    daemon.status["pairs"] = [pair(), pair("solo", pair="db")]
    ask = ["status", "--config", str(daemon.host_file)]
    with daemon.serving():
        assert main([*ask, "web"]) == 0
        assert "db:" not in capsys.readouterr().out
        assert main([*ask, "db"]) == 1
        assert "web:" not in capsys.readouterr().out
        assert main([*ask, "--json", "web"]) == 0
        assert [p["pair"] for p in json.loads(capsys.readouterr().out)["pairs"]] == ["web"]
        assert main([*ask, "none"]) == 1
        assert capsys.readouterr() == ("", "coloha: no pair 'none' on this node\n")


class EnoughError(Exception):
    """The watcher has seen enough."""


def test_watching_goes_on_when_the_daemon_does_not(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be restarting: who watches sees that, and what comes then."""
    daemon = FakeDaemon(tmp_path)
    control, away = tmp_path / "run" / "control.sock", tmp_path / "away.sock"
    looks = []

    class Clock:
        @staticmethod
        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 2:
                control.rename(away)
            elif len(looks) == 4:
                away.rename(control)
            elif len(looks) == 6:
                raise EnoughError

    monkeypatch.setattr(status_module, "time", Clock)
    with daemon.serving(), pytest.raises(EnoughError):
        main(["status", "--watch", "--config", str(daemon.host_file)])
    said = capsys.readouterr()
    assert said.out.count("node alpha") == 4
    assert said.out.count("no daemon answers") == 2
    assert ESCAPE not in said.out


@pytest.mark.parametrize("terminal", [False, True])
def test_colours_are_for_terminals(tmp_path: Path, terminal: bool) -> None:
    daemon = FakeDaemon(tmp_path)
    daemon.status["pairs"] = [pair()]
    command = [sys.executable, "-m", "coloha", "status", "--config", str(daemon.host_file)]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    with daemon.serving():
        done = subprocess.run(command, cwd=CHECKOUT, stdout=theirs, timeout=PATIENCE_S, check=False)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert "protected" in shown
    assert (ESCAPE in shown) == terminal
