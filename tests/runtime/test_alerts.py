"""Prometheus's own tool on the metrics, the alert rules and their tests."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lab.assets import load_assets
from lab.namespace import CHECKOUT
from tests.runtime.test_metrics import everything

RULES = CHECKOUT / "etc" / "prometheus" / "coloha.rules.yml"
TESTS = CHECKOUT / "tests" / "prometheus" / "coloha.test.yml"


def promtool(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [load_assets().promtool, *words]
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def rules() -> list[dict[str, str]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def test_the_metrics_are_as_prometheus_wants_them() -> None:
    checked = promtool("check", "metrics", stdin=everything())
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_each_rule_does_what_it_should() -> None:
    for words in (("check", "rules", RULES), ("test", "rules", TESTS)):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried_firing_and_silent() -> None:
    tried: dict[str, set[bool]] = {}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            tried.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert tried == {rule["alert"]: {True, False} for rule in rules()}


@pytest.mark.parametrize("part", ["== 0 unless", "> 5\n", 'kind="promoted"', "for: 10m"])
def test_a_test_of_rules_can_fail(tmp_path: Path, part: str) -> None:
    text = RULES.read_text()
    assert text.count(part) == 1
    broken = {"== 0 unless": "== 2 unless", "> 5\n": "> 500\n", "for: 10m": "for: 10h"}
    (tmp_path / "rules.yml").write_text(text.replace(part, broken.get(part, 'kind="claimed"')))
    tests = TESTS.read_text().replace("../../etc/prometheus/coloha.rules.yml", "rules.yml")
    (tmp_path / "test.yml").write_text(tests)
    assert promtool("test", "rules", tmp_path / "test.yml").returncode != 0


def test_rules_ask_for_metrics_that_there_are() -> None:
    text = everything()
    for rule in rules():
        for name in re.findall(r"coloha_\w+", rule["expr"]):
            assert re.search(rf"^{name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_leads_to_a_section_of_the_runbook(rule: dict[str, dict[str, str]]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (CHECKOUT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
