"""Every error that coloha raises on purpose.

Each says what is wrong and what to do; `ConfigError` also says where. A message is a sentence an
operator can act on, never a bare repr.
"""

from dataclasses import dataclass


class ColohaError(Exception):
    """Base of all errors that coloha raises on purpose."""


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration file.

    `line` and `column` count from 1; 0 means that the problem has no place inside the file.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class ConfigError(ColohaError):
    """A configuration was refused as a whole: `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in sorted(problems)))
        self.problems = sorted(problems)


class AuthenticationError(ColohaError):
    """The other end did not prove that it holds the shared key."""


class ChannelError(ColohaError):
    """A channel to the other node could not be made, or was refused; the message says by whom."""


class LaunchError(ColohaError):
    """QEMU could not be started, or this QEMU must not be used."""


class QmpError(ColohaError):
    """QEMU's monitor could not be connected."""


class StartError(ColohaError):
    """The daemon cannot start here; the message says what to change."""


class StoreError(ColohaError):
    """The durable state of a pair could not be read or written."""


class FlightError(ColohaError):
    """A flight record cannot be read; the message says where, and what to do."""


class ControlError(ColohaError):
    """The daemon could not be asked over its control socket."""


class OrderError(ColohaError):
    """An operator's order was refused; the message says why, and what to do instead."""


class FenceError(ColohaError):
    """A fence agent cannot do its work; the message says why, and what to do."""


class WatchdogError(ColohaError):
    """The watchdog cannot be used; the message says why, and what to do."""


class BrokerError(ColohaError):
    """The MQTT broker cannot be reached, or refuses; the message says why, and what to do."""
