"""What is explored: two real machines, and everything around them small enough to try all of it.

QEMU is a mode, and its guest's output a whole number: how far the guest is, a number for each time
that something may be held, released or covered anew. All such numbers count from what clients were
told last, which is 0. A world is a value: numbers of things that are told apart once (`Table`).

The promises are judged here, from outside, with the words of `coloha.sim.checkers`.
"""

from typing import Any, NamedTuple

from coloha.core.actions import Script, SwapRecord
from coloha.core.context import OnSilence, Settings
from coloha.core.events import (
    ChannelFailed,
    ColoExited,
    ColoMode,
    CopyBad,
    Durable,
    Event,
    Launched,
    QemuExited,
    Role,
    Run,
)
from coloha.core.record import Record
from coloha.sim.checkers import Violation, forbidden, sure
from coloha.sim.frozen import Minds, Table

NODES = ("alpha", "beta")
NOBODY = -1
FORGOTTEN = -9
"""Older than everything that matters."""
EMPTY = -10
"""What buffer B holds when it holds nothing."""

BLANK, INCOMING, ALONE = "blank", "incoming", "alone"
NOW, LATE, OVERDUE, LATER, SOME_TIME = "now", "late", "overdue", "later", "some time"
"""When something in flight comes: before time passes; whenever it likes; as `NOW`, having been
late as long as it may; not before time passes; at the end of any instant."""

MODES = {
    ALONE: ColoMode.NONE,
    BLANK: ColoMode.NONE,
    INCOMING: ColoMode.NONE,
    "primary": ColoMode.PRIMARY,
    "secondary": ColoMode.SECONDARY,
}


class Qemu(NamedTuple):
    """A process. `ran`: how far its guest is, or as secondary, how far its copy goes."""

    run: Run
    mode: str
    held: bool
    """Its output waits in the buffers; a secondary's goes to a sink whatever this says."""
    ran: int
    b: int
    """How far what buffer B holds goes; what the guest said since waits in A."""
    bad: bool = False
    old: bool = False
    """It is of an earlier life of the VM."""
    silenced: bool = False
    """Another copy was heard after it."""

    @property
    def free(self) -> bool:
        """Whether clients hear all that its guest says."""
        return not self.held and self.mode in (ALONE, "primary")


class Item(NamedTuple):
    """Something in flight, to or at a node.

    beat      a heartbeat to it: (number of the wire, made how many pulses ago, which pulse it
              echoes, made how many ago, or -1)
    ask       its question to the witness: `ReadRecord` or `SwapRecord`
    answer    of the witness to it: number of an event
    ghost     a swap or a fencing of which nobody knows any more; it may yet be made
    fence     its order to have the other host switched off
    news      any other event for its daemon: its number
    script    at its QEMU: (script, session, whether it was executed)
    """

    kind: str
    node: int
    what: Any
    when: str = NOW


class World:
    """One state of everything. Pairs are alpha's and beta's."""

    __slots__ = (
        *("minds", "disks", "lives", "heard", "qemus", "flight", "cut", "away", "record"),
        *("stream", "offer", "loaded", "voice", "faults"),
    )

    def __init__(self) -> None:
        self.minds: tuple[int, int] = (NOBODY, NOBODY)
        self.disks: tuple[int, int] = (0, 0)
        """Of nodes without a daemon."""
        self.lives: tuple[int, int] = (0, 0)
        self.heard: tuple[int, int] = (-1, -1)
        """How many pulses ago the other made the newest one that each has heard; -1 for none."""
        self.qemus: tuple[int, int] = (0, 0)
        self.flight: tuple[int, ...] = ()
        self.cut: tuple[bool, bool] = (False, False)
        """The way from each node."""
        self.away = False
        """The witness does not answer."""
        self.record = 0
        self.stream: int | None = None
        """The session whose QEMUs are connected."""
        self.offer: tuple[int, int] | None = None
        """The session that is prepared, and who invited."""
        self.loaded: tuple[int, int] | None = None
        """The last session that had a copy, and how far that goes."""
        self.voice: str | None = None
        """The run that clients heard last."""
        self.faults = 0

    def copy(self) -> "World":
        """Return another one like it."""
        made = World.__new__(World)
        made.minds, made.disks, made.lives = self.minds, self.disks, self.lives
        made.heard, made.qemus, made.flight = self.heard, self.qemus, self.flight
        made.cut, made.away, made.record = self.cut, self.away, self.record
        made.stream, made.offer, made.loaded = self.stream, self.offer, self.loaded
        made.voice, made.faults = self.voice, self.faults
        return made

    def key(self) -> int:
        """Return a number that is the same for worlds with the same future, faults apart."""
        return hash(
            (
                *(self.minds, self.disks, self.lives, self.heard, self.qemus, self.flight),
                *(self.cut, self.away, self.record, self.stream, self.offer, self.loaded),
                self.voice,
            )
        )


def put(pair: tuple[Any, Any], node: int, value: Any) -> tuple[Any, Any]:
    """Return the pair with another value for one node."""
    return (pair[0], value) if node else (value, pair[1])


class Things:
    """What QEMUs, their connection and the record do, and the judge."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """What every daemon is told, names and numbers apart."""
        self.minds = Minds()
        self.items: Table[Item] = Table()
        self.qemus: Table[Qemu] = Table()
        self.records: Table[Record] = Table()
        self.disks: Table[Durable] = Table()
        self.log: list[tuple[str, str]] | None = None
        """Who, and what, for people."""

    def note(self, node: int, text: str) -> None:
        """Write a line of the timeline."""
        if self.log is not None:
            self.log.append((NODES[node] if node >= 0 else "", text))

    # In flight

    def send(self, w: World, kind: str, node: int, what: Any, when: str = NOW) -> None:
        """Put something into flight."""
        w.flight = tuple(sorted((*w.flight, self.items.number(Item(kind, node, what, when)))))

    def take(self, w: World, number: int) -> Item:
        """Take something out of flight."""
        at = w.flight.index(number)
        w.flight = w.flight[:at] + w.flight[at + 1 :]
        item: Item = self.items[number]
        return item

    def tell(self, w: World, node: int, event: Event, when: str = NOW) -> None:
        """Let a daemon, if there is one, hear of something."""
        if w.minds[node] != NOBODY:
            self.send(w, "news", node, self.minds.events.number(event), when)

    def drop(self, w: World, node: int, *kinds: str) -> None:
        """Let everything of these kinds for a node be gone."""
        items = self.items
        w.flight = tuple(n for n in w.flight if items[n].node != node or items[n].kind not in kinds)

    # QEMU

    def qemu(self, w: World, node: int) -> Qemu | None:
        """Return a node's QEMU."""
        found: Qemu | None = self.qemus[w.qemus[node]]
        return found

    def set_qemu(self, w: World, node: int, qemu: Qemu | None) -> None:
        """Change a node's QEMU."""
        w.qemus = put(w.qemus, node, self.qemus.number(qemu))

    def launch(self, w: World, node: int, run: Run) -> None:
        """Start a process; a primary's guest boots."""
        if w.qemus[node]:
            raise Violation("two-qemus", f"{NODES[node]} starts a QEMU beside another one")
        if run.role is Role.PRIMARY:
            other = self.qemu(w, 1 - node)
            if other is not None:
                self.set_qemu(w, 1 - node, other._replace(old=True))
            w.loaded = None
            self.set_qemu(w, node, Qemu(run, ALONE, False, 0, EMPTY))
        else:
            self.set_qemu(w, node, Qemu(run, BLANK, False, FORGOTTEN, EMPTY))
        self.tell(w, node, Launched(run), LATER)

    def die(self, w: World, node: int, *, quietly: bool = False) -> None:
        """End a process. `quietly`: its host is gone too, so that no connection says so."""
        qemu = self.qemu(w, node)
        if qemu is None:
            return
        self.set_qemu(w, node, None)
        self.drop(w, node, "script")
        self.tell(w, node, QemuExited(qemu.run))
        if w.offer is not None and w.offer[1] == node:
            self.clear_offer(w)
        elif w.offer is not None and w.offer[0] == qemu.run.session:
            self.tell(w, w.offer[1], ChannelFailed(w.offer[0], "connection reset"))
            w.offer = None
        if w.stream is not None and qemu.mode in ("primary", "secondary"):
            self.break_stream(w, hidden=quietly or any(w.cut))

    def clear_offer(self, w: World) -> None:
        """The channel of a session that was prepared is closed: who waits at its end dies."""
        if w.offer is None:
            return
        (session, inviter), w.offer = w.offer, None
        qemu = self.qemu(w, 1 - inviter)
        if qemu is not None and qemu.mode == INCOMING and qemu.run.session == session:
            self.note(1 - inviter, "QEMU exits: its first copy broke off")
            self.die(w, 1 - inviter)

    def break_stream(self, w: World, *, hidden: bool = False) -> None:
        """The connection of two QEMUs in COLO is over: both say so, at once or some time."""
        w.stream = None
        when = SOME_TIME if hidden else NOW
        for node in (0, 1):
            qemu = self.qemu(w, node)
            if qemu is not None and qemu.mode in ("primary", "secondary"):
                self.tell(w, node, ColoExited(), when)

    # What scripts do

    def able(self, w: World, node: int, script: Script) -> bool | None:
        """Whether QEMU can do it: yes, never, or None for not now."""
        qemu = self.qemu(w, node)
        assert qemu is not None
        open_now = True if not any(w.cut) else None
        if script is Script.ACCEPT_COLO:
            return qemu.mode == BLANK and w.offer is not None and w.offer[0] == qemu.run.session
        if script is Script.AWAIT_COLO:
            return None if qemu.mode == INCOMING else qemu.mode == "secondary"
        if script is Script.ENTER_COLO:
            other = self.qemu(w, 1 - node)
            ready = (
                w.offer is not None
                and other is not None
                and other.mode == INCOMING
                and w.offer == (other.run.session, node)
            )
            return open_now if ready else False
        if script is Script.EPOCH:
            return open_now if qemu.mode == "primary" and w.stream is not None else False
        if script is Script.PROMOTE:
            # The daemon looks whether the copy is good before it begins.
            return not qemu.bad and qemu.mode in ("secondary", ALONE)
        return True

    def effect(self, w: World, node: int, script: Script) -> None:
        """Let QEMU do it."""
        qemu = self.qemu(w, node)
        assert qemu is not None
        if script is Script.ACCEPT_COLO:
            self.set_qemu(w, node, qemu._replace(mode=INCOMING))
        elif script is Script.ENTER_COLO:
            assert w.offer is not None
            w.stream, w.offer = w.offer[0], None
            self._load(w, node, "secondary")
        elif script is Script.ARM or (script is Script.ADOPT and qemu.mode == "primary"):
            self.set_qemu(w, node, qemu._replace(held=True, ran=qemu.ran + (not qemu.held)))
        elif script is Script.EPOCH:
            self._load(w, node, "secondary")
        elif script is Script.RELEASE:
            self.let_go(w, node)
        elif script is Script.LEAVE_COLO:
            if w.offer is not None and w.offer[1] == node:
                self.clear_offer(w)
            self._part(w, node)
        elif script is Script.PROMOTE and qemu.mode == "secondary":
            self._promoted(w, node, qemu)
            self._part(w, node)
            self.note(node, "QEMU becomes the VM")

    def let_go(self, w: World, node: int) -> None:
        """Buffer B is emptied."""
        qemu = self.qemu(w, node)
        assert qemu is not None
        if qemu.held and qemu.b != EMPTY:
            self.set_qemu(w, node, qemu._replace(b=EMPTY))
            self._heard(w, node, qemu.b, free=False)

    def fill(self, w: World, node: int) -> None:
        """An epoch begins: A is emptied into B."""
        qemu = self.qemu(w, node)
        assert qemu is not None
        if qemu.held:
            self.set_qemu(w, node, qemu._replace(b=qemu.ran))

    def _load(self, w: World, node: int, mode: str) -> None:
        """The other node's QEMU holds a checkpoint of the guest, which then goes on."""
        qemu, copy = self.qemu(w, node), self.qemu(w, 1 - node)
        assert qemu is not None
        assert copy is not None
        self.set_qemu(w, 1 - node, copy._replace(mode=mode, ran=qemu.ran, old=qemu.old))
        assert w.stream is not None
        w.loaded = (w.stream, qemu.ran)
        self.set_qemu(w, node, qemu._replace(mode="primary", ran=qemu.ran + 1))

    def spoil(self, w: World, node: int) -> None:
        """A checkpoint leaves the copy of a node's primary half loaded; the connection breaks."""
        copy = self.qemu(w, 1 - node)
        assert copy is not None
        self.set_qemu(w, 1 - node, copy._replace(bad=True))
        self.tell(w, 1 - node, CopyBad("did not load"))
        self.break_stream(w)

    def _part(self, w: World, node: int) -> None:
        """A QEMU ends COLO for itself: its output is open, and its guest goes on."""
        qemu = self.qemu(w, node)
        assert qemu is not None
        step = 1 if qemu.mode == "secondary" else 0
        in_colo = qemu.mode in ("primary", "secondary")
        self.set_qemu(w, node, qemu._replace(mode=ALONE, held=False, ran=qemu.ran + step))
        if w.stream is not None and in_colo:
            self.break_stream(w, hidden=any(w.cut))

    # The judge

    def judge(self, w: World) -> None:
        """Let clients hear whoever is free to speak."""
        for node in (0, 1):
            qemu = self.qemu(w, node)
            if qemu is not None and qemu.free:
                self._heard(w, node, qemu.ran, free=True)

    def _heard(self, w: World, node: int, upto: int, *, free: bool) -> None:
        qemu, name = self.qemu(w, node), NODES[node]
        assert qemu is not None
        if qemu.silenced or qemu.old:
            raise Violation("two-voices", f"{name} is heard after another copy was")
        if qemu.bad:
            raise Violation("bad-copy", f"{name} is heard with a half-loaded copy")
        if w.voice != qemu.run.id:
            self._new_voice(w, node, qemu)
        record: Record | None = self.records[w.record]
        if record is not None:
            self._entitled(w, record, name, upto, free=free)
        if upto > 0:
            self._said(w, upto)

    def _entitled(self, w: World, record: Record, name: str, upto: int, *, free: bool) -> None:
        if free and (record.protected or record.primary != name):
            raise Violation("no-right", f"{name} speaks freely, the record is {record}")
        if record.protected and record.primary == name:
            held = w.loaded[1] if w.loaded and w.loaded[0] == record.session else FORGOTTEN
            if upto > held:
                text = f"{name} said more than its secondary holds, under {record}"
                raise Violation("forgotten", text)

    def _new_voice(self, w: World, node: int, qemu: Qemu) -> None:
        other = self.qemu(w, 1 - node)
        if other is not None and other.run.id == w.voice:
            self.set_qemu(w, 1 - node, other._replace(silenced=True))
        w.voice = qemu.run.id
        self.note(node, "clients hear the VM from here now")

    def _said(self, w: World, upto: int) -> None:
        """Clients were told so much more: count from there."""
        for node in (0, 1):
            qemu = self.qemu(w, node)
            if qemu is not None and not qemu.old:
                b = EMPTY if qemu.b == EMPTY else max(qemu.b - upto, FORGOTTEN)
                moved = qemu._replace(ran=max(qemu.ran - upto, FORGOTTEN), b=b)
                self.set_qemu(w, node, moved)
        if w.loaded is not None:
            w.loaded = (w.loaded[0], max(w.loaded[1] - upto, FORGOTTEN))

    def _promoted(self, w: World, node: int, qemu: Qemu) -> None:
        name, record = NODES[node], self.records[w.record]
        if qemu.bad:
            raise Violation("bad-copy", f"{name} promotes a half-loaded copy")
        if not qemu.old and qemu.ran < 0:
            raise Violation("forgotten", f"{name} promotes a copy that lacks what clients know")
        if record is None or record.protected or record.primary != name:
            raise Violation("no-right", f"{name} promotes, the record is {record}")
        other = self.qemu(w, 1 - node)
        if sure(self.settings) and other is not None and other.run.id == w.voice:
            raise Violation("not-dead", f"{name} promotes, the copy that was heard lives")

    # The record

    def disk(self, w: World, node: int) -> Durable:
        """Return what a node's disk holds, between two moves."""
        raise NotImplementedError

    def copied(self, w: World, node: int, record: Record) -> None:
        """A node without a witness has `record` on its disk: the later one of both counts."""
        old: Record | None = self.records[w.record]
        if old is None or _rank(record) > _rank(old):
            self._turn(w, node, old, record)

    def swap(self, w: World, node: int, asked: SwapRecord) -> bool:
        """Make a swap if the record is what it expects: whatever is asked for, to judge it."""
        old = self.records[w.record]
        if old != asked.expected:
            return False
        self._turn(w, node, old, asked.new)
        return True

    def _turn(self, w: World, node: int, old: Record | None, new: Record) -> None:
        name = NODES[node]
        self.note(node, f"the record: {old or 'none'} -> {new}")
        w.record = self.records.number(new)
        problem = forbidden(old, new, name)
        if problem is not None:
            raise Violation("record", f"{name} made {new} of {old or 'nothing'}: {problem}")
        if new.protected and (w.loaded is None or w.loaded[0] != new.session or w.loaded[1] < 0):
            raise Violation("forgotten", f"{new}, but clients know more than the secondary")
        if self.settings.witnessed or old is None or not old.protected:
            return
        other = self.qemu(w, 1 - node)
        heir = other is not None and (other.mode == "primary" or other.run.session == old.session)
        holds = self.settings.on_silence is OnSilence.HOLD
        if holds and heir and self.disk(w, 1 - node).gave_up != old.session:
            raise Violation("not-dead", f"{name} goes on, {NODES[1 - node]} may, too")


def _rank(record: Record) -> tuple[int, bool]:
    return record.generation, record.protected
