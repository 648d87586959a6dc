"""Metrics, scraped as Prometheus does."""

import contextlib
import dataclasses
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coloha import __version__
from coloha.core.phases import Phase
from coloha.runtime.metrics import Metrics, MqttTotals, PairGauges, Totals
from coloha.runtime.web import View, Web
from tests.adapters.support import PATIENCE_S, Runner

VIEW = View(
    status=lambda: {"node": "alpha", "version": "0", "uptime_s": 1.0, "pairs": []},
    events=tuple,
    pauses=lambda _: (),
    unwell=lambda: None,
    unready=lambda: None,
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def gauges(pair: str, **changes: Any) -> PairGauges:
    return dataclasses.replace(PairGauges(pair, "init", False, 0, 0, True), **changes)


@contextlib.contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[tuple[Metrics, int]]:
    metrics = Metrics()
    web = Web(metrics.app, VIEW)
    web.serve(host, 0)
    assert web.listener is not None
    try:
        yield metrics, web.listener.getsockname()[1]
    finally:
        web.stop()


def fetch(port: int, path: str = "/metrics", host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=PATIENCE_S) as answer:
        text: str = answer.read().decode()
        return text


def scrape(port: int) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(fetch(port))
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_daemon_without_pairs_tells_its_version() -> None:
    with serving() as (_, port):
        samples = scrape(port)
    assert value(samples, "coloha_build_info", version=__version__) == 1
    assert not [name for name, _ in samples if name.startswith("coloha_pair")]


def test_every_pair_is_there_with_its_state() -> None:
    with serving() as (metrics, port):
        metrics.pairs = lambda: [
            gauges("vm", phase=Phase.PROTECTED, protected=True, generation=7, committed=1234),
            gauges("db", phase="failed", generation=2**40, witness_reachable=False),
        ]
        samples = scrape(port)
    assert value(samples, "coloha_pair_phase", pair="vm", phase="protected") == 1
    assert value(samples, "coloha_pair_phase", pair="db", phase="failed") == 1
    assert value(samples, "coloha_pair_protected", pair="vm") == 1
    assert value(samples, "coloha_pair_protected", pair="db") == 0
    assert value(samples, "coloha_pair_generation", pair="vm") == 7
    assert value(samples, "coloha_pair_generation", pair="db") == 2**40
    assert value(samples, "coloha_pair_session_commits", pair="vm") == 1234
    assert value(samples, "coloha_pair_witness_reachable", pair="vm") == 1
    assert value(samples, "coloha_pair_witness_reachable", pair="db") == 0


def test_what_happens_is_counted() -> None:
    with serving() as (metrics, port):
        rejected = {"replay": 3, "mac": 1}
        metrics.totals = lambda: Totals(rejected, 5, 6, 7, 8)
        for seconds in (0.003, 0.004, 0.07, 9.0):
            metrics.pause("vm", seconds)
        metrics.occurred("vm", "failover")
        metrics.occurred("vm", "failover")
        metrics.occurred("db", "failover")
        metrics.fenced("beta", "unknown")
        samples = scrape(port)
        rejected["replay"] = 4
        assert value(scrape(port), "coloha_heartbeats_rejected_total", reason="replay") == 4
    assert value(samples, "coloha_heartbeats_rejected_total", reason="replay") == 3
    assert value(samples, "coloha_heartbeats_rejected_total", reason="mac") == 1
    assert value(samples, "coloha_heartbeats_unsent_total") == 5
    assert value(samples, "coloha_channels_rejected_total") == 6
    assert value(samples, "coloha_events_lost_total") == 7
    assert value(samples, "coloha_steps_unrecorded_total") == 8
    assert value(samples, "coloha_occurrences_total", pair="vm", kind="failover") == 2
    assert value(samples, "coloha_occurrences_total", pair="db", kind="failover") == 1
    assert value(samples, "coloha_fence_total", node="beta", outcome="unknown") == 1
    pauses = "coloha_checkpoint_pause_seconds"
    assert value(samples, f"{pauses}_count", pair="vm") == 4
    assert value(samples, f"{pauses}_sum", pair="vm") == pytest.approx(9.077)
    assert value(samples, f"{pauses}_bucket", pair="vm", le="0.005") == 2
    assert value(samples, f"{pauses}_bucket", pair="vm", le="5.0") == 3
    assert value(samples, f"{pauses}_bucket", pair="vm", le="+Inf") == 4


def everything() -> str:
    """What Prometheus scrapes of a daemon that has something to tell of every metric."""
    with serving() as (metrics, port):
        metrics.pairs = lambda: [gauges("vm", demanded=2, heartbeat_age_s=0.1)]
        metrics.totals = lambda: Totals(
            {"mac": 1}, mqtt=MqttTotals(True, 1, 2, 3), hooks={("page", "ok"): 4}
        )
        metrics.pause("vm", 0.1)
        metrics.commit("vm", 0.1)
        metrics.failover("vm", 0.1)
        metrics.heartbeat("vm", 0.1)
        metrics.script("vm", "epoch", 0.1)
        metrics.lag(0.001)
        metrics.occurred("vm", "failover")
        metrics.fenced("beta", "confirmed")
        return fetch(port)


def test_what_alerts_ask_for_is_counted_from_0_on() -> None:
    """Prometheus takes a counter that appears for one that did not grow."""
    with serving() as (metrics, port):
        metrics.expect("vm")
        metrics.expect_fencing("beta")
        samples = scrape(port)
    assert value(samples, "coloha_occurrences_total", pair="vm", kind="promoted") == 0
    assert value(samples, "coloha_fence_total", node="beta", outcome="unknown") == 0


def test_who_is_told_is_counted_if_anybody_is() -> None:
    with serving() as (metrics, port):
        assert not [name for name, _ in scrape(port) if "mqtt" in name or "hook" in name]
        hooks = {("page", "ok"): 3, ("page", "timeout"): 1}
        metrics.totals = lambda: Totals(mqtt=MqttTotals(True, 5, 6, 7), hooks=hooks)
        samples = scrape(port)
    assert value(samples, "coloha_mqtt_connected") == 1
    assert value(samples, "coloha_mqtt_sent_total") == 5
    assert value(samples, "coloha_mqtt_waiting") == 6
    assert value(samples, "coloha_mqtt_dropped_total") == 7
    assert value(samples, "coloha_hook_runs_total", hook="page", outcome="timeout") == 1


def test_names_and_help_are_as_prometheus_wants_them() -> None:
    families = list(text_string_to_metric_families(everything()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {name for name in names if not name.endswith("_created")} == {
        "coloha_build_info",
        "coloha_channels_rejected",
        "coloha_checkpoint_pause_seconds",
        "coloha_commit_delay_seconds",
        "coloha_events_lost",
        "coloha_failover_seconds",
        "coloha_fence",
        "coloha_heartbeat_interval_seconds",
        "coloha_heartbeats_rejected",
        "coloha_heartbeats_unsent",
        "coloha_hook_runs",
        "coloha_loop_lag_seconds",
        "coloha_mqtt_connected",
        "coloha_mqtt_dropped",
        "coloha_mqtt_sent",
        "coloha_mqtt_waiting",
        "coloha_occurrences",
        "coloha_pair_alone",
        "coloha_pair_disk_bytes_left",
        "coloha_pair_generation",
        "coloha_pair_heartbeat_age_seconds",
        "coloha_pair_inbox_dropped",
        "coloha_pair_output_held_seconds",
        "coloha_pair_phase",
        "coloha_pair_protected",
        "coloha_pair_session_demanded",
        "coloha_pair_step_seconds",
        "coloha_pair_session_commits",
        "coloha_pair_witness_reachable",
        "coloha_qmp_seconds",
        "coloha_pair_paused",
        "coloha_steps_unrecorded",
    }
    for family in families:
        assert family.name.startswith("coloha_")
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        assert family.samples


def test_it_is_served_while_the_event_loop_is_stuck(run: Runner) -> None:
    async def main() -> None:
        with serving() as (metrics, port):
            metrics.pairs = lambda: [gauges("vm")]
            found: list[Samples] = []
            scraper = threading.Thread(target=lambda: found.append(scrape(port)))
            scraper.start()
            scraper.join(PATIENCE_S)  # the event loop stands still until then
            assert not scraper.is_alive()
            assert value(found[0], "coloha_pair_protected", pair="vm") == 0

    run(main())


def test_a_client_that_stays_silent_holds_up_nobody() -> None:
    with serving() as (_, port):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        silent[0].sendall(b"GET /metr")
        assert "coloha_build_info" in fetch(port)
        # Nor does it hold up the end.
    assert until_free(port)
    for one in silent:
        one.close()


def broken() -> Totals:
    raise ZeroDivisionError("a bug")


def until_free(port: int) -> bool:
    """Whether somebody else can serve there, before long."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        again = Web(Metrics().app, VIEW)
        with contextlib.suppress(OSError):
            again.serve("127.0.0.1", port)
            again.stop()
            return True
        time.sleep(0.02)
    return False


def test_it_goes_on_after_a_scrape_that_failed() -> None:
    with serving() as (metrics, port):
        metrics.totals = broken
        with pytest.raises(OSError, match="500"):
            fetch(port)
        metrics.totals = Totals
        assert "coloha_build_info" in fetch(port)


def test_an_address_in_use_is_an_error() -> None:
    with serving() as (_, port), pytest.raises(OSError, match="in use"):
        Web(Metrics().app, VIEW).serve("127.0.0.1", port)


def test_stopping_frees_the_port_and_may_be_all_that_is_done() -> None:
    Web(Metrics().app, VIEW).stop()
    with serving() as (_, port):
        pass
    assert until_free(port)
