"""How each kind of fault begins and ends in the world."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from coloha.core.events import (
    Durable,
    FailoverRequested,
    ProtectRequested,
    StopRequested,
    UnprotectRequested,
)
from coloha.core.phases import Phase
from coloha.sim.faults import NODES, Fault
from coloha.sim.node import Node
from coloha.sim.qemu import Qemu

if TYPE_CHECKING:
    from coloha.sim.world import World


class Happenings:
    """The faults of one history: to come, under way, waiting for their occasion."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.tied: defaultdict[str, list[Fault]] = defaultdict(list)
        """Faults that wait for a moment, by its name."""
        self._seen: Counter[str] = Counter()
        self._armed: Counter[str] = Counter()
        """Faults that wait for their occasion, by kind."""
        self._active: list[tuple[Fault, Callable[[], None]]] = []
        self._over = False
        self._any = world.nodes[NODES[0]]
        """Stands in where it does not matter which node it is."""

    def plan(self, faults: Sequence[Fault]) -> None:
        """Let these faults happen."""
        for fault in faults:
            if fault.moment:
                self.tied[fault.moment].append(fault)
            else:
                self._world.at(fault.at, self._begin, fault)

    def moment(self, name: str) -> None:
        """Begin what is tied to this."""
        waiting = self.tied.get(name)
        if not waiting:
            return
        self._seen[name] += 1
        for fault in waiting:
            if fault.nth == self._seen[name]:
                self._world.at(fault.at, self._begin, fault)

    def take(self, kind: str) -> bool:
        """Use up a fault that waits for its occasion."""
        if not self._armed or not self._armed[kind]:
            return False
        self._armed[kind] -= 1
        return True

    def heal(self) -> None:
        """End all, begin no more."""
        self._over = True
        self.tied.clear()
        self._armed.clear()
        active, self._active = self._active, []
        for _, end in active:
            end()

    def _begin(self, fault: Fault) -> None:
        world = self._world
        if self._over:
            return
        world.judge.fault(alone=not self._active)
        lasting = f" for {fault.lasts:g} s" if fault.lasts else ""
        strength = f" ({fault.share:g})" if fault.share else ""
        world.note(fault.target, f"FAULT {fault.kind}{strength}{lasting}")
        world.settle()
        end = _BEGIN[fault.kind](self, world.nodes.get(fault.target, self._any), fault)
        if end is not None:
            entry = (fault, end)
            self._active.append(entry)
            world.at(fault.lasts, self._end, entry)

    def _end(self, entry: tuple[Fault, Callable[[], None]]) -> None:
        if entry in self._active:
            self._active.remove(entry)
            self._world.settle()
            self._world.judge.fault_over()
            self._world.note(entry[0].target, f"the fault {entry[0].kind} is over")
            entry[1]()

    # Processes and hosts

    def _qemu_crash(self, node: Node, _: Fault) -> None:
        if node.qemu is not None:
            self._world.qemu_dies(node.qemu, "it crashed")

    def _qemu_freeze(self, node: Node, _: Fault) -> Callable[[], None] | None:
        qemu = node.qemu
        if qemu is None:
            return None
        qemu.freeze()
        return qemu.thaw

    def _daemon_crash(self, node: Node, _: Fault) -> Callable[[], None]:
        node.daemonless += 1
        self._world.kill_daemon(node)

        def end() -> None:
            node.daemonless -= 1
            self._world.start_daemon(node)

        return end

    def _daemon_freeze(self, node: Node, _: Fault) -> Callable[[], None]:
        node.stuck += 1

        def end() -> None:
            node.stuck -= 1
            if not node.stuck and node.daemon is not None:
                node.daemon.go_on()

        return end

    def _daemon_slow(self, node: Node, fault: Fault) -> Callable[[], None]:
        node.lags.append(fault.share)
        return lambda: node.lags.remove(fault.share)

    def _host_crash(self, node: Node, _: Fault) -> Callable[[], None]:
        world = self._world
        world.lose_power(node, "its host lost power")
        return lambda: world.regain_power(node)

    def _disk_lost(self, node: Node, fault: Fault) -> Callable[[], None]:
        end = self._host_crash(node, fault)
        node.disk = Durable()
        return end

    def _host_freeze(self, node: Node, _: Fault) -> Callable[[], None]:
        node.frozen += 1
        node.stuck += 1
        qemu = node.qemu
        if qemu is not None:
            qemu.freeze()
        self._world.disturb()

        def end() -> None:
            node.frozen -= 1
            node.stuck -= 1
            if qemu is not None:
                qemu.thaw()
            if not node.stuck and node.daemon is not None:
                node.daemon.go_on()
            self._world.disturb()

        return end

    def _clock_pause(self, node: Node, fault: Fault) -> Callable[[], None]:
        node.clock.pause(self._world.now, paused=True)
        thaw = self._host_freeze(node, fault)

        def end() -> None:
            node.clock.pause(self._world.now, paused=False)
            thaw()

        return end

    def _disk_slow(self, node: Node, fault: Fault) -> Callable[[], None]:
        node.fsyncs.append(fault.share)
        return lambda: node.fsyncs.remove(fault.share)

    # The network

    def _cut(self, node: Node, _: Fault) -> Callable[[], None]:
        return self._cut_ways(node.name, node.other.name)

    def _cut_from(self, node: Node, _: Fault) -> Callable[[], None]:
        return self._cut_ways(node.name)

    def _cut_ways(self, *names: str) -> Callable[[], None]:
        world = self._world
        world.network.cuts.update(names)
        world.disturb()

        def end() -> None:
            world.network.cuts.subtract(names)
            world.disturb()

        return end

    def _mute(self, node: Node, _: Fault) -> Callable[[], None]:
        return _counted(self._world.network.mutes, node)

    def _loss(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.network.losses, fault.share)

    def _delay(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.network.delays, fault.share)

    def _duplicate(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.network.duplicates, fault.share)

    def _reset(self, _: Node, __: Fault) -> None:
        for stream in self._world.streams:
            stream.reset()

    # The witness

    def _witness_away(self, node: Node, _: Fault) -> Callable[[], None]:
        return _counted(self._world.witness.away, node)

    def _witness_doubt(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.witness.doubts, fault.share)

    def _witness_slow(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.witness.slowness, fault.share)

    def _witness_restart(self, _: Node, __: Fault) -> Callable[[], None]:
        witness = self._world.witness
        witness.stopped += 1

        def end() -> None:
            witness.stopped -= 1

        return end

    # Fencing

    def _fence_fails(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.fencer.failures, fault.share)

    def _fence_doubt(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.fencer.doubts, fault.share)

    def _fence_slow(self, _: Node, fault: Fault) -> Callable[[], None]:
        return _among(self._world.fencer.slowness, fault.share)

    # QEMU's ways

    def _wait_for_occasion(self, _: Node, fault: Fault) -> None:
        self._armed[fault.kind] += 1

    def _primary(self, *, other: bool = False) -> Qemu | None:
        """Return the QEMU that is in COLO as primary, or the `other` one."""
        qemus = [node.qemu for node in self._world.nodes.values()]
        return next(
            (q for q in qemus if q is not None and q.entered and q.is_primary is not other), None
        )

    def _image_missed(self, _: Node, __: Fault) -> None:
        """The daemon cuts the migration as soon as it hears of it."""
        qemu = self._primary()
        if qemu is not None and not qemu.frozen:
            qemu.say("QUORUM_REPORT_BAD", False)
            if qemu.stream is not None and not qemu.node.stuck:
                self._world.at(self._world.latency(0.001), qemu.stream.reset)

    def _image_behind(self, _: Node, __: Fault) -> None:
        qemu = self._primary()
        if qemu is not None and not qemu.frozen:
            qemu.behind = True
            qemu.say("QUORUM_REPORT_BAD", True)

    def _copy_failed(self, _: Node, __: Fault) -> None:
        qemu = self._primary(other=True)
        if qemu is not None and not qemu.frozen:
            qemu.behind = True
            qemu.say("QUORUM_REPORT_BAD", False)

    def _own_checkpoint(self, _: Node, __: Fault) -> None:
        qemu = self._primary()
        if qemu is not None and qemu.stream is not None:
            qemu.stream.request()

    def _spurious_resume(self, _: Node, __: Fault) -> None:
        qemu = self._primary()
        if qemu is not None and not qemu.frozen:
            qemu.say("STOP")
            qemu.say("RESUME")

    def _guest_shutdown(self, _: Node, fault: Fault) -> None:
        qemu = self._world.judge.voice
        if qemu is None or qemu.status != "running" or qemu.frozen or not qemu.alive:
            return
        qemu.guest_ends(panicked=fault.kind == "guest-panic")

    # Orders

    def _speaker(self) -> Node | None:
        """Return the node whose guest is heard, if its daemon can be asked."""
        voice = self._world.judge.voice
        return voice.node if voice is not None and voice.node.daemon is not None else None

    def _switchover(self, _: Node, fault: Fault) -> None:
        node, record = self._speaker(), self._world.witness.record
        if node is not None and node.daemon is not None and record is not None:
            gently = fault.kind == "switchover"
            order = FailoverRequested(forced=False, generation=record.generation, gently=gently)
            node.daemon.post(order)

    def _unprotect(self, node: Node, _: Fault) -> Callable[[], None]:
        if node.daemon is not None:
            node.daemon.post(UnprotectRequested())
        return lambda: self._protect_again(node)

    def _protect_again(self, node: Node) -> None:
        """Order it until a daemon is there to take it."""
        if node.daemon is None or node.daemon.phase is Phase.INIT:
            self._world.at(0.5, self._protect_again, node)
        else:
            node.daemon.post(ProtectRequested())

    def _power_down(self, _: Node, fault: Fault) -> None:
        node, voice = self._speaker(), self._world.judge.voice
        if node is None or node.daemon is None or voice is None:
            return
        hard = fault.kind == "power-off"
        voice.off = voice.off or hard
        node.daemon.post(StopRequested(hard))


def _counted(faults: Counter[str], node: Node) -> Callable[[], None]:
    """Count one more fault of a node until the function returned is called."""
    faults[node.name] += 1
    return lambda: faults.subtract({node.name: 1})


def _among(strengths: list[float], strength: float) -> Callable[[], None]:
    """Let one more fault of this strength act until the function returned is called."""
    strengths.append(strength)
    return lambda: strengths.remove(strength)


_BEGIN: dict[str, Callable[[Happenings, Node, Fault], Callable[[], None] | None]] = {
    "qemu-crash": Happenings._qemu_crash,
    "qemu-freeze": Happenings._qemu_freeze,
    "daemon-crash": Happenings._daemon_crash,
    "daemon-freeze": Happenings._daemon_freeze,
    "daemon-slow": Happenings._daemon_slow,
    "host-crash": Happenings._host_crash,
    "host-freeze": Happenings._host_freeze,
    "disk-slow": Happenings._disk_slow,
    "cut": Happenings._cut,
    "cut-from": Happenings._cut_from,
    "mute": Happenings._mute,
    "loss": Happenings._loss,
    "delay": Happenings._delay,
    "duplicate": Happenings._duplicate,
    "reset": Happenings._reset,
    "witness-away": Happenings._witness_away,
    "witness-doubt": Happenings._witness_doubt,
    "witness-slow": Happenings._witness_slow,
    "witness-restart": Happenings._witness_restart,
    "fence-fails": Happenings._fence_fails,
    "fence-doubt": Happenings._fence_doubt,
    "fence-slow": Happenings._fence_slow,
    "bad-load": Happenings._wait_for_occasion,
    "ack-loss": Happenings._wait_for_occasion,
    "own-checkpoint": Happenings._own_checkpoint,
    "spurious-resume": Happenings._spurious_resume,
    "launch-fails": Happenings._wait_for_occasion,
    "guest-shutdown": Happenings._guest_shutdown,
    "guest-panic": Happenings._guest_shutdown,
    "disk-lost": Happenings._disk_lost,
    "image-missed": Happenings._image_missed,
    "image-behind": Happenings._image_behind,
    "copy-failed": Happenings._copy_failed,
    "switchover": Happenings._switchover,
    "failover": Happenings._switchover,
    "unprotect": Happenings._unprotect,
    "power-down": Happenings._power_down,
    "power-off": Happenings._power_down,
    "clock-pause": Happenings._clock_pause,
}
