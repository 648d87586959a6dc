"""Mode `compare` on real QEMU with Linux guests: what both answer alike goes out at once."""

from dataclasses import replace

import pytest

from tests.e2e.support import PATIENT, Scene, scene

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(120)]

COMPARED = replace(PATIENT, mode="compare", period="500ms")
BEACON = "beacon=200000"
"""Microseconds between datagrams with a mark of the guest's own clock: no two copies send alike."""


def differs(stage: Scene, primary: str) -> None:
    """Wait until QEMU asked for checkpoints by itself, and the client was answered all the same."""
    status = stage.cluster.status
    stage.cluster.wait("differences", lambda: (status(primary).get("demanded") or 0) >= 3)
    stage.answers_go_on(5)


def test_both_failovers_and_protection_after_each() -> None:
    with scene(COMPARED, guest_words=BEACON) as stage:
        primary, secondary = stage.wait_protected()
        assert stage.cluster.status(primary)["mode"] == "compare"
        differs(stage, primary)
        stage.cluster.kill_qemu(primary)
        stage.wait_promoted(secondary)
        stage.answers_go_on()
        # A promoted secondary is the primary now, with a rewriter that stays.
        assert stage.wait_protected() == (secondary, primary)
        differs(stage, secondary)
        stage.cluster.kill_qemu(primary)
        stage.cluster.wait("unprotected", lambda: not stage.cluster.protected())
        stage.answers_go_on()
        assert stage.wait_protected() == (secondary, primary)
        report = stage.finish()
    # Held for an epoch, an answer would wait for half a second.
    assert report.latency_ms["p50"] < 250
