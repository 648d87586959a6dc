"""Daemons whose witness is in etcd."""

import json
from pathlib import Path

import pytest

from coloha.core.record import Record
from tests.adapters.etcd_support import history_of, loopback
from tests.runtime.daemon_support import Daemon


def test_two_daemons_share_a_record_in_etcd(alpha: Daemon, beta: Daemon, tmp_path: Path) -> None:
    """etcd is not there at first, comes, and hangs; the folder is not touched."""
    with loopback(tmp_path / "etcd") as etcd:
        etcd.kill(0)
        for daemon in (alpha, beta):
            daemon.pair["witness"] = {
                "type": "etcd",
                "endpoints": etcd.endpoints,
                "timeout": "1s",
            }
            daemon.write()
            daemon.start()
        alpha.wait(lambda: alpha.events("witness-unreachable"), "the lack of a witness")
        (said,) = alpha.events("witness-unreachable")
        assert f"{etcd.endpoints[0]}: Connection refused: is etcd running there?" in said
        assert "UNREACHABLE" in alpha.cli("status", status=1)
        etcd.start(0)
        alpha.wait(lambda: alpha.events("launch-failed"), "a record, and the launch that fails")
        beta.wait(lambda: beta.status()["phase"] == "standby", "beta stands by")
        assert alpha.events("witness-back")
        (record,) = history_of(etcd.endpoints[0], "vm")
        assert record == Record(record.lineage, 1, "alpha")
        shown = [json.loads(d.cli("status", "--json", status=1)) for d in (alpha, beta)]
        assert [s["pairs"][0]["record"] for s in shown] == ["solo(1, alpha)"] * 2
        etcd.freeze(0)
        assert beta.stop() == 0
        before = len(beta.events("witness-unreachable"))
        beta.start()
        beta.wait(lambda: len(beta.events("witness-unreachable")) > before, "the hang")
        assert "no answer: is the host up" in beta.events("witness-unreachable")[-1]
        assert alpha.stop() == beta.stop() == 0
    assert list((tmp_path / "witness").iterdir()) == []


@pytest.mark.parametrize("daemons", ["uvloop"], indirect=True)
def test_pairs_with_one_witness_share_it(alpha: Daemon, tmp_path: Path) -> None:
    with loopback(tmp_path / "etcd") as etcd:
        alpha.pair["witness"] = {"type": "etcd", "endpoints": etcd.endpoints}
        alpha.write()
        other = {**alpha.pair, "pair": "db"}
        (alpha.folder / "pairs.d" / "db.yaml").write_text(json.dumps(other))
        alpha.start()
        alpha.wait(lambda: len(alpha.events("launch-failed")) >= 2, "both launches")
        for pair in ("vm", "db"):
            (record,) = history_of(etcd.endpoints[0], pair)
            assert record.primary == "alpha"
        assert alpha.stop() == 0
