"""What is measured of the events and actions of a pair."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coloha.core.actions import RunScript, Script
from coloha.core.events import Committed, ScriptDone
from coloha.runtime.metrics import Metrics
from coloha.runtime.timings import Timings
from tests.runtime.test_metrics import fetch, serving


def measured(metrics: Metrics, port: int) -> dict[str, tuple[float, float]]:
    """The count and the sum of each histogram, by its name and labels."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(fetch(port)):
        for sample in family.samples:
            name, _, what = sample.name.rpartition("_")
            if what in ("count", "sum"):
                key = " ".join([name, *sample.labels.values()])
                found.setdefault(key, {})[what] = sample.value
    return {key: (each["count"], each["sum"]) for key, each in found.items() if each["count"]}


def test_an_epoch_is_measured_from_its_begin_to_its_release() -> None:
    with serving() as (metrics, port):
        timings = Timings("web", metrics)
        timings.started(RunScript(1, Script.EPOCH, 1.0), 10.0)
        timings.seen(ScriptDone(1, Committed(0.004)), 10.03)
        timings.started(RunScript(2, Script.RELEASE, 1.0), 10.03)
        timings.seen(ScriptDone(2), 10.05)
        seen = measured(metrics, port)
    assert seen["coloha_commit_delay_seconds web"] == pytest.approx((1, 0.05))
    assert seen["coloha_checkpoint_pause_seconds web"] == pytest.approx((1, 0.004))
    assert seen["coloha_qmp_seconds web epoch"] == pytest.approx((1, 0.03))
    assert seen["coloha_qmp_seconds web release"] == pytest.approx((1, 0.02))


def test_an_epoch_that_was_cut_short_is_not_measured() -> None:
    with serving() as (metrics, port):
        timings = Timings("web", metrics)
        timings.started(RunScript(1, Script.EPOCH, 1.0), 10.0)
        timings.started(RunScript(2, Script.LEAVE_COLO, 1.0), 10.5)
        timings.seen(ScriptDone(1, None), 10.6)  # it comes too late
        timings.started(RunScript(3, Script.CHECK, 1.0), 11.0)
        timings.seen(ScriptDone(3), 11.5)
        seen = measured(metrics, port)
    assert seen == {"coloha_qmp_seconds web check": pytest.approx((1, 0.5))}


def test_a_failover_is_measured_once() -> None:
    with serving() as (metrics, port):
        timings = Timings("web", metrics)
        timings.told("promoted", 1.0)
        timings.told("claimed", 2.0)
        timings.told("promoted", 2.25)
        timings.told("promoted", 9.0)
        seen = measured(metrics, port)
    assert seen == {"coloha_failover_seconds web": (1, 0.25)}
