"""A real Prometheus that watches a real pair: every panel and every alert has an answer."""

import contextlib
import http.client
import json
import re
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.assets import load_assets
from lab.namespace import CHECKOUT, wait_until
from lab.topology import Host
from tests.e2e.support import Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

DASHBOARD = json.loads((CHECKOUT / "etc" / "grafana" / "coloha.json").read_text())
EXAMPLE = CHECKOUT / "etc" / "prometheus" / "prometheus.yml"
RULES = CHECKOUT / "etc" / "prometheus" / "coloha.rules.yml"
PORT = 9090
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


def test_every_panel_and_every_alert_has_data() -> None:
    with scene(settings=TELLERS) as stage:
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
        stage.finish()


def _up(ask: Callable[[str], list[Any]]) -> int:
    with contextlib.suppress(Exception):  # it may not answer yet
        return sum(int(each["value"][1]) for each in ask('up{job="coloha"}'))
    return 0
