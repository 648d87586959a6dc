"""A watchdog's driver that keeps what it was told."""

import errno
from pathlib import Path

from coloha.adapters.watchdog import MAGICCLOSE, SETTIMEOUT, Support

DESCRIPTOR = 99


class FakeDriver:
    """Does what a driver with these abilities would; `failing` names the call that fails."""

    def __init__(
        self,
        options: int = SETTIMEOUT | MAGICCLOSE,
        takes_s: int | None = None,
        nowayout: bool = False,
        failing: tuple[str, int] | None = None,
    ) -> None:
        self.said: list[bytes] = []
        """What was written since it was last opened."""
        self.opened = 0
        self.is_open = False
        self.failing = failing
        self._options, self._takes_s, self._nowayout = options, takes_s, nowayout
        self._seconds = takes_s or 60

    @property
    def counts(self) -> bool:
        """Whether it would reset the host if it was not fed from now on."""
        stopped = self.said[-1:] == [b"V"] and self._options & MAGICCLOSE and not self._nowayout
        return self.opened > 0 and (self.is_open or not stopped)

    @property
    def meals(self) -> int:
        """How often it was fed since it was last opened."""
        return self.said.count(b"\0")

    def _see(self, call: str) -> None:
        if self.failing is not None and self.failing[0] == call:
            raise OSError(self.failing[1], errno.errorcode[self.failing[1]])

    def open(self, device: Path) -> int:
        self._see("open")
        assert not self.is_open
        self.is_open, self.said = True, []
        self.opened += 1
        return DESCRIPTOR

    def support(self, descriptor: int) -> Support:
        self._see("support")
        return Support(self._options, "iTCO")

    def set_timeout(self, descriptor: int, seconds: int) -> None:
        self._see("set_timeout")
        self._seconds = self._takes_s or seconds

    def timeout(self, descriptor: int) -> int:
        self._see("timeout")
        return self._seconds

    def write(self, descriptor: int, data: bytes) -> None:
        self._see("write")
        assert self.is_open
        assert descriptor == DESCRIPTOR
        self.said.append(data)

    def close(self, descriptor: int) -> None:
        assert self.is_open
        self.is_open = False

    def unstoppable(self, device: Path) -> bool:
        return self._nowayout
