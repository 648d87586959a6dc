"""The connection between two QEMUs: the first copy, checkpoints, and how it ends.

A checkpoint in steps: the secondary is asked, the primary stops and its state is taken
(`_captured`); the secondary has it all and loads it (`_loaded`); the primary hears that and its
guest runs (`_acked`). What stands still or is cut off holds the steps up; a connection that broke
ends them where they are.
"""

from typing import TYPE_CHECKING

from coloha.core.events import ColoMode

if TYPE_CHECKING:
    from coloha.sim.daemon import Daemon
    from coloha.sim.qemu import Qemu
    from coloha.sim.world import World

POLL_S = 0.02


class Stream:
    """The channel of one session. The daemons make it, QEMU takes it over end by end."""

    def __init__(self, world: "World", session: int, inviter: "Daemon", invited: "Daemon") -> None:
        self.world = world
        self.session = session
        self.inviter: Daemon | None = inviter
        self.invited: Daemon | None = invited
        self.primary: Qemu | None = None
        self.secondary: Qemu | None = None
        self.broken = False
        self.colo = False
        """COLO runs: the first copy is over."""
        self.state = 0.0
        """What the checkpoint under way carries: the seconds the guest had run."""
        self.checkpoint = ""
        """How far the checkpoint is; empty when there is none."""
        self.again = False
        self._cut_off: dict[int, float] = {}
        """Since when each end cannot reach the other, by the end's id."""
        self._noticed: set[int] = set()

    def ends(self) -> "list[Qemu]":
        """Return the QEMUs that have taken it."""
        return [end for end in (self.primary, self.secondary) if end is not None]

    def join(self, qemu: "Qemu", mode: ColoMode) -> None:
        """A QEMU takes its end; with both, the first copy begins."""
        if mode is ColoMode.PRIMARY:
            self.primary, self.inviter = qemu, None
        else:
            self.secondary, self.invited = qemu, None
        if self.primary is not None and self.secondary is not None:
            self.world.at(self.world.random.uniform(0.02, 0.2), self._copied)
        self.disturbed()

    def _stuck(self) -> bool:
        """Whether nothing moves just now, although nothing is known to be broken."""
        assert self.primary is not None
        assert self.secondary is not None
        return bool(
            self.primary.frozen
            or self.secondary.frozen
            or not self.world.network.open()
            or not (self.primary.alive and self.secondary.alive)
        )

    # The first copy

    def _copied(self) -> None:
        if self.broken:
            return
        if self._stuck():
            self.world.at(POLL_S, self._copied)
            return
        assert self.primary is not None
        assert self.secondary is not None
        self.primary.stop_for_checkpoint()
        self.primary.enter(ColoMode.PRIMARY)
        self.secondary.enter(ColoMode.SECONDARY)
        self.state = self.primary.ran
        self.world.at(self.world.latency(0.02), self._entered)

    def _entered(self) -> None:
        if self.broken:
            return
        if self._stuck():
            self.world.at(POLL_S, self._entered)
            return
        assert self.primary is not None
        assert self.secondary is not None
        self.secondary.life = self.primary.life
        self._load()
        self.secondary.entered = True
        self.secondary.resume()
        self.primary.entered = True
        self.primary.resume()
        self.primary.arm_deadman()
        self.colo = True

    def _load(self) -> None:
        assert self.secondary is not None
        self.secondary.settle()
        secondary = self.secondary
        secondary.ran = secondary.remembers = self.state
        secondary.a_holds = secondary.b_holds = self.state
        self.world.judge.loaded(self.session, self.state)
        self.world.moment("loaded")

    # Checkpoints

    def request(self) -> None:
        """A checkpoint is asked for. While one is under way, a late request causes another."""
        if self.broken or not self.colo:
            return
        if self.checkpoint:
            self.again = self.again or self.checkpoint == "loaded"
            return
        self.checkpoint = "asked"
        self.world.moment("requested")
        self.world.at(self.world.latency(0.002), self._captured)

    def _captured(self) -> None:
        primary, secondary = self.primary, self.secondary
        assert primary is not None
        assert secondary is not None
        if self.broken or self.checkpoint != "asked":
            return
        if self._stuck():
            self.world.at(POLL_S, self._captured)
            return
        primary.stop_for_checkpoint()
        secondary.settle()
        secondary.status = "colo"
        secondary.blocked = True
        self.state = primary.ran
        self.checkpoint = "sent"
        self.world.moment("captured")
        self.world.at(self.world.latency(0.006), self._loaded)

    def _loaded(self) -> None:
        primary, secondary = self.primary, self.secondary
        assert primary is not None
        assert secondary is not None
        if self.checkpoint != "sent" or not (secondary.alive and secondary.blocked):
            return
        if secondary.frozen or (primary.alive and self._stuck() and not self.broken):
            self.world.at(POLL_S, self._loaded)
            return
        # A connection that broke, or whose primary died, may have carried all of it before.
        if (self.broken or not primary.alive) and self.world.random.random() < 0.5:
            return
        secondary.blocked = False
        secondary.read_soon()
        if self.world.take_fault("bad-load"):
            secondary.bad = True
            self.world.note(secondary.node.name, "the checkpoint leaves QEMU half loaded")
            self._break()
            return
        self.checkpoint = "loaded"
        self._load()
        secondary.status = "running"
        if self.world.take_fault("ack-loss"):
            self._break()
            return
        self.world.at(self.world.latency(0.002), self._acked)

    def _acked(self) -> None:
        assert self.primary is not None
        if self.broken or self.checkpoint != "loaded":
            return
        if self._stuck():
            self.world.at(POLL_S, self._acked)
            return
        self.checkpoint = ""
        self.primary.resume()
        self.world.moment("committed")
        if self.again:
            self.again = False
            self.request()

    # Ends

    def _break(self) -> None:
        self.broken = True
        self.world.moment("broken")
        self.disturbed()

    def shut_down(self, by: "Qemu") -> None:
        """One end is shut down by hand: it notices at once."""
        self.broken = True
        self._notice(by)
        self.disturbed()

    def leave(self, qemu: "Qemu") -> None:
        """One end goes its own way."""
        self.broken = True
        self._noticed.add(id(qemu))
        qemu.blocked = False
        self.disturbed()

    def reset(self) -> None:
        """The connection breaks, both ends alive."""
        if not self.broken:
            self._break()

    def disturbed(self) -> None:
        """Something happened to an end, a host or the network: see who will notice, and when."""
        for end in self.ends():
            if not end.alive or id(end) in self._noticed:
                continue
            other = self.secondary if end is self.primary else self.primary
            gone = self.broken or self._gone(other, end)
            far = end.node.other
            reachable = self.world.network.open() and far.powered and not far.frozen
            if reachable:
                self._cut_off.pop(id(end), None)
                if gone:
                    self.world.at(self.world.latency(0.003), self._notice, end)
            elif id(end) not in self._cut_off:
                self._cut_off[id(end)] = self.world.now
                timeout_s = self.world.settings.stall_timeout_s
                self.world.at(timeout_s, self._timed_out, end, self.world.now)

    def _gone(self, other: "Qemu | None", end: "Qemu") -> bool:
        """Whether nobody holds the far end any more."""
        if other is not None:
            return not other.alive
        holder = self.invited if end is self.primary else self.inviter
        return holder is None or not holder.alive

    def _timed_out(self, end: "Qemu", since: float) -> None:
        if self._cut_off.get(id(end)) == since:
            self.broken = True
            self._notice(end)
            self.disturbed()

    def _notice(self, end: "Qemu") -> None:
        """Tell one end that the connection is over."""
        if not end.alive or end.stream is not self or id(end) in self._noticed:
            return
        if end.frozen:
            self.world.at(POLL_S, self._notice, end)
            return
        if end.blocked and self.checkpoint == "sent" and self.world.random.random() < 0.3:
            self.world.at(self.world.latency(0.02), self._notice, end)  # it may yet load
            return
        self._noticed.add(id(end))
        self.broken = True
        end.settle()
        if end.blocked:
            end.blocked = False  # its guest stands still; its memory is as before
            end.read_soon()
        if end.entered:
            end.say("COLO_EXIT")
        elif end is self.primary:
            end.migration_failed()
        else:
            self.world.qemu_dies(end, "its first copy broke off")
