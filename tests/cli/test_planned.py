"""Switchover, stop and drain: what they ask of the daemon, wait for, and say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from coloha.cli.main import main
from tests.cli.support import FakeDaemon

Captured = pytest.CaptureFixture[str]


def pair(name: str = "web", **more: object) -> dict[str, Any]:
    """The status of a pair that is protected and runs here."""
    usual = {"pair": name, "peer": "beta", "phase": "protected", "role": "primary"}
    usual |= {"protected": True, "why_not": None, "generation": 4, "qemu": {"run": "p-1"}}  # type: ignore[dict-item]
    return {**usual, **more}


def moved(status: dict[str, Any]) -> None:
    """The VM has changed over, and the pair is whole again."""
    status.update(role="secondary", phase="follow", generation=5)


class Daemon(FakeDaemon):
    """Does what it is ordered, unless the verb is in `stubborn` or the pair in `ignored`; a refusal
    names its reason.
    """

    def __init__(self, folder: Path, *pairs: dict[str, Any]) -> None:
        super().__init__(folder)
        self.status["pairs"] = list(pairs)
        self.stubborn: set[str] = set()
        self.ignored: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.obey = self._obey

    def _obey(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        verb, name = request["verb"], request["pair"]
        if name in self.refusals:
            return {"error": self.refusals[name]}
        known = next(each for each in self.status["pairs"] if each["pair"] == name)
        if verb in self.stubborn or name in self.ignored:
            pass
        elif verb == "failover" and "planned" in request:
            moved(known)
        elif verb == "unprotect":
            known.update(phase="standby", role="none", protected=False, qemu={"run": None})
        elif verb == "stop":
            known.update(phase="off", protected=False, qemu={"run": None})
        return {"ok": {"plan": ["beta runs the VM"], "generation": 4}}

    def call(self, verb: str, *words: str) -> int:
        with self.serving():
            return main([verb, "--config", str(self.host_file), *words])

    def orders(self) -> list[tuple[str, str]]:
        return [(each["verb"], each["pair"]) for each in self.asked if each["verb"] != "status"]


def test_a_switchover_is_carried_out_and_waited_for(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair())
    assert daemon.call("switchover", "web", "--yes") == 0
    said = capsys.readouterr().out
    assert "  1. beta runs the VM\n" in said
    assert "web: beta runs the VM\nweb: protected again after" in said
    planned, order = (each for each in daemon.asked if each["verb"] == "failover")
    assert planned["gently"]
    assert order["gently"]
    assert order["planned"] == 4


@pytest.mark.parametrize("words", [(), ("--yes", "--timeout", "0")])
def test_a_switchover_that_is_not_wanted_or_not_waited_for(
    tmp_path: Path, capsys: Captured, words: tuple[str, ...]
) -> None:
    daemon = Daemon(tmp_path, pair())
    daemon.stubborn = {"failover"}
    assert daemon.call("switchover", "web", *words) == (0 if words else 1)
    assert ("nothing was done" in capsys.readouterr().out) == (not words)


def test_a_switchover_that_does_not_happen(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair())
    daemon.stubborn = {"failover"}
    assert daemon.call("switchover", "web", "--yes", "--timeout", "0.3") == 1
    assert "this node still runs the VM" in capsys.readouterr().out


def test_a_switchover_that_is_refused(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair())
    daemon.refusals = {"web": "only a protected VM can change over"}
    assert daemon.call("switchover", "web", "--yes") == 1
    assert capsys.readouterr().err == "coloha: only a protected VM can change over\n"


@pytest.mark.parametrize("now", [False, True])
def test_a_vm_is_stopped(tmp_path: Path, capsys: Captured, now: bool) -> None:
    daemon = Daemon(tmp_path, pair())
    assert daemon.call("stop", "web", *(["--now"] if now else [])) == 0
    assert "web: off" in capsys.readouterr().out
    assert daemon.asked[0]["hard"] is now


def test_a_guest_that_does_not_heed_its_power_button(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair())
    daemon.stubborn = {"stop"}
    assert daemon.call("stop", "web", "--timeout", "0.3") == 1
    assert "--now does not ask it" in capsys.readouterr().out


def test_a_host_is_drained(tmp_path: Path, capsys: Captured) -> None:
    """What runs here moves, then no secondary stays; what is off stays off."""
    daemon = Daemon(
        tmp_path,
        pair("web"),
        pair("db", role="secondary", phase="follow"),
        pair("old", phase="off", protected=False, qemu={"run": None}),
    )
    assert daemon.call("drain", "--yes") == 0
    assert daemon.orders() == [
        *(("failover", "web"), ("failover", "web")),
        *(("unprotect", "web"), ("unprotect", "db"), ("unprotect", "old")),
    ]
    said = capsys.readouterr().out
    assert "web: beta runs the VM\n" in said
    assert "db: nothing of it runs here" in said


def test_what_cannot_move_stays_and_is_told(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair("web", protected=False, phase="solo", why_not="x"), pair("db"))
    daemon.refusals = {"web": "only a protected VM can change over"}
    assert daemon.call("drain", "--yes") == 1
    said = capsys.readouterr().out
    assert "STAYS HERE, not being protected (x)" in said
    assert "web: stays here: only a protected VM" in said
    assert ("unprotect", "web") not in daemon.orders()
    assert ("unprotect", "db") in daemon.orders()


def test_a_vm_that_does_not_move_does_not_cost_the_others_their_time(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloha.cli.drain.MOVE_S", 0.2)
    daemon = Daemon(tmp_path, pair("db"), pair("web"))
    daemon.ignored = {"db"}
    assert daemon.call("drain", "--yes") == 1
    said = capsys.readouterr().out
    assert "db: stays here (coloha events tells why)" in said
    assert "web: beta runs the VM\n" in said
    assert ("unprotect", "db") not in daemon.orders()


def test_nothing_is_ordered_that_nobody_would_wait_for(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair("db"), pair("web"))
    daemon.ignored = {"db"}
    assert daemon.call("drain", "--yes", "--timeout", "0.3") == 1
    assert "web: stays here: no time was left" in capsys.readouterr().out
    assert [name for _, name in daemon.orders()] == ["db", "db"]


def test_a_secondary_that_does_not_end(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair("db", role="secondary", phase="follow"))
    daemon.stubborn = {"unprotect"}
    assert daemon.call("drain", "--yes", "--timeout", "0.3") == 1
    assert "has not ended within 0.3 s" in capsys.readouterr().out


def test_nothing_is_drained_unasked(tmp_path: Path, capsys: Captured) -> None:
    daemon = Daemon(tmp_path, pair())
    assert daemon.call("drain") == 1
    assert daemon.orders() == []
    assert "nothing was done" in capsys.readouterr().out


def test_a_host_takes_part_again(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, pair("web"), pair("db"))
    assert daemon.call("drain", "--undo") == 0
    assert daemon.orders() == [("protect", "web"), ("protect", "db")]
