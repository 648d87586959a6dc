"""The phases of a pair on one node, and the moves between them, as data.

The machine refuses a move that is not in `TRANSITIONS`, and the picture in docs/ is drawn from it.
"""

from enum import StrEnum


class Phase(StrEnum):
    """What this node does for the pair just now."""

    INIT = "init"
    """Reading the durable state, the record, and which QEMU runs here."""
    ADOPT = "adopt"
    """A QEMU was found running: asking it what it is."""
    STANDBY = "standby"
    """No QEMU here; ready to become the secondary."""
    BOOT = "boot"
    """The record names this node; starting the VM."""
    SOLO = "solo"
    """The VM runs here alone, its output open."""
    INVITE = "invite"
    """Solo, and the other node is preparing a secondary."""
    SYNC = "sync"
    """Solo, and the VM's disks and memory are being copied to the secondary."""
    ARM = "arm"
    """Output is held; the first epochs run; the record is about to say protected."""
    PROTECTED = "protected"
    """Primary: epochs run, the secondary may take over."""
    DEFEND = "defend"
    """Primary: protection broke; asking the witness for the next generation. Output is held."""
    LEAVE = "leave"
    """Primary: the generation is ours; ending COLO and opening the output."""
    YIELDED = "yielded"
    """The primary's QEMU is gone and the secondary may take over."""
    PREPARE = "prepare"
    """Starting the secondary's QEMU."""
    LOAD = "load"
    """Secondary: receiving the first copy of the VM."""
    FOLLOW = "follow"
    """Secondary: in COLO, promotable."""
    CLAIM = "claim"
    """Secondary: the primary is gone; asking the witness for the next generation."""
    PROMOTE = "promote"
    """The generation is ours; the secondary becomes the VM."""
    KILL = "kill"
    """This node's QEMU must die before anything else."""
    OFF = "off"
    """The guest shut itself down."""
    HALTED = "halted"
    """coloha cannot decide: an operator must."""


_P = Phase

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    _P.INIT: frozenset({_P.ADOPT, _P.STANDBY, _P.BOOT, _P.YIELDED, _P.KILL, _P.OFF, _P.HALTED}),
    _P.ADOPT: frozenset({_P.LEAVE, _P.PROTECTED, _P.FOLLOW, _P.CLAIM, _P.DEFEND, _P.KILL, _P.INIT}),
    _P.STANDBY: frozenset({_P.PREPARE, _P.BOOT, _P.YIELDED}),
    _P.BOOT: frozenset({_P.SOLO, _P.KILL, _P.STANDBY, _P.YIELDED, _P.OFF}),
    _P.SOLO: frozenset({_P.INVITE, _P.ADOPT, _P.BOOT, _P.KILL, _P.OFF}),
    _P.INVITE: frozenset({_P.SYNC, _P.SOLO, _P.BOOT, _P.KILL, _P.OFF}),
    _P.SYNC: frozenset({_P.ARM, _P.LEAVE, _P.BOOT, _P.KILL, _P.OFF}),
    _P.ARM: frozenset({_P.PROTECTED, _P.LEAVE, _P.DEFEND, _P.YIELDED, _P.BOOT, _P.KILL, _P.OFF}),
    _P.PROTECTED: frozenset({_P.DEFEND, _P.YIELDED, _P.KILL, _P.OFF}),
    _P.DEFEND: frozenset({_P.LEAVE, _P.PROTECTED, _P.YIELDED, _P.BOOT, _P.KILL, _P.OFF}),
    _P.LEAVE: frozenset({_P.SOLO, _P.BOOT, _P.KILL, _P.OFF}),
    _P.YIELDED: frozenset({_P.STANDBY, _P.BOOT}),
    _P.PREPARE: frozenset({_P.LOAD, _P.KILL, _P.STANDBY}),
    _P.LOAD: frozenset({_P.FOLLOW, _P.KILL, _P.STANDBY}),
    _P.FOLLOW: frozenset({_P.CLAIM, _P.KILL, _P.STANDBY}),
    _P.CLAIM: frozenset({_P.PROMOTE, _P.FOLLOW, _P.KILL, _P.BOOT, _P.STANDBY}),
    _P.PROMOTE: frozenset({_P.SOLO, _P.KILL, _P.BOOT}),
    _P.KILL: frozenset({_P.INIT}),
    _P.OFF: frozenset({_P.BOOT, _P.STANDBY, _P.KILL}),
    _P.HALTED: frozenset(),
}

SPEAKING = frozenset({_P.SOLO, _P.INVITE, _P.SYNC, _P.LEAVE, _P.ARM, _P.PROTECTED})
"""Phases in which clients may hear this node's guest (in the last two, commit by commit)."""

HOLDING = frozenset({_P.ARM, _P.PROTECTED, _P.DEFEND})
"""Phases in which the output of this node's guest waits for commits."""
