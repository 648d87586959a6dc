"""The watchdog of a host: a device that resets it unless it is fed (Linux, watchdog-api).

The device is opened, and so armed, when it is needed and not before. It is disarmed by the magic
close: the last byte written is `V`. A process that dies closes the device without it, and the
device counts on; so does one whose driver was told never to stop (`nowayout`).
"""

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coloha.errors import WatchdogError

# linux/watchdog.h; the numbers hold for x86-64.
_GETSUPPORT = 0x80285700
_SETTIMEOUT = 0xC0045706
_GETTIMEOUT = 0x80045707
_SUPPORT = struct.Struct("=II32s")
_SECONDS = struct.Struct("=i")
SETTIMEOUT, MAGICCLOSE = 0x80, 0x100
"""What a driver can do, in `Support.options`."""

_CLASS = Path("/sys/class/watchdog")


@dataclass(frozen=True, slots=True)
class Support:
    """What a driver says of itself."""

    options: int
    identity: str


class Driver(Protocol):
    """The calls that a watchdog needs of the system. All raise OSError."""

    def open(self, device: Path) -> int:
        """Open the device, which arms it; return the descriptor."""
        ...

    def support(self, descriptor: int) -> Support:
        """Return what the driver says of itself."""
        ...

    def set_timeout(self, descriptor: int, seconds: int) -> None:
        """Ask for a timeout; the driver may take another one."""
        ...

    def timeout(self, descriptor: int) -> int:
        """Return the timeout that the device has, in seconds."""
        ...

    def write(self, descriptor: int, data: bytes) -> None:
        """Feed it; `V` announces the magic close."""
        ...

    def close(self, descriptor: int) -> None:
        """Close the device."""
        ...

    def unstoppable(self, device: Path) -> bool:
        """Return whether the driver was told never to stop."""
        ...


class LinuxDriver:
    """See `Driver`."""

    def open(self, device: Path) -> int:
        """See `Driver.open`."""
        return os.open(device, os.O_WRONLY | os.O_CLOEXEC)

    def support(self, descriptor: int) -> Support:
        """See `Driver.support`."""
        data = fcntl.ioctl(descriptor, _GETSUPPORT, bytes(_SUPPORT.size))
        options, _, identity = _SUPPORT.unpack(data)
        return Support(options, identity.rstrip(b"\0").decode(errors="replace"))

    def set_timeout(self, descriptor: int, seconds: int) -> None:
        """See `Driver.set_timeout`."""
        fcntl.ioctl(descriptor, _SETTIMEOUT, _SECONDS.pack(seconds))

    def timeout(self, descriptor: int) -> int:
        """See `Driver.timeout`."""
        data = fcntl.ioctl(descriptor, _GETTIMEOUT, bytes(_SECONDS.size))
        return int(_SECONDS.unpack(data)[0])

    def write(self, descriptor: int, data: bytes) -> None:
        """See `Driver.write`."""
        os.write(descriptor, data)

    def close(self, descriptor: int) -> None:
        """See `Driver.close`."""
        os.close(descriptor)

    def unstoppable(self, device: Path) -> bool:
        """See `Driver.unstoppable`."""
        # /dev/watchdog is the first of them.
        name = "watchdog0" if device.name == "watchdog" else device.name
        try:
            return (_CLASS / name / "nowayout").read_text().strip() == "1"
        except OSError:
            return False


class Watchdog:
    """One device; all methods may block, as its driver does."""

    def __init__(self, device: Path, timeout_s: int, driver: Driver | None = None) -> None:
        """:param timeout_s: after how long without food it is to reset the host, seconds."""
        self.device = device
        self.identity = ""
        """How the driver calls itself, once it was armed."""
        self._timeout_s = timeout_s
        self._driver = driver or LinuxDriver()
        self._descriptor: int | None = None
        self._stops = True

    @property
    def armed(self) -> bool:
        """Whether it counts and has to be fed."""
        return self._descriptor is not None

    def arm(self) -> None:
        """Open it, and see that it resets the host in time.

        :raises WatchdogError: if it does not; then it is disarmed again, as far as it can be.
        """
        if self._descriptor is not None:
            return
        try:
            self._descriptor = self._driver.open(self.device)
        except OSError as error:
            raise WatchdogError(self._why_closed(error)) from error
        try:
            self._set_up(self._descriptor)
        except OSError as error:
            self.disarm()
            raise WatchdogError(f"{self.device} is no watchdog ({error.strerror})") from error
        except WatchdogError:
            self.disarm()
            raise

    def _set_up(self, descriptor: int) -> None:
        support = self._driver.support(descriptor)
        self.identity = support.identity
        self._stops = bool(support.options & MAGICCLOSE) and not self._driver.unstoppable(
            self.device
        )
        if support.options & SETTIMEOUT:
            try:
                self._driver.set_timeout(descriptor, self._timeout_s)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        taken = self._driver.timeout(descriptor)
        if not 0 < taken <= self._timeout_s:
            raise WatchdogError(
                f"{self.device} ({support.identity}) resets the host after {taken} s, not within"
                f" {self._timeout_s} s: set watchdog.timeout to {taken}s, or use another device"
            )
        self._driver.write(descriptor, b"\0")

    def feed(self) -> None:
        """Give the host another `timeout_s`.

        :raises WatchdogError: if it does not take it: then it may reset the host.
        """
        if self._descriptor is None:
            return
        try:
            self._driver.write(self._descriptor, b"\0")
        except OSError as error:
            raise WatchdogError(f"{self.device} cannot be fed ({error.strerror})") from error

    def disarm(self) -> bool:
        """Close it so that it stops; return whether it does.

        One that never stops stays open: it must be fed as long as this process lives.
        """
        if self._descriptor is None:
            return True
        if not self._stops:
            return False
        self._release(b"V")
        return True

    def abandon(self) -> bool:
        """Close it at the end of this process, whether it stops or not; return whether it does."""
        if self._descriptor is None:
            return True
        self._release(b"V")
        return self._stops

    def _release(self, last: bytes) -> None:
        descriptor, self._descriptor = self._descriptor, None
        assert descriptor is not None
        try:
            self._driver.write(descriptor, last)
        except OSError:
            pass  # it counts on, and is closed all the same: somebody else may open it
        finally:
            self._driver.close(descriptor)

    def _why_closed(self, error: OSError) -> str:
        if error.errno == errno.EBUSY:
            return (
                f"{self.device} is used by another program: is RuntimeWatchdogSec set in"
                " /etc/systemd/system.conf, or does a watchdog daemon run? coloha needs it alone"
            )
        return unusable(self.device) or f"{self.device} cannot be opened ({error.strerror})"


def unusable(device: Path) -> str | None:
    """Say why this cannot be a watchdog, as far as can be seen without opening, and arming, it."""
    try:
        mode = device.stat().st_mode
    except OSError as error:
        return (
            f"{device} cannot be used ({error.strerror}): load the driver of this host's watchdog,"
            " or modprobe softdog"
        )
    if not stat.S_ISCHR(mode):
        return f"{device} is no device: set watchdog.device"
    return None
