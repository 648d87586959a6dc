"""Which QEMU can do what: the rules, as a table.

Versions are those of `query-version`. Each rule names the versions it is about, what about the VM
makes it apply, and what to do.
"""

from collections.abc import Callable
from dataclasses import dataclass

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Traits:
    """What the rules look at: the `-machine` type and the `-accel` of a VM."""

    machine: str
    accelerator: str


@dataclass(frozen=True, slots=True)
class Rule:
    """QEMU from `first` up to, not including, `below` is refused for VMs to which it `applies`."""

    first: Version
    below: Version
    applies: Callable[[Traits], bool]
    problem: str
    advice: str


def _any(traits: Traits) -> bool:
    del traits
    return True


def _q35(traits: Traits) -> bool:
    return "q35" in traits.machine


def _tcg(traits: Traits) -> bool:
    return traits.accelerator == "tcg"


OLDEST: Version = (7, 2, 0)

RULES: tuple[Rule, ...] = (
    Rule((0, 0, 0), OLDEST, _any, "is too old for coloha", "install QEMU 7.2 or newer"),
    Rule(
        (8, 2, 0),
        (9, 1, 0),
        _any,
        "asserts in COLO's incoming coroutine (bug of 8.2 and 9.0)",
        "install 7.2, 9.1 or newer",
    ),
    Rule(
        (10, 0, 0),
        (10, 0, 7),
        _any,
        "breaks COLO (device state is sent where COLO does not expect it)",
        "install 10.0.7 or newer",
    ),
    Rule(
        (10, 1, 0),
        (10, 1, 3),
        _any,
        "breaks COLO (device state is sent where COLO does not expect it)",
        "install 10.1.3 or newer",
    ),
    Rule(
        (0, 0, 0),
        (11, 0, 0),
        _q35,
        "aborts the secondary of a q35 machine at the first checkpoint",
        "set `machine: pc`, or install QEMU 11 or newer",
    ),
    Rule(
        (0, 0, 0),
        (11, 0, 0),
        _tcg,
        "deadlocks at the first checkpoint under TCG",
        "set `accelerator: kvm`, or install QEMU 11 or newer",
    ),
)

RETURN_PATH_SINCE: Version = (11, 0, 0)
"""From here on x-colo requires the capability return-path; before, return-path breaks COLO."""


def text(version: Version) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))


def problems(version: Version, traits: Traits) -> list[str]:
    """Return why a QEMU of `version` must not run this VM under COLO; empty if it may."""
    return [
        f"QEMU {text(version)} {rule.problem}: {rule.advice}"
        for rule in RULES
        if rule.first <= version < rule.below and rule.applies(traits)
    ]


def needs_return_path(version: Version) -> bool:
    """Return whether the capability return-path must be set along with x-colo."""
    return version >= RETURN_PATH_SINCE


def misfit(primary: Version, secondary: Version) -> str | None:
    """Return why a secondary of one version cannot follow a primary of another; None if it can.

    Other differences are QEMU's to judge when it loads the first copy.
    """
    if needs_return_path(primary) == needs_return_path(secondary):
        return None
    since = text(RETURN_PATH_SINCE)
    return (
        f"the primary runs QEMU {text(primary)}, the secondary {text(secondary)}, and COLO of "
        f"{since} and newer does not understand older ones: install the same version on both"
    )


def parse(reply: object) -> Version:
    """Return the version in the value that `query-version` returns.

    :raises ValueError: if it is not of that form.
    """
    try:
        triple = reply["qemu"]  # type: ignore[index]
        return int(triple["major"]), int(triple["minor"]), int(triple["micro"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a QEMU version: {reply!r}") from error
