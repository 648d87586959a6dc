"""How long clients hear nothing after a fault: simulated on the real machines."""

from dataclasses import dataclass, replace

from coloha.core.context import Settings
from coloha.sim.faults import Fault
from coloha.sim.history import ARBITERS
from coloha.sim.world import World

STEP_S = 0.01
"""How often it is looked at what clients have heard."""
FOREVER_S = 10_000.0
INSTANTS = 4


@dataclass(frozen=True)
class Case:
    """A row of docs/timing.md: faults from now on, and for how long they are watched."""

    faults: tuple[Fault, ...]
    span_s: float
    away_s: float = 0.0
    """The row's A."""
    arbiter: str = "witness"
    moment: str = ""
    """In half of the histories the fault waits for this moment of an epoch."""


def lasting(*wanted: tuple[str, str], seconds: float = FOREVER_S) -> tuple[Fault, ...]:
    return tuple(Fault(0.0, kind, target, seconds) for kind, target in wanted)


def longest_gap(settings: Settings, case: Case) -> float:
    """The longest in several histories, whose faults begin at other instants; seconds."""
    chosen = ARBITERS[case.arbiter] | {"fence_delay_s": settings.fence_delay_s}
    settings = replace(settings, **chosen)  # type: ignore[arg-type]
    return max(_gap(seed, settings, case) for seed in range(INSTANTS))


def _gap(seed: int, settings: Settings, case: Case) -> float:
    world = World(seed, settings)
    assert world.whenever(world.judge.whole, 120.0)
    world.run(world.now + settings.period_s * (3 + seed / INSTANTS))
    world.plan([replace(fault, moment=case.moment if seed % 2 else "") for fault in case.faults])
    end, longest, heard_at = world.now + case.span_s, 0.0, world.judge.said_at
    while world.now < end:
        world.run(world.now + STEP_S)
        world.settle()
        longest = max(longest, world.judge.said_at - heard_at)
        heard_at = world.judge.said_at
    return max(longest, end - heard_at)


def cases(s: Settings, d: float) -> dict[str, Case]:
    """What each row of the table means; `d` is the detection time, seconds."""
    hold, stall = s.restart_hold_s, s.stall_timeout_s
    short, restart, cut, witness = 3 * d + 3, 0.6 * hold, 0.8 * d, 5.0
    away = lasting(("witness-away", "alpha"), ("witness-away", "beta"), seconds=witness)
    dead = lasting(("host-crash", "alpha"))
    no_link = lasting(("cut", "pair"))
    return {
        "none: an answer waits for its commit": Case((), 3),
        "primary's QEMU killed": Case((Fault(0.0, "qemu-crash", "alpha"),), short),
        "primary's QEMU hangs": Case(
            lasting(("qemu-freeze", "alpha")), 2 * stall + short, moment="captured"
        ),
        "primary's host dead or frozen": Case(dead, short, arbiter="witness-fence-required"),
        "primary's daemon killed, back after `A`, before `H` is over": Case(
            lasting(("daemon-crash", "alpha"), seconds=restart), restart + short, restart
        ),
        "primary's daemon killed, stays away": Case(
            lasting(("daemon-crash", "alpha")), hold + short, arbiter="witness-fence-required"
        ),
        "secondary's QEMU killed": Case((Fault(0.0, "qemu-crash", "beta"),), short),
        "secondary's QEMU hangs": Case(lasting(("qemu-freeze", "beta")), 2 * stall + short),
        "secondary's host dead or frozen": Case(lasting(("host-crash", "beta")), short),
        "secondary's daemon killed, back after `A`, before `H` is over": Case(
            lasting(("daemon-crash", "beta"), seconds=restart), restart + short, restart
        ),
        "secondary's daemon killed, stays away": Case(
            lasting(("daemon-crash", "beta")), hold + short
        ),
        "link cut for `A`, shorter than `D`": Case(
            lasting(("cut", "pair"), seconds=cut), short, cut
        ),
        "link cut, one way or both, for longer": Case(no_link, short),
        "only heartbeats are lost, for longer than `D`": Case(
            lasting(("mute", "beta")), 2 * stall + short
        ),
        "witness away": Case(away, witness + 3),
        "witness away for `A`, primary's host dead meanwhile": Case(
            (*away, *dead), witness + short, witness
        ),
        "no witness, with fencing: primary's host dead": Case(
            dead, s.fence_delay_s + short, arbiter="hold-fence"
        ),
        "no witness, with fencing: link cut": Case(no_link, short, arbiter="hold-fence"),
        "no witness, `on_silence: primary`: link cut": Case(no_link, short, arbiter="primary"),
    }
