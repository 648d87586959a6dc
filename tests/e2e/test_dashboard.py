"""A real Prometheus that watches a real pair: every panel and every alert has an answer."""

import contextlib
import http.client
import json
import re
import statistics
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lab.assets import load_assets
from lab.namespace import CHECKOUT, wait_until
from lab.topology import Host
from tests.e2e.support import Scene, on_pair

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

DASHBOARD = json.loads((CHECKOUT / "etc" / "grafana" / "coloha.json").read_text())
EXAMPLE = CHECKOUT / "etc" / "prometheus" / "prometheus.yml"
RULES = CHECKOUT / "etc" / "prometheus" / "coloha.rules.yml"
PORT = 9090
TURNS, TURN_S = 3, 2.5
USUALLY_EMPTY = ("coloha_fence_total", "coloha_pair_disk_bytes_left > 0")
"""What a pair tells only once it has fenced, or while it copies disks."""


@contextlib.contextmanager
def prometheus(stage: Scene, host: Host) -> Iterator[Callable[[str], list[Any]]]:
    """Run it on a host, with the shipped configuration but for addresses; yield how to ask it."""
    folder = stage.topology.directory / "prometheus"
    folder.mkdir()
    made = yaml.safe_load(EXAMPLE.read_text())
    made["global"] = {"scrape_interval": "250ms", "evaluation_interval": "1s"}
    addresses = [f"{each.replication_ip}:9770" for each in stage.topology.hosts.values()]
    made["scrape_configs"][0]["static_configs"][0]["targets"] = addresses
    (folder / "prometheus.yml").write_text(yaml.safe_dump(made))
    (folder / "coloha.rules.yml").write_text(RULES.read_text())
    argv: list[str | Path] = [load_assets().prometheus, f"--config.file={folder}/prometheus.yml"]
    argv += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{PORT}"]
    with (folder / "log").open("w") as log:
        process = host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ask(query: str) -> list[Any]:
        words = urllib.parse.urlencode({"query": query})
        place = f"/api/v1/query?{words}"
        answer = json.loads(host.inside(lambda: _fetched(place), ("net",)))
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(20)


def _fetched(place: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        connection.request("GET", place)
        return connection.getresponse().read()
    finally:
        connection.close()


def queries() -> dict[str, str]:
    """Every expression of the dashboard, as Grafana would send it, by its panel."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    notes = {note["name"]: note["expr"] for note in DASHBOARD["annotations"]["list"]}
    return {
        title: expr.replace("$__rate_interval", "1m").replace("$pair", ".*")
        for title, expr in (found | notes).items()
    }


def alerts() -> dict[str, str]:
    """Every alert's condition without its comparison: what it is about."""
    parsed = yaml.safe_load(RULES.read_text())
    rules = [rule for group in parsed["groups"] for rule in group["rules"]]
    return {rule["alert"]: re.split(r" (?:==|>|unless|and) ", rule["expr"])[0] for rule in rules}


TELLERS = {
    "mqtt": {"broker": "mqtt://127.0.0.1:1"},
    "hooks": {"log": {"on": ["any"], "program": "true"}},
}
"""Nobody listens there, which is soon enough for no alert."""


watched = on_pair("watched", settings=TELLERS)


@watched
def test_scraping_costs_the_epochs_little(stage: Scene) -> None:
    """Turn about with and without twenty scrapes a second: what output waits must stay the same.

    The bound is wide, for the machine is shared; docs/timing.md says what was measured.
    """
    primary, _ = stage.wait_protected()
    host = stage.topology.hosts[primary]
    fetch = partial(_got, f"{host.replication_ip}:9770", "/metrics")
    means: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * TURNS):
        before = _commits(host.inside(fetch, ("net",))[1])
        end = time.monotonic() + TURN_S
        while time.monotonic() < end:
            if turn % 2:
                assert host.inside(fetch, ("net",))[0] == 200
            time.sleep(1 / 20)
        after = _commits(host.inside(fetch, ("net",))[1])
        count = after[1] - before[1]
        assert count > 5
        means[bool(turn % 2)].append((after[0] - before[0]) / count)
    ratio = statistics.median(means[True]) / statistics.median(means[False])
    print(f"commit delay with 20 scrapes a second / without: {ratio:.3f}")
    print({scraped: [f"{mean * 1000:.2f} ms" for mean in each] for scraped, each in means.items()})
    assert ratio < 2


@watched
def test_every_panel_and_every_alert_has_data(stage: Scene) -> None:
    """The last one: it leaves the VM without a secondary."""
    primary, secondary = stage.wait_protected()
    with prometheus(stage, stage.topology.hosts[secondary]) as ask:
        wait_until(lambda: _up(ask) == 2, "both targets", 30)
        stage.cluster.kill_qemu(primary)
        stage.wait_promoted(secondary)
        assert stage.wait_protected() == (secondary, primary)
        wait_until(
            lambda: bool(ask('increase(coloha_occurrences_total{kind="promoted"}[1m]) > 0')),
            "the failover in the metrics",
            30,
        )
        time.sleep(1)
        for title, query in (queries() | alerts()).items():
            answer = ask(query)
            assert answer or query.startswith(USUALLY_EMPTY) or "fence" in query, title
        firing = {each["metric"]["alertname"] for each in ask('ALERTS{alertstate="firing"}')}
        assert firing == {"ColohaFailedOver"}
    page_says(stage, secondary, "protected", "The last failover", "promoted")
    page_says(stage, primary, "secondary", "holds a copy of the VM")
    stage.cluster.stop_daemon(primary)
    stage.topology.hosts[primary].power_off()
    stage.cluster.wait("solo", lambda: stage.cluster.in_phase("solo"))
    page_says(stage, secondary, "NOT PROTECTED", f"{primary} is silent")


def page_says(stage: Scene, name: str, *words: str) -> None:
    """See that the status page of a node has these words, and that the node is ready."""
    host = stage.topology.hosts[name]
    code, text = host.inside(lambda: _got(f"{host.replication_ip}:9770", "/"), ("net",))
    assert code == 200
    for word in words:
        assert word in text
    for path, said in (("/-/healthy", "healthy\n"), ("/-/ready", "ready\n")):
        answer = host.inside(partial(_got, f"{host.replication_ip}:9770", path), ("net",))
        assert answer == (200, said)


def _commits(text: str) -> tuple[float, float]:
    """The sum, seconds, and the count of all commit delays."""
    found = {
        sample.name.rpartition("_")[2]: sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "coloha_commit_delay_seconds"
        for sample in family.samples
    }
    return found["sum"], found["count"]


def _got(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _up(ask: Callable[[str], list[Any]]) -> int:
    with contextlib.suppress(Exception):  # it may not answer yet
        return sum(int(each["value"][1]) for each in ask('up{job="coloha"}'))
    return 0
