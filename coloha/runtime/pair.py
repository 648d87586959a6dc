"""The pump of one pair: events into the machine, its actions to the outside.

One event at a time: `machine.step`, then its actions in order, each `Persist` finished before the
next begins. What takes longer runs beside the pump and comes back as an event. After each step
there is a new snapshot, and one timer is armed for `machine.deadline()`.

If the machine breaks a promise, or the shell fails, the pump stops with everything held, says so,
and starts over as a restarted daemon would: from the disk, the witness and the QEMU it finds.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass

from coloha.adapters.channel import Offer
from coloha.adapters.fence import Fencer, Report
from coloha.adapters.heartbeat import Heartbeats
from coloha.adapters.witness import Witness, WitnessError
from coloha.config.model import HostConfig, PairConfig
from coloha.config.witness import NoWitness
from coloha.config.witness import Witness as WitnessSection
from coloha.core.actions import (
    Action,
    Admit,
    Beat,
    DropChannel,
    Fence,
    Invite,
    Kill,
    Launch,
    Persist,
    ReadRecord,
    RunScript,
    Severity,
    SwapRecord,
    Tell,
)
from coloha.core.context import Fencing, OnSilence, Settings
from coloha.core.events import (
    Event,
    FailoverRequested,
    Fenced,
    FenceDone,
    Heard,
    Leaving,
    PauseRequested,
    PeerState,
    PeriodChanged,
    ProtectRequested,
    RecordRead,
    Started,
    StartRequested,
    StopRequested,
    SwapDone,
    Timer,
    Unattended,
    UnprotectRequested,
    WitnessFailed,
)
from coloha.core.machine import PairMachine
from coloha.core.phases import HOLDING, Phase
from coloha.core.snapshot import Snapshot
from coloha.errors import ColohaError, OrderError, StoreError
from coloha.runtime.keeper import Keeper
from coloha.runtime.metrics import Metrics, PairGauges
from coloha.runtime.occurrences import Occurrences
from coloha.runtime.orders import failover_plan, stop_plan
from coloha.runtime.quarters import Quarters
from coloha.runtime.recorder import Recorder
from coloha.runtime.store import Store
from coloha.runtime.timings import Timings
from coloha.runtime.watchman import Watchman

log = logging.getLogger(__name__)

INBOX = 1000
START_OVER_S = 2.0
INVITE_TIMEOUT_S = 30.0


class MissedError(ColohaError):
    """The pump missed events."""


class LookAnewError(ColohaError):
    """An operator wants the pump to start over."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the pairs of a daemon share."""

    host: HostConfig
    key: bytes
    store: Store
    heartbeats: Heartbeats
    occurrences: Occurrences
    metrics: Metrics
    recorder: Recorder
    fencers: Mapping[str, Fencer]
    """By the node that they switch off."""
    watchman: Watchman


class PairRuntime:
    """One pair on this node."""

    def __init__(self, config: PairConfig, witness: Witness | None, services: Services) -> None:
        self.config = config
        self.name = config.name
        self.peer = next(node for node in config.nodes if node != services.host.node)
        self.snapshot: Snapshot | None = None
        self.trouble: str | None = None
        """Why the pump stands still, if it does."""
        self.dropped = 0
        """Heartbeats dropped because the pump was behind."""
        self._witness = witness
        self._services = services
        self._inbox: asyncio.Queue[Event] = asyncio.Queue(INBOX)
        self._failure: Exception | None = None
        """What failed beside the pump, so that it must start over."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        """The deadline of the last timer that fired, monotonic seconds."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._step_since: float | None = None
        """When the pump took the event that it is at, monotonic seconds."""
        self._quarters = Quarters()
        self._timings = Timings(self.name, services.metrics)
        self.keeper = Keeper(
            config, services.host, services.key, self.peer, self.post, self.fail,
            watchman=services.watchman,
        )  # fmt: skip

    # What comes in

    def post(self, event: Event) -> None:
        """Put an event into the inbox; if that is full, the pump starts over as soon as it can."""
        if self._inbox.full():
            # Only a pump that stands still gets here. A machine that missed a death would wait
            # for it for ever.
            self.dropped += 1
            self.fail(MissedError(f"more than {INBOX} events waited: some are lost"))
            return
        self._inbox.put_nowait(event)

    def fail(self, error: Exception) -> None:
        """Make the pump start over: what it relies on has failed."""
        if self._failure is None:
            self._failure = error
        if self._inbox.empty():
            self._inbox.put_nowait(Timer())

    def heard(self, state: PeerState) -> None:
        """Take what the other node's heartbeat says; when the pump is behind, the next one does."""
        if self._inbox.qsize() < INBOX // 2:
            self._inbox.put_nowait(Heard(state))
        else:
            self.dropped += 1

    def unattended(self) -> None:
        """Take note that nobody listens on the other node; the next one says so again."""
        if self._inbox.qsize() < INBOX // 2:
            self._inbox.put_nowait(Unattended())

    def offered(self, offer: Offer) -> None:
        """Take an authenticated invitation for this pair."""
        self.keeper.offered(offer)

    def reconfigure(self, config: PairConfig) -> None:
        """Take over what may change while running: the checkpoint period."""
        period = {"period": config.checkpoint.period}
        checkpoint = self.config.checkpoint.model_copy(update=period)
        self.config = self.config.model_copy(update={"checkpoint": checkpoint})
        self.post(PeriodChanged(config.checkpoint.period))

    def start(self) -> None:
        """Start a VM that its guest has shut down, or look anew at a halted pair.

        :raises OrderError: if it is neither.
        """
        snapshot = self._see_pumping()
        if snapshot.phase is Phase.OFF:
            self.post(StartRequested())
        elif snapshot.phase is Phase.HALTED:
            self.fail(LookAnewError("an operator asked to look again"))
        else:
            raise OrderError(
                f"{self.name} is in phase {snapshot.phase} here, and the record is "
                f"{snapshot.record}: only a VM that is off, or a pair that is halted, can be "
                "started"
            )

    def stop(self, *, hard: bool) -> None:
        """Have the guest switch itself off, or, `hard`, switch the VM off.

        :raises OrderError: if this node does not run it.
        """
        stop_plan(self._see_pumping())
        self.post(StopRequested(hard))

    def order(self, event: PauseRequested | ProtectRequested | UnprotectRequested) -> None:
        """Do as an operator says.

        :raises OrderError: if there is no pump to do it.
        """
        self._see_pumping()
        self.post(event)

    def failover(self, order: FailoverRequested, *, planned: bool) -> list[str]:
        """Return what a failover would do now; do it if it is `planned`, and the generation that
        the operator was shown a plan for is still the one.

        :raises OrderError: if it is refused.
        """
        snapshot = self._see_pumping()
        plan = failover_plan(snapshot, time.monotonic(), order)
        torn = self.keeper.storage.torn
        if order.forced and snapshot.phase is not Phase.FOLLOW and torn is not None:
            raise OrderError(f"the disks here are not whole ({torn}): nothing can boot from them")
        if planned:
            if order.generation != snapshot.generation:
                raise OrderError(f"the generation is {snapshot.generation} by now: look again")
            self.post(order)
        return plan

    def leave(self) -> None:
        """Prepare for the daemon's end; see `idle`."""
        if self.snapshot is not None:
            self.post(Leaving())

    @property
    def idle(self) -> bool:
        """Whether nothing is under way that the daemon's end would cut short."""
        snapshot = self.snapshot
        if snapshot is None or self.trouble is not None:
            return True
        return snapshot.wire.restarting and not (snapshot.phase in HOLDING and snapshot.busy)

    def _see_pumping(self) -> Snapshot:
        if self.snapshot is None or self.trouble is not None:
            raise OrderError(f"{self.name} has failed: {self.trouble or 'it is starting'}")
        return self.snapshot

    def gauges(self) -> PairGauges:
        """Return what is measured. Also called by the thread that serves metrics."""
        snapshot, vm, now = self.snapshot, self.keeper.vm, time.monotonic()
        if snapshot is None:
            return PairGauges(self.name, "failed", False, 0, 0, False, step_s=self.stuck_s(now))
        return PairGauges(
            pair=self.name,
            phase="failed" if self.trouble else snapshot.phase,
            protected=snapshot.protected and self.trouble is None,
            generation=snapshot.generation,
            committed=snapshot.committed,
            witness_reachable=snapshot.witness_error is None,
            paused=snapshot.paused,
            disk_bytes_left=self.keeper.disk_bytes_left,
            demanded=vm.demanded if vm is not None else None,
            alone=snapshot.alone,
            held_s=0.0 if snapshot.held_since is None else max(0.0, now - snapshot.held_since),
            heartbeat_age_s=None
            if snapshot.heard_at is None
            else max(0.0, now - snapshot.heard_at),
            step_s=self.stuck_s(now),
            dropped=self.dropped,
        )

    @property
    def holds(self) -> bool:
        """Whether a guest's output is held here for a secondary that may take over."""
        return self.snapshot is not None and self.snapshot.phase in HOLDING

    def stuck_s(self, now: float) -> float:
        """Return for how long the pump has been at one step, seconds; infinite if it has failed."""
        if self.trouble is not None:
            return float("inf")
        since = self._step_since  # other threads ask, too
        return max(0.0, now - since) if since is not None else 0.0

    def unready(self, now: float, longest_s: float) -> str | None:
        """Say why this pair is not looked after, if it is not. Other threads ask."""
        if self.snapshot is None or self.trouble is not None:
            return self.trouble or "it is starting"
        return "nothing is decided any more" if self.stuck_s(now) > longest_s else None

    @property
    def wire(self) -> PeerState | None:
        """What heartbeats say of this pair; None while there is no pump to speak for."""
        return self.snapshot.wire if self.snapshot is not None and self.trouble is None else None

    # The pump

    async def run(self) -> None:
        """Pump until cancelled, starting over after a failure."""
        while True:
            try:
                await self._pump()
            except LookAnewError as error:
                self._tell("looking-anew", Severity.INFO, str(error))
                continue
            except StoreError as error:
                self.trouble = str(error)
                self._tell("failed", Severity.ERROR, self.trouble)
            except Exception as error:
                log.exception("%s: the pump failed", self.name)
                self.trouble = f"{type(error).__name__}: {error}".split("\n")[0]
                self._tell("failed", Severity.ERROR, f"held, and starting over: {self.trouble}")
            finally:
                await self._let_go()
            await asyncio.sleep(START_OVER_S)

    async def _pump(self) -> None:
        durable = self._services.store.load(self.name)
        found = self.keeper.find()
        machine = PairMachine(self._settings(), time.monotonic())
        flight = self._services.recorder.begin(self.name, machine)
        self._inbox = asyncio.Queue(INBOX)
        self._failure = None
        self.trouble = None
        self.post(Started(durable, found))
        try:
            while True:
                self._step_since = None
                event = await self._inbox.get()
                if self._failure is not None:
                    raise self._failure
                now = self._step_since = time.monotonic()
                if isinstance(event, Timer):
                    # uvloop's timers may be early. The machine's own deadline may be another one
                    # by now: time must not run ahead.
                    now = max(now, self._due)
                actions = flight.step(event, now)
                self._timings.seen(event, now)
                await self._carry_out(actions, machine.snapshot())
                self.keeper.tend(now)
                self._tell_progress()
                self._arm(machine.deadline())
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _settings(self) -> Settings:
        config = self.config
        agent = self._services.host.fencing.get(self.peer)
        return Settings(
            pair=self.name,
            me=self._services.host.node,
            peer=self.peer,
            first=config.first_primary == self._services.host.node,
            incarnation=secrets.randbits(40),
            period_s=config.checkpoint.period,
            stall_timeout_s=config.checkpoint.stall_timeout,
            interval_s=config.heartbeat.interval,
            misses=config.heartbeat.misses,
            sync_timeout_s=config.recovery.sync_timeout,
            cold_start_after_s=config.recovery.cold_start_after,
            retry_max_s=config.recovery.retry_max,
            restart_hold_s=config.heartbeat.restart_hold,
            flap_limit=config.recovery.flap_limit,
            flap_window_s=config.recovery.flap_window,
            witnessed=self._witness is not None,
            on_silence=_on_silence(config.witness),
            fencing=Fencing(config.fencing),
            fence_delay_s=agent.delay if agent is not None else 0.0,
        )

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._fire, deadline)

    def _fire(self, deadline: float) -> None:
        self._due = deadline
        self.post(Timer())

    async def _let_go(self) -> None:
        """Forget everything but the QEMU: it runs on, held or not, as it was."""
        for task in self._tasks:
            task.cancel()
        await self.keeper.let_go()

    def _tell_progress(self) -> None:
        news = self._quarters.news(self.keeper.vm.progress if self.keeper.vm is not None else None)
        if news is not None:
            self._tell("disks-copied", Severity.INFO, news)

    # What goes out

    async def _carry_out(self, actions: list[Action], snapshot: Snapshot) -> None:
        """Carry out a batch. Heartbeats say what is new only once it is on the disk."""
        saved = max((k + 1 for k, a in enumerate(actions) if isinstance(a, Persist)), default=0)
        for action in actions[:saved]:
            await self._execute(action)
        self.snapshot = snapshot
        if Beat() in actions[:saved]:
            self._services.heartbeats.beat(self.peer)  # the one before said what is old
        for action in actions[saved:]:
            await self._execute(action)

    async def _execute(self, action: Action) -> None:
        match action:
            case Persist(durable):
                await self._services.store.save(self.name, durable, self._cannot_save)
                self.trouble = None
            case ReadRecord():
                self._beside(self._read_record())
            case SwapRecord():
                self._beside(self._swap_record(action))
            case RunScript():
                self._timings.started(action, time.monotonic())
                self.keeper.run_script(action)
            case Launch(run):
                self.keeper.launch(run)
            case Kill(run):
                self.keeper.kill(run)
            case Invite(session, generation):
                self.keeper.invite(session, generation, INVITE_TIMEOUT_S)
            case Admit(session):
                self.keeper.admit(session)
            case DropChannel(session, reason):
                self.keeper.drop(session, reason)
            case Fence(number):
                self._beside(self._fence(number))
            case Beat():
                self._services.heartbeats.beat(self.peer)
            case Tell(kind, severity, text, generation):
                self._timings.told(kind, time.monotonic())
                self._services.metrics.occurred(self.name, kind)
                self._services.occurrences.add(self.name, kind, severity, text, generation)

    def _cannot_save(self, reason: str) -> None:
        """Say once that the state cannot be written; until it is, this node does nothing."""
        if self.trouble is None:
            self.trouble = f"the state cannot be written: {reason}"
            self._tell("state-not-written", Severity.ERROR, self.trouble)

    def _tell(self, kind: str, severity: Severity, text: str) -> None:
        generation = self.snapshot.generation if self.snapshot else 0
        self._services.occurrences.add(self.name, kind, severity, text, generation)

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.fail(error)

    async def _read_record(self) -> None:
        assert self._witness is not None
        try:
            record = await self._witness.read(self.name)
        except WitnessError as error:
            self.post(WitnessFailed(str(error)))
        else:
            self.post(RecordRead(record))

    async def _swap_record(self, swap: SwapRecord) -> None:
        assert self._witness is not None
        try:
            record = await self._witness.swap(self.name, swap.expected, swap.new, swap.by)
        except WitnessError as error:
            self.post(WitnessFailed(str(error), error.unknown))
        else:
            self.post(SwapDone(swap.new) if record == swap.new else RecordRead(record))

    async def _fence(self, number: int) -> None:
        fencer = self._services.fencers.get(self.peer)
        if fencer is None:
            report = Report(Fenced.FAILED, "the host file does not say how: see `fencing` there")
        else:
            report = await fencer.fence()
        self._services.metrics.fenced(self.peer, report.outcome)
        self.post(FenceDone(number, report.outcome, report.reason))


def _on_silence(section: WitnessSection) -> OnSilence:
    return OnSilence(section.on_silence if isinstance(section, NoWitness) else "hold")
