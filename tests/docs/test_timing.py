"""docs/timing.md against the code: formulas, relations, presets, constants."""

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from coloha.config import Config, load
from coloha.config.units import format_seconds
from coloha.core.context import Settings
from coloha.core.detector import Detector, Pulse
from coloha.errors import ConfigError
from tests.config.support import HOST, PAIR, write
from tests.docs.gaps import cases, longest_gap
from tests.docs.pages import DOCS, blocks, code, rows, section

PAGE = DOCS / "timing.md"
GAPS = "The longest gap that clients see"
W_S, F_S, R_S, C_S = 0.02, 0.5, 0.1, 0.03
"""What witness, fencing, promotion and a checkpoint take in the simulator at most."""
TIGHT = 0.5
"""A formula says what can happen: in one preset at least, so much of it does."""
FENCED = HOST + "fencing:\n  beta:\n    agent: /bin/true\n"
RELATION = re.compile(r"^- `([^`]+)`", re.MULTILINE)


def presets() -> dict[str, dict[str, Any]]:
    found = [yaml.safe_load(block.text) for block in blocks(PAGE) if block.language == "yaml"]
    return dict(zip(("LAN", "Default", "Slow", "Watchdog"), found, strict=True))


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A pair file with more settings; a witness of another type takes the place of the first."""
    both = dict(base)
    for key, value in more.items():
        if isinstance(value, dict) and "type" not in value:
            both[key] = merged(both.get(key, {}), value)
        else:
            both[key] = value
    return both


def loaded(folder: Path, pair: Mapping[str, Any], host: str = HOST) -> Config:
    # YAML 1.1, which PyYAML reads, takes a MAC address for a number.
    base = yaml.safe_load(PAIR.replace("52:54:00:12:34:56", "'52:54:00:12:34:56'"))
    text = json.dumps(merged(base, pair))
    return load(write(folder, {"coloha.yaml": host, "pairs.d/web.yaml": text}))


def settings(folder: Path, preset: str) -> Settings:
    pair = loaded(folder, presets()[preset]).pairs[0]
    stall, detection = pair.checkpoint.stall_timeout, pair.heartbeat.detection_s
    return Settings(
        pair="vm", me="", peer="", first=False, incarnation=0,
        period_s=pair.checkpoint.period,
        stall_timeout_s=stall,
        interval_s=pair.heartbeat.interval,
        misses=pair.heartbeat.misses,
        restart_hold_s=pair.heartbeat.restart_hold,
        cold_start_after_s=pair.recovery.cold_start_after,
        fence_delay_s=1.5 * stall + detection + F_S,
    )  # fmt: skip


def value(formula: str, s: Settings, **more: float) -> float:
    """What a formula of the page comes to."""
    words = {"P": s.period_s, "S": s.stall_timeout_s, "I": s.interval_s, "M": s.misses}
    words |= {"H": s.restart_hold_s, "Y": s.fence_delay_s, "D": s.interval_s * s.misses}
    words |= {"K": s.interval_s * (s.misses - 3), "W": 0.0, "F": 0.0, "R": 0.0, "C": 0.0} | more
    words["E"] = eval(defined("E"), {"max": max}, words)
    return float(eval(formula, {"max": max}, words))


def defined(letter: str) -> str:
    """The formula in the meaning of a letter."""
    (row,) = [row for row in rows(section(PAGE, "Words")) if row[0] == f"`{letter}`"]
    return str(re.findall(r"`([^`]+)`", row[1])[0])


def formulas() -> dict[str, str]:
    return {fault: code(formula) for fault, formula in rows(section(PAGE, GAPS))}


def test_each_row_is_tried() -> None:
    some = Settings(pair="", me="", peer="", first=False, incarnation=0)
    assert formulas().keys() == cases(some, 1.0).keys()


@pytest.mark.parametrize("fault", formulas())
def test_no_gap_is_longer_than_its_formula(fault: str, tmp_path: Path) -> None:
    shares = []
    for preset in ("LAN", "Default", "Slow"):
        s = settings(tmp_path / preset, preset)
        case = cases(s, s.interval_s * s.misses)[fault]
        longest = longest_gap(s, case)
        bound = value(formulas()[fault], s, A=case.away_s, W=W_S, F=F_S, R=R_S, C=C_S)
        assert longest <= bound, f"{preset}: {longest:.3f} s, by the formula {bound:.3f} s"
        shares.append(longest / bound)
    assert max(shares) > TIGHT, f"never more than {max(shares):.0%} of what the formula says"


def test_detection_reserve_and_lease_are_the_cores(tmp_path: Path) -> None:
    for preset in ("LAN", "Default", "Slow"):
        s = settings(tmp_path / preset, preset)
        detector = Detector(s.interval_s, s.misses, heard_at=0.0)
        assert detector.silent_at() == pytest.approx(value("I * M", s))
        pulse = Pulse(s.interval_s, s.misses, 0)
        pulse.step(0.0)
        pulse.echoed(pulse.number)
        assert pulse.lease_until() == pytest.approx(value("I * (M - 1)", s))
        heartbeat = loaded(tmp_path / preset, presets()[preset]).pairs[0].heartbeat
        assert heartbeat.reserve_s == pytest.approx(value(defined("K"), s))


def test_the_defaults_are_the_models(tmp_path: Path) -> None:
    """The preset called so, and the column of the table of letters."""
    plain, preset = loaded(tmp_path / "a", {}), loaded(tmp_path / "b", presets()["Default"])
    assert plain.pairs == preset.pairs
    pair, agent = plain.pairs[0], loaded(tmp_path / "c", {}, FENCED).host.fencing["beta"]
    said = {row[0]: row[2] for row in rows(section(PAGE, "Words"))}
    assert said["`P`"] == format_seconds(pair.checkpoint.period)
    assert said["`S`"] == format_seconds(pair.checkpoint.stall_timeout)
    beats = pair.heartbeat
    assert said["`I`, `M`"] == f"{format_seconds(beats.interval)}, {beats.misses}"
    assert said["`D`"] == format_seconds(beats.detection_s)
    assert said["`K`"] == format_seconds(beats.reserve_s)
    assert said["`H`"] == format_seconds(beats.restart_hold)
    etcd = {"witness": {"type": "etcd", "endpoints": ["http://10.9.0.3:2379"]}}
    asked = loaded(tmp_path / "d", etcd).pairs[0].witness.timeout
    assert said["`W`"] == f"{format_seconds(pair.witness.timeout)}, etcd {format_seconds(asked)}"
    assert said["`F`"] == format_seconds(agent.deadline_s)
    assert said["`Y`"] == format_seconds(agent.delay)


def test_the_table_of_presets_is_computed(tmp_path: Path) -> None:
    known = formulas() | {"detection `D`": "D", "reserve `K`": "K"}
    table = [row for row in rows(section(PAGE, "Three presets")) if len(row) == 4]
    assert len(table) >= 7
    for name, *cells in table:
        for preset, cell in zip(("LAN", "Default", "Slow"), cells, strict=True):
            s = settings(tmp_path / preset, preset)
            assert in_seconds(cell) == pytest.approx(value(known[name], s)), f"{name}, {preset}"


def in_seconds(cell: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(ms|s)", cell).groups()  # type: ignore[union-attr]
    return float(number) / {"ms": 1000, "s": 1}[unit]


def _witness(**heartbeat: object) -> dict[str, Any]:
    return {"heartbeat": heartbeat, "witness": {"timeout": "1s"}}


def _fencing(delay: str) -> str:
    return FENCED + f"    delay: {delay}\n"


_ALONE = {"witness": {"type": "none"}, "fencing": "required"}
_WATCHED = HOST + "watchdog: {mode: required}\n"

RELATIONS: dict[str, tuple[tuple[dict[str, Any], str], tuple[dict[str, Any], str]]] = {
    "I * M > 0.2": (
        ({"heartbeat": {"interval": "20ms", "misses": 11}}, HOST),
        ({"heartbeat": {"interval": "20ms", "misses": 10}}, HOST),
    ),
    "S >= 4 * P": (
        ({"checkpoint": {"period": "100ms", "stall_timeout": "400ms"}}, HOST),
        ({"checkpoint": {"period": "100ms", "stall_timeout": "399ms"}}, HOST),
    ),
    "cold_start_after >= 2 * (D + W)": (
        ({**_witness(), "recovery": {"cold_start_after": "3s"}}, HOST),
        ({**_witness(), "recovery": {"cold_start_after": "2999ms"}}, HOST),
    ),
    "watchdog.timeout + 0.5 < K": (
        ({"heartbeat": {"interval": "500ms", "misses": 15}}, _WATCHED),
        ({"heartbeat": {"interval": "500ms", "misses": 14}}, _WATCHED),
    ),
    "fencing.NODE.delay > 1.5 * S + D": (
        (_ALONE, _fencing("5001ms")),
        (_ALONE, _fencing("5s")),
    ),
}
"""What must hold, by the page's words: what is accepted, and what is refused just beyond."""


def test_each_relation_is_tried() -> None:
    text = section(PAGE, "What a setting buys and costs")
    assert set(RELATION.findall(text)) == RELATIONS.keys()


@pytest.mark.parametrize("relation", RELATIONS)
def test_what_must_hold(relation: str, tmp_path: Path) -> None:
    good, bad = RELATIONS[relation]
    loaded(tmp_path / "good", *good)
    with pytest.raises(ConfigError):
        loaded(tmp_path / "bad", *bad)


def test_the_watchdogs_preset_is_the_shortest(tmp_path: Path) -> None:
    preset = presets()["Watchdog"]
    loaded(tmp_path / "good", preset, _WATCHED)
    preset["heartbeat"]["misses"] -= 1
    with pytest.raises(ConfigError, match=f"misses: {preset['heartbeat']['misses'] + 1}"):
        loaded(tmp_path / "bad", preset, _WATCHED)


SPANS = {"hours": 3600, "days": 86400, "years": 31557600}


def test_how_often_loss_is_taken_for_death() -> None:
    text = section(PAGE, "What a setting buys and costs")
    table = [row for row in rows(text) if re.match(r"`\d+ms, \d+`|\d+ms, \d+", row[0])]
    assert len(table) == 3
    for name, *cells in table:
        interval_ms, misses = map(int, re.findall(r"\d+", name))
        for share, cell in zip((0.01, 0.05, 0.1), cells, strict=True):
            seconds = interval_ms / 1000 / share**misses
            if cell == "never":
                assert seconds > 1000 * SPANS["years"], name
            else:
                number, span = cell.split()
                assert int(number) == round(seconds / SPANS[span]), f"{name}, {share}: {cell}"


FIXED = list(rows(section(PAGE, "Times that are fixed")))


@pytest.mark.parametrize("row", FIXED, ids=[code(row[2]) for row in FIXED])
def test_fixed_times_are_the_codes(row: list[str]) -> None:
    _, number, place = row
    module, _, name = code(place).rpartition(".")
    assert float(number) == getattr(importlib.import_module(module), name)
