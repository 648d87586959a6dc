"""The promises, judged from outside: by what clients hear, what the record says, what dies.

Nothing here knows the core. A broken promise raises `Violation`, with a name:

    two-voices       a copy was heard after another one had been heard
    forgotten        clients were told what the one who speaks, or may, does not remember
    bad-copy         a half-loaded copy became the VM
    no-right         a copy speaks freely although the record does not name its node alone
    not-dead         a copy became the VM while the one before lived, where that is to be certain
    record           the record made a move that the rules do not have
    lost-vm          the VM was lost although a copy could have lived, or by one fault alone
    not-protected    the faults are over, and the pair did not get protected in time
    two-qemus, spinning, core-stopped, crashed       the machine or the shell is at fault
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from coloha.core.context import Fencing, OnSilence, Settings
from coloha.core.events import ColoMode, Role
from coloha.core.record import Record

if TYPE_CHECKING:
    from coloha.sim.node import Node
    from coloha.sim.qemu import Qemu
    from coloha.sim.world import World

ROUNDING_S = 1e-6
SETTLED_S = 1.0
"""So long after a fault nothing that it caused is under way any more, if the pair is whole."""
CLAIM_S = 1.0
"""So long a copy may be dead, and the other node not know, which gives its own up for it."""


class Violation(Exception):  # noqa: N818 - it is what the simulator looks for, no error of it
    """A promise was broken: which, and how."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Judge:
    """Watches one history."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.life = 0
        """How often the VM was booted."""
        self.said = 0.0
        """How far clients know what this life of the VM said, seconds of guest time."""
        self.said_at = 0.0
        self.voice: Qemu | None = None
        """Whom clients heard last."""
        self._voice_since = 0.0
        self._silenced: set[Qemu] = set()
        self._loaded: dict[int, float] = {}
        """By session: how far the secondary's copy goes."""
        self._heirs: set[Qemu] = set()
        """Those who are the VM, or may become it, by the record."""
        self.stale = 0
        """Output that a copy let go late because it stood still (docs/safety.md)."""
        self.failovers = 0
        self.faults = 0
        """Faults since the pair was last whole, or since the beginning."""
        self._was_whole = False
        self._quiet_since = 0.0
        """When a fault last came or ended, or the record last changed."""

    # What clients hear

    def heard(
        self, qemu: "Qemu", upto: float, *, free: bool = False, written_at: float = 0.0
    ) -> None:
        """Clients hear the output of `qemu` up to some second of its guest.

        :param free: the output is not held; else it was released by what was written then.
        """
        world, name = self._world, qemu.node.name
        if qemu in self._silenced or qemu.life != self.life:
            if not free and self._stood_still(qemu, written_at) and not sure(world.settings):
                self.stale += 1
                world.note(name, "output comes late: the process stood still")
                if qemu.life == self.life and upto > self.said + ROUNDING_S:
                    raise Violation("forgotten", f"{name} let go late what nobody remembers")
                return
            raise Violation("two-voices", f"{name} is heard after another copy was")
        if qemu.bad:
            raise Violation("bad-copy", f"{name} is heard with a half-loaded copy")
        if qemu is not self.voice:
            self._new_voice(qemu)
        self.said = max(self.said, upto)
        self.said_at = world.now
        record = world.witness.record
        if record is None:
            return
        if free and (record.protected or record.primary != name):
            raise Violation("no-right", f"{name} speaks freely, the record is {record}")
        if record.protected and record.primary == name and record.session is not None:
            held = self._loaded.get(record.session, 0.0)
            if upto > held + ROUNDING_S:
                late_ms = (upto - held) * 1000
                raise Violation(
                    "forgotten",
                    f"{name} said {late_ms:.1f} ms more than its secondary holds, under {record}",
                )

    def _new_voice(self, qemu: "Qemu") -> None:
        if self.voice is not None:
            self._silenced.add(self.voice)
            self.failovers += self.voice.life == qemu.life
        self.voice = qemu
        self._voice_since = self._world.now
        self._world.note(qemu.node.name, "clients hear the VM from here now")

    def _stood_still(self, qemu: "Qemu", written_at: float) -> bool:
        """Whether a release was written before the other copy spoke, and its QEMU then froze."""
        return written_at <= self._voice_since and qemu.thawed_at >= written_at

    # Copies

    def loaded(self, session: int, upto: float) -> None:
        """The secondary of a session holds the VM as it was at that second."""
        self._loaded[session] = upto

    def promoted(self, qemu: "Qemu") -> None:
        """A secondary becomes the VM."""
        name, record = qemu.node.name, self._world.witness.record
        if qemu.bad:
            raise Violation("bad-copy", f"{name} promotes a half-loaded copy")
        if qemu.life == self.life and qemu.remembers < self.said - ROUNDING_S:
            lost_ms = (self.said - qemu.remembers) * 1000
            raise Violation("forgotten", f"{name} promotes a copy that lacks {lost_ms:.1f} ms")
        if record is None or record.protected or record.primary != name:
            raise Violation("no-right", f"{name} promotes, the record is {record}")
        other = self.voice
        if sure(self._world.settings) and other is not None and other.alive and other is not qemu:
            raise Violation("not-dead", f"{name} promotes, the copy that was heard lives")

    def boots(self, node: "Node") -> None:
        """The VM starts from nothing on a node: it need not remember."""
        self.life += 1
        self.said = 0.0
        off = any(heir.off for heir in self._heirs)
        if self.life > 1 and self.faults <= 1 and self._was_whole and not off:
            raise Violation("lost-vm", f"one fault, and {node.name} has to boot the VM anew")

    def launched(self, qemu: "Qemu") -> None:
        """A QEMU was started."""
        qemu.node.runs.add(qemu.run)
        if qemu.run.role is Role.PRIMARY:
            self._heirs = {qemu}

    def asked(self, node: "Node") -> bool:
        """Return whether a node that asks for a swap now knows that its own copy is dead."""
        mine = [heir for heir in self._heirs if heir.node is node]
        return all(heir.run in node.told_dead for heir in mine)

    def gave_up(self, node: "Node", session: int | None) -> None:
        """A node gives up its copy of a session for ever: for a copy that lives, if it is good."""
        qemu = node.qemu
        if qemu is None or qemu.run.session != session or qemu not in self._heirs:
            return
        others = self._heirs - {qemu}
        doomed = [heir for heir in others if self._world.fencer.doomed(heir.node)]
        if doomed and self._usable({qemu}) and not self._usable(others - set(doomed)):
            raise Violation(
                "lost-vm", f"{node.name} gives its copy up, and has the other one's host fenced"
            )
        recently = self._world.now - CLAIM_S
        if self._usable(others) or any(heir.off or heir.died_at > recently for heir in others):
            self._heirs = others

    def killed(self, qemu: "Qemu") -> None:
        """A daemon kills its own QEMU: not if it was the last copy of the VM, and well.

        Without a witness an operator's order to hand over believes what the other node said last.
        """
        usable = self._usable(self._heirs)
        recently = self._world.now - CLAIM_S
        believed = not self._world.settings.witnessed and any(
            heir.died_at > recently for heir in self._heirs
        )
        if usable == [qemu] and not (self._hung(qemu) or qemu.behind or believed):
            raise Violation("lost-vm", f"{qemu.node.name} kills the last copy of the VM")

    def _hung(self, qemu: "Qemu") -> bool:
        """Whether it stands still, or did so lately: its daemon need not wait for ever."""
        patience_s = 2 * self._world.settings.stall_timeout_s
        return bool(qemu.frozen) or self._world.now < qemu.thawed_at + patience_s

    def _usable(self, copies: "Iterable[Qemu]") -> "list[Qemu]":
        return [
            copy
            for copy in copies
            if copy.alive and not copy.bad and not copy.off and copy.life == self.life
        ]

    # The record

    def record_moved(self, old: Record | None, new: Record, by: "Node", told_dead: bool) -> None:
        """The record changed. `told_dead`: the one who asked knew that its own copy was dead."""
        self._quiet_since = self._world.now
        problem = forbidden(old, new, by.name)
        if problem is not None:
            raise Violation("record", f"{by.name} made {new} of {old or 'nothing'}: {problem}")
        if new.protected:
            assert new.session is not None
            held = self._loaded.get(new.session)
            if held is None or held < self.said - ROUNDING_S:
                raise Violation("forgotten", f"{new}, but clients know more than the secondary")
            self._heirs |= {
                qemu
                for node in self._world.nodes.values()
                if (qemu := node.qemu) is not None and qemu.run.session == new.session
            }
        elif old is not None and old.protected:
            self._see_claims_gone(old, by)
            self._turned(by, told_dead)

    def _see_claims_gone(self, old: Record, winner: "Node") -> None:
        """Where nobody decides and silence means nothing, the other copy is dead or given up."""
        settings = self._world.settings
        if settings.witnessed or settings.on_silence is not OnSilence.HOLD:
            return
        for heir in self._heirs:
            if heir.node is not winner and heir.alive and heir.node.disk.gave_up != old.session:
                raise Violation("not-dead", f"{winner.name} goes on, {heir.node.name} may, too")

    def _turned(self, winner: "Node", told_dead: bool) -> None:
        """A protected generation ended: one of two copies is given up."""
        lost = {heir for heir in self._heirs if heir.node is not winner}
        self._heirs -= lost
        off = any(heir.off for heir in self._heirs)
        if off or not told_dead or self._usable(self._heirs) or not self._usable(lost):
            return
        patience_s = 0.95 * self._world.settings.cold_start_after_s
        daemon, now = winner.daemon, self._world.now
        if daemon is not None and now - daemon.heard_at < patience_s:
            raise Violation(
                "lost-vm", f"{winner.name} takes the generation for a dead copy; the other lives"
            )

    # Wholeness

    def fault(self, *, alone: bool) -> None:
        """A fault comes. `alone`: no other one is under way."""
        if alone and self._world.now > self._quiet_since + SETTLED_S and self.whole():
            self.faults, self._was_whole = 0, True
        self.faults += 1
        self._quiet_since = self._world.now

    def fault_over(self) -> None:
        """A fault has ended."""
        self._quiet_since = self._world.now

    def whole(self) -> bool:
        """Whether the pair is protected and nothing is wrong with any part of it."""
        world = self._world
        record = world.witness.record
        if record is None or not record.protected or record.secondary is None:
            return False
        if world.witness.late:
            return False
        primary, secondary = world.nodes[record.primary], world.nodes[record.secondary]
        if not world.settings.witnessed and secondary.disk.record != primary.disk.record:
            return False
        first, second = primary.qemu, secondary.qemu
        if first is None or second is None or first.stream is None:
            return False
        return (
            primary.daemon is not None
            and secondary.daemon is not None
            and not first.stream.broken
            and first.stream is second.stream
            and first.mode is ColoMode.PRIMARY
            and second.mode is ColoMode.SECONDARY
            and not second.bad
            and not first.off
        )


def sure(settings: Settings) -> bool:
    """Return whether a copy speaks only once the other one is seen to be dead."""
    return not settings.witnessed or settings.fencing is Fencing.REQUIRED


def forbidden(old: Record | None, new: Record, by: str) -> str | None:
    """Say which rule of docs/design.md forbids this move of the record, or None."""
    if old is None:
        fine = new.generation == 1 and new.primary == by and not new.protected
        return None if fine else "a first record is solo(1) of the one who makes it"
    if new.lineage != old.lineage:
        return "the lineage changed"
    if (new.generation, new.protected) <= (old.generation, old.protected):
        return "it does not go up"
    if new.primary != by:
        return "the one who asks must be the primary"
    if new.protected:
        if new.generation != old.generation or new.primary != old.primary:
            return "R1: protecting changes neither generation nor primary"
        return None
    if new.generation != old.generation + 1:
        return "a generation was left out"
    if not old.protected and new.primary != old.primary:
        return "R4: in solo only the primary changes the record"
    if old.protected and by not in (old.primary, old.secondary):
        return "R2: only the two of a protected pair may take the next generation"
    return None
