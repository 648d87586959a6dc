"""What an operator plans: switchover, another period, unprotect, drain, stop; on real QEMU."""

import os
import signal
import statistics
import time
from collections import defaultdict

import pytest

from lab.cluster import PAIR
from lab.namespace import LabError
from tests.e2e.support import PATIENT, Scene, on_pair, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(900)]

MOVES = int(os.environ.get("COLOHA_MOVES", "2"))
"""So many of each kind; 20 for a figure that means something."""
GAP_MS = 100.0
"""Shorter silences are not told by the client."""

together = on_pair("pair")


def moved(stage: Scene, way: str) -> tuple[float, float]:
    """Have the VM change its node; return from when to when that was, Unix time."""
    primary, secondary = stage.wait_protected()
    stage.answers_go_on(10)
    generation, began = stage.generation(), time.time()
    if way == "crash":
        stage.cluster.kill_qemu(primary)
        stage.wait_promoted(secondary)
    else:
        said = stage.cluster.command(primary, way, PAIR, "--yes")
        assert f"{secondary} takes generation {generation + 1}" in said
    stage.answers_go_on(5)
    ended = time.time()
    assert stage.wait_protected() == (secondary, primary)
    assert stage.generation() == generation + 1
    return began, ended


@together
def test_the_vm_changes_its_node(stage: Scene) -> None:
    """By order, under load, with no wrong answer; and what clients notice, beside a crash."""
    spans = defaultdict(list)
    primary, secondary = stage.begin()
    for verb in ("switchover", "failover"):
        with pytest.raises(LabError, match=f"order it on {primary}|in phase follow"):
            stage.cluster.command(secondary, verb, PAIR, "--yes")
    for number in range(3 * MOVES):
        way = ("switchover", "failover", "crash")[number % 3]
        spans[way].append(moved(stage, way))
    told = {kind for name in stage.topology.hosts for kind in stage.kinds(name)}
    assert {"switchover", "failover-ordered"} <= told
    stage.answers_go_on()
    report = stage.client.reports()[-1]
    gaps = {
        way: [
            max((g["length_ms"] for g in report.gap_list if a - 0.2 <= g["start"] <= b), default=0)
            for a, b in spans[way]
        ]
        for way in spans
    }
    medians = {way: max(GAP_MS, statistics.median(lengths)) for way, lengths in gaps.items()}
    for way, median in medians.items():
        ratio, worst = median / medians["crash"], max(gaps[way])
        print(f"{way}: {MOVES} moves, gap median {median:.0f} ms, at most {worst:.0f} ms,", end=" ")
        print(f"{ratio:.2f} of a crash's")


@together
def test_period_changes_on_reload(stage: Scene) -> None:
    primary, _ = stage.begin()
    cluster = stage.cluster
    for name in stage.topology.hosts:
        path = cluster.pair_file(name)
        path.write_text(path.read_text().replace("period: 50ms", "period: 200ms"))
        stage.topology.hosts[name].signal(cluster.daemon(name).pid, signal.SIGHUP)
    cluster.wait("the new period", lambda: cluster.status(primary)["period_s"] == 0.2)
    epochs = cluster.status(primary)["epochs"]
    stage.answers_go_on(10)
    assert cluster.status(primary)["epochs"] > epochs
    # A broken file changes nothing, and is told.
    good = path.read_text()
    path.write_text("pair: [")
    stage.topology.hosts[name].signal(cluster.daemon(name).pid, signal.SIGHUP)
    cluster.wait("the refusal", lambda: "reload-refused" in stage.kinds(name))
    assert cluster.protected()
    path.write_text(good)


def test_an_operator_ends_protection_and_the_vm() -> None:
    """Unprotect and protect, drain and back, stop asked and unasked, and start."""
    with scene(PATIENT) as stage:
        cluster = stage.cluster
        primary, secondary = stage.wait_protected()
        pid = stage.qemu_pid(primary)
        cluster.command(secondary, "unprotect", PAIR)
        cluster.wait("standby", lambda: cluster.phases() == {primary: "solo", secondary: "standby"})
        cluster.wait("the end of QEMU", lambda: cluster.qemu(secondary) is None)
        cluster.kill_daemon(primary)
        cluster.start(primary)
        cluster.wait("solo", lambda: cluster.in_phase("solo") == primary)
        stage.answers_go_on(10)
        assert "wants the VM to have no secondary" in cluster.status(primary)["why_not"]
        cluster.command(primary, "protect", PAIR)
        assert stage.wait_protected() == (primary, secondary)
        assert stage.qemu_pid(primary) == pid

        said = cluster.command(primary, "drain", "--yes")
        assert f"{secondary} runs the VM" in said
        assert cluster.qemu(primary) is None
        drained = {primary: "standby", secondary: "solo"}
        cluster.wait("the other node alone", lambda: cluster.phases() == drained)
        stage.answers_go_on(10)
        cluster.command(primary, "drain", "--undo")
        assert stage.wait_protected() == (secondary, primary)
        stage.finish()

        primary, secondary = stage.wait_protected()
        for how in ([], ["--now"]):
            assert "off" in cluster.command(primary, "stop", PAIR, *how)
            off = {primary: "off", secondary: "standby"}
            cluster.wait("both to know", lambda: cluster.phases() == off)  # noqa: B023
            assert cluster.qemu(secondary) is None
            cluster.command(primary, "start", PAIR)
            assert stage.wait_protected() == (primary, secondary)
        told = [kind for name in stage.topology.hosts for kind in stage.kinds(name)]
        assert (
            told.count("guest-shutdown") == told.count("power-down") == told.count("stopped") == 1
        )
        assert "cold-start" not in told
