"""The watchdog device: armed, fed and disarmed, and what is said of one that cannot be used."""

import errno
import fcntl
import struct
from pathlib import Path
from typing import Any

import pytest

from coloha.adapters import watchdog as module
from coloha.adapters.watchdog import MAGICCLOSE, SETTIMEOUT, LinuxDriver, Watchdog, unusable
from coloha.errors import WatchdogError
from tests.adapters.watchdog_support import FakeDriver

DEVICE = Path("/dev/watchdog")


def refusal(driver: FakeDriver) -> str:
    watchdog = Watchdog(DEVICE, 5, driver)
    with pytest.raises(WatchdogError) as caught:
        watchdog.arm()
    assert not driver.is_open
    return str(caught.value)


def test_its_life() -> None:
    driver = FakeDriver()
    watchdog = Watchdog(DEVICE, 5, driver)
    watchdog.feed()
    assert watchdog.disarm()
    assert driver.opened == 0
    watchdog.arm()
    watchdog.arm()
    assert watchdog.armed
    assert (driver.opened, driver.timeout(0), watchdog.identity) == (1, 5, "iTCO")
    watchdog.feed()
    assert driver.said == [b"\0", b"\0"]
    assert driver.counts
    assert watchdog.disarm()
    assert driver.said == [b"\0", b"\0", b"V"]
    assert not driver.counts
    assert not watchdog.armed
    watchdog.arm()
    assert driver.opened == 2


@pytest.mark.parametrize("takes_s", [6, 60, 0, -1])
def test_a_device_that_resets_too_late_is_refused_and_stopped(takes_s: int) -> None:
    driver = FakeDriver(takes_s=takes_s or None)
    if takes_s == 0:
        driver = FakeDriver(options=MAGICCLOSE)  # cannot be set, and has 60 s
    text = refusal(driver)
    assert "not within 5 s" in text
    assert "watchdog.timeout" in text
    assert not driver.counts


def test_a_shorter_timeout_than_asked_for_will_do() -> None:
    driver = FakeDriver(options=MAGICCLOSE, takes_s=4)
    Watchdog(DEVICE, 5, driver).arm()
    assert driver.counts


def test_a_driver_that_refuses_the_timeout_is_judged_by_the_one_it_has() -> None:
    driver = FakeDriver(failing=("set_timeout", errno.EINVAL))
    assert "after 60 s" in refusal(driver)


@pytest.mark.parametrize("call", ["support", "set_timeout", "timeout"])
def test_what_is_no_watchdog_is_closed_again(call: str) -> None:
    assert "is no watchdog" in refusal(FakeDriver(failing=(call, errno.ENOTTY)))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EBUSY, "RuntimeWatchdogSec"),
        (errno.EACCES, "/dev/watchdog"),
    ],
)
def test_why_it_cannot_be_opened(number: int, words: str) -> None:
    assert words in refusal(FakeDriver(failing=("open", number)))


def test_a_device_that_takes_no_food() -> None:
    driver = FakeDriver()
    watchdog = Watchdog(DEVICE, 5, driver)
    watchdog.arm()
    driver.failing = ("write", errno.EIO)
    with pytest.raises(WatchdogError, match="cannot be fed"):
        watchdog.feed()
    assert watchdog.disarm()
    assert not driver.is_open


@pytest.mark.parametrize("never", [{"nowayout": True}, {"options": SETTIMEOUT}])
def test_one_that_never_stops_stays_open_until_the_end(never: dict[str, Any]) -> None:
    driver = FakeDriver(**never)
    watchdog = Watchdog(DEVICE, 5, driver)
    watchdog.arm()
    assert not watchdog.disarm()
    assert watchdog.armed
    watchdog.feed()
    assert not watchdog.abandon()
    assert not driver.is_open
    assert driver.counts


def test_the_calls_to_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the device's place, and the kernel's answers to ioctl as the header has them."""
    device = tmp_path / "watchdog"
    device.touch()
    asked = []

    def ioctl(descriptor: int, request: int, argument: bytes) -> bytes:
        asked.append(request)
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == device
        direction, size, kind = request >> 30, (request >> 16) & 0x3FFF, chr((request >> 8) & 0xFF)
        assert (kind, size) == ("W", len(argument))
        assert direction & 2
        if request & 0xFF == 0:
            return struct.pack("=II32s", SETTIMEOUT | MAGICCLOSE, 1, b"softdog")
        return struct.pack("=i", 5)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    watchdog = Watchdog(device, 5)
    watchdog.arm()
    watchdog.feed()
    watchdog.disarm()
    assert device.read_bytes() == b"\0\0V"
    assert [request & 0xFF for request in asked] == [0, 6, 7]
    assert watchdog.identity == "softdog"


def test_a_plain_file_is_no_watchdog(tmp_path: Path) -> None:
    device = tmp_path / "watchdog"
    device.touch()
    with pytest.raises(WatchdogError, match="is no watchdog"):
        Watchdog(device, 5).arm()
    assert device.read_bytes() == b"V"
    assert unusable(device) == f"{device} is no device: set watchdog.device"
    assert "modprobe softdog" in str(unusable(tmp_path / "none"))
    assert unusable(Path("/dev/null")) is None


@pytest.mark.parametrize(
    ("device", "folder", "content", "unstoppable"),
    [
        ("watchdog", "watchdog0", "1\n", True),
        ("watchdog", "watchdog0", "0\n", False),
        ("watchdog1", "watchdog1", "1\n", True),
        ("watchdog1", "watchdog0", "1\n", False),
    ],
)
def test_what_the_kernel_says_of_a_driver_that_never_stops(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    folder: str,
    content: str,
    unstoppable: bool,
) -> None:
    monkeypatch.setattr(module, "_CLASS", tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "nowayout").write_text(content)
    assert LinuxDriver().unstoppable(Path("/dev") / device) is unstoppable
