"""What `coloha status` shows of a pair, as plain data."""

from typing import Any

from coloha.qemu.vm import Vm
from coloha.runtime.pair import PairRuntime


def as_dict(pair: PairRuntime, now: float) -> dict[str, Any]:
    """Return the pair's state at `now` (monotonic seconds). Ages are in seconds, null for none."""
    snapshot = pair.snapshot
    if snapshot is None:
        why_not = pair.trouble or "it is starting"
        return {"pair": pair.name, "phase": "failed", "protected": False, "why_not": why_not}
    vm = pair.keeper.vm
    return {
        "pair": pair.name,
        "peer": snapshot.peer,
        "phase": "failed" if pair.trouble else str(snapshot.phase),
        "phase_age_s": _age(snapshot.phase_since, now),
        "role": snapshot.role,
        "protected": snapshot.protected and pair.trouble is None,
        "why_not": pair.trouble or snapshot.why_not,
        "waits_for": snapshot.waiting,
        "waits_at_most_s": _left(snapshot.waiting_until, now, least=0.0),
        "paused": snapshot.paused,
        "generation": snapshot.generation,
        "record": snapshot.record,
        "epochs": snapshot.committed,
        "mode": pair.config.checkpoint.mode,
        "demanded": vm.demanded if vm is not None else None,
        "loaded": vm.loaded if vm is not None and snapshot.role == "secondary" else None,
        "period_s": snapshot.period_s,
        "last_pause_s": snapshot.pause_s,
        "committed_age_s": _age(snapshot.committed_at, now),
        "held_age_s": _age(snapshot.held_since, now),
        "heartbeat_age_s": _age(snapshot.heard_at, now),
        "lease_left_s": _left(snapshot.lease_until, now),
        "witness_error": snapshot.witness_error,
        "qemu": {
            "run": snapshot.run,
            "pid": vm.pid if vm is not None else None,
            "answered_age_s": _age(vm.answered_at, now) if vm is not None else None,
        },
        "open_nics": [nic.mac for nic in pair.config.vm.nics if nic.output == "open"],
        "disks": _disks(vm, now),
        "disks_torn": pair.keeper.storage.torn,
        "inbox_dropped": pair.dropped,
    }


def _disks(vm: Vm | None, now: float) -> dict[str, Any] | None:
    """Return how far the copy of the disks has come: bytes, bytes per second, seconds left."""
    progress = vm.progress if vm is not None else None
    if vm is None or progress is None:
        return None
    rate = progress.copied / max(now - vm.copying_since, 1e-3)
    left_s = (progress.total - progress.copied) / rate if rate > 0 else None
    return {
        "copied_bytes": progress.copied,
        "total_bytes": progress.total,
        "bytes_per_s": round(rate),
        "left_s": None if left_s is None else round(left_s, 1),
    }


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else round(max(0.0, now - since), 4)


def _left(until: float | None, now: float, least: float = float("-inf")) -> float | None:
    return None if until is None else round(max(until - now, least), 4)
