"""Prometheus metrics. They are read by the threads of `coloha.runtime.web`."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from wsgiref.types import WSGIApplication

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coloha import __version__
from coloha.core.events import Fenced

PAUSE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)

FAILOVER_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)

PAUSES_KEPT = 120
"""For the status page."""

EXPECTED = ("promoted", "protected", "unprotected", "qemu-exited", "hung", "cold-start", "halted")
"""Kinds of occurrences that are counted from 0 on, for each pair."""


@dataclass(frozen=True, slots=True)
class PairGauges:
    """What is measured of a pair; `phase` is "failed" if its pump stands still."""

    pair: str
    phase: str
    protected: bool
    generation: int
    committed: int
    witness_reachable: bool
    paused: bool = False
    disk_bytes_left: int = 0
    """Of the copy of the disks that is under way."""
    demanded: int | None = None
    """Mode `compare`: the session's checkpoints that QEMU asked for."""
    alone: bool = False
    held_s: float = 0.0
    """How long the oldest output that is held has waited, seconds."""
    heartbeat_age_s: float | None = None
    step_s: float = 0.0
    """For how long the pump has been at one step, seconds; infinite if it has failed."""
    dropped: int = 0
    """What found no room in its inbox."""


@dataclass(frozen=True, slots=True)
class MqttTotals:
    """What became of the events that the MQTT broker is to be told."""

    connected: bool = False
    sent: int = 0
    waiting: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What the daemon counted since it started."""

    heartbeats_rejected: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    heartbeats_unsent: int = 0
    channels_rejected: int = 0
    events_lost: int = 0
    steps_unrecorded: int = 0
    mqtt: MqttTotals | None = None
    """None if no broker is told."""
    hooks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Runs, by name of the hook and by how they ended; "dropped" if they never began."""


class Metrics(Collector):
    """The daemon's metrics. `pairs` and `totals` are read by the serving thread."""

    def __init__(self) -> None:
        self.pairs: Callable[[], Iterable[PairGauges]] = tuple
        self.totals: Callable[[], Totals] = Totals
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._pauses = Histogram(
            "coloha_checkpoint_pause_seconds",
            "How long the guest stood still for a checkpoint, STOP to RESUME.",
            ["pair"],
            buckets=PAUSE_BUCKETS_S,
            registry=self._registry,
        )
        self._occurrences = Counter(
            "coloha_occurrences",
            "What happened, by kind: see `coloha events`.",
            ["pair", "kind"],
            registry=self._registry,
        )
        self._fencings = Counter(
            "coloha_fence",
            "Attempts to have the host of another node switched off, by how they ended.",
            ["node", "outcome"],
            registry=self._registry,
        )
        self._lag = Histogram(
            "coloha_loop_lag_seconds",
            "How late the event loop came to what was due.",
            buckets=LAG_BUCKETS_S,
            registry=self._registry,
        )
        self._commits = self._durations(
            "coloha_commit_delay_seconds",
            "How long the output of an epoch waited for its commit: from the checkpoint's begin to"
            " the release.",
            PAUSE_BUCKETS_S,
        )
        self._failovers = self._durations(
            "coloha_failover_seconds",
            "From the moment that the primary counts as gone to the VM's running on this node.",
            FAILOVER_BUCKETS_S,
        )
        self._heartbeats = self._durations(
            "coloha_heartbeat_interval_seconds",
            "Time between two heartbeats of the other node.",
            PAUSE_BUCKETS_S,
        )
        self._scripts = self._durations(
            "coloha_qmp_seconds",
            "How long QEMU took over a script of QMP commands.",
            FAILOVER_BUCKETS_S,
            "script",
        )
        self._last_pauses: dict[str, deque[float]] = {}

    @property
    def app(self) -> WSGIApplication:
        """Answers Prometheus."""
        return make_wsgi_app(self._registry)

    def pauses(self, pair: str) -> list[float]:
        """Return the pauses of a pair's last checkpoints, seconds, the newest last."""
        return list(self._last_pauses.get(pair, ()))

    def expect(self, pair: str) -> None:
        """Begin to count what alerts ask for: Prometheus sees no increase up to a first sample."""
        for kind in EXPECTED:
            self._occurrences.labels(pair, kind)
        for histogram in (self._pauses, self._commits, self._failovers, self._heartbeats):
            histogram.labels(pair)

    def expect_fencing(self, node: str) -> None:
        """Likewise, of a node that can be fenced."""
        for outcome in Fenced:
            self._fencings.labels(node, outcome.value)

    def pause(self, pair: str, seconds: float) -> None:
        """Note the pause of a committed checkpoint."""
        self._pauses.labels(pair).observe(seconds)
        self._last_pauses.setdefault(pair, deque(maxlen=PAUSES_KEPT)).append(seconds)

    def commit(self, pair: str, seconds: float) -> None:
        """Note how long an epoch's output waited."""
        self._commits.labels(pair).observe(seconds)

    def failover(self, pair: str, seconds: float) -> None:
        """Note how long a failover took."""
        self._failovers.labels(pair).observe(seconds)

    def heartbeat(self, pair: str, seconds: float) -> None:
        """Note the time between two heartbeats."""
        self._heartbeats.labels(pair).observe(seconds)

    def script(self, pair: str, script: str, seconds: float) -> None:
        """Note how long a script took."""
        self._scripts.labels(pair, script).observe(seconds)

    def _durations(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, ["pair", *labels], buckets=buckets, registry=self._registry)

    def lag(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._lag.observe(seconds)

    def occurred(self, pair: str, kind: str) -> None:
        """Count an occurrence."""
        self._occurrences.labels(pair, kind).inc()

    def fenced(self, node: str, outcome: str) -> None:
        """Count an attempt to have the host of `node` switched off."""
        self._fencings.labels(node, outcome).inc()

    def collect(self) -> Iterator[Metric]:
        """Yield what is read off the snapshots and the counts."""
        build = GaugeMetricFamily("coloha_build_info", "Version of coloha.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        totals = self.totals()
        yield from _of_daemon(totals)
        yield from _of_tellers(totals)
        yield from _of_pairs(list(self.pairs()))


def _of_daemon(totals: Totals) -> Iterator[Metric]:
    rejected = CounterMetricFamily(
        "coloha_heartbeats_rejected", "Heartbeats dropped, by reason.", labels=["reason"]
    )
    for reason, count in totals.heartbeats_rejected.items():
        rejected.add_metric([reason], count)
    yield rejected
    yield CounterMetricFamily(
        "coloha_heartbeats_unsent",
        "Heartbeats that the kernel refused to send.",
        totals.heartbeats_unsent,
    )
    yield CounterMetricFamily(
        "coloha_channels_rejected",
        "Connections that did not prove the key, or made no sense.",
        totals.channels_rejected,
    )
    yield CounterMetricFamily(
        "coloha_events_lost",
        "Events that a reader or the disk was too slow for.",
        totals.events_lost,
    )
    yield CounterMetricFamily(
        "coloha_steps_unrecorded",
        "Steps that are missing from the flight record: the disk was too slow, or full.",
        totals.steps_unrecorded,
    )


def _of_tellers(totals: Totals) -> Iterator[Metric]:
    if (mqtt := totals.mqtt) is not None:
        yield GaugeMetricFamily(
            "coloha_mqtt_connected", "Whether the MQTT broker is told what happens.", mqtt.connected
        )
        yield CounterMetricFamily(
            "coloha_mqtt_sent", "Events that the MQTT broker has acknowledged.", mqtt.sent
        )
        yield GaugeMetricFamily(
            "coloha_mqtt_waiting", "Events that wait for the MQTT broker.", mqtt.waiting
        )
        yield CounterMetricFamily(
            "coloha_mqtt_dropped",
            "Events that the MQTT broker was not told: too many waited.",
            mqtt.dropped,
        )
    if totals.hooks:
        runs = CounterMetricFamily(
            "coloha_hook_runs",
            "Runs of hooks, by how they ended; dropped: too many waited.",
            labels=["hook", "outcome"],
        )
        for names, count in totals.hooks.items():
            runs.add_metric(names, count)
        yield runs


_OF_PAIRS: tuple[tuple[str, str, Callable[[PairGauges], float | None]], ...] = (
    ("protected", "Whether a secondary could take over now.", lambda p: p.protected),
    ("generation", "Generation of the newest record known.", lambda p: p.generation),
    ("session_commits", "Checkpoints committed in this session.", lambda p: p.committed),
    (
        "witness_reachable",
        "Whether the witness answered last time.",
        lambda p: p.witness_reachable,
    ),
    ("paused", "Whether an operator has paused failover.", lambda p: p.paused),
    ("alone", "Whether an operator wants the VM to have no secondary.", lambda p: p.alone),
    (
        "disk_bytes_left",
        "Bytes of the disks that are yet to be copied to a new secondary.",
        lambda p: p.disk_bytes_left,
    ),
    (
        "output_held_seconds",
        "For how long the oldest output that is held has waited; 0 if none is held.",
        lambda p: p.held_s,
    ),
    (
        "heartbeat_age_seconds",
        "Since when nothing was heard of the other node.",
        lambda p: p.heartbeat_age_s,
    ),
    (
        "step_seconds",
        "For how long the pair has been at one step; +Inf if it has failed.",
        lambda p: p.step_s,
    ),
    (
        "session_demanded",
        "Mode compare: checkpoints of this session that QEMU asked for, since outputs differed.",
        lambda p: p.demanded,
    ),
)
"""Names after `coloha_pair_`, what they tell, and of what; None is left out."""


def _of_pairs(pairs: list[PairGauges]) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "coloha_pair_phase",
        "1 for the phase the pair is in on this node.",
        labels=["pair", "phase"],
    )
    for pair in pairs:
        phase.add_metric([pair.pair, pair.phase], 1)
    yield phase
    dropped = CounterMetricFamily(
        "coloha_pair_inbox_dropped",
        "Heartbeats and events that found no room, since the pair stood still.",
        labels=["pair"],
    )
    for pair in pairs:
        dropped.add_metric([pair.pair], pair.dropped)
    yield dropped
    for name, text, read in _OF_PAIRS:
        family = GaugeMetricFamily(f"coloha_pair_{name}", text, labels=["pair"])
        for pair in pairs:
            value = read(pair)
            if value is not None:
                family.add_metric([pair.pair], value)
        if family.samples:
            yield family
