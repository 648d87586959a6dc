"""The status page in a real browser: its facts, its looks, and that it asks for nothing."""

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coloha.core.actions import Severity
from coloha.core.phases import Phase
from coloha.runtime import page
from coloha.runtime.metrics import Metrics
from coloha.runtime.occurrences import Occurrence
from coloha.runtime.web import View, Web
from lab.browser import Tab, browser

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def pair(**changes: Any) -> dict[str, Any]:
    """A pair's status as a healthy primary has it."""
    return {
        "pair": "web",
        "peer": "beta",
        "phase": "protected",
        "phase_age_s": 4000.0,
        "role": "primary",
        "protected": True,
        "why_not": None,
        "waits_for": None,
        "paused": False,
        "generation": 7,
        "record": "pair(7, alpha, beta)",
        "epochs": 80000,
        "loaded": None,
        "period_s": 0.05,
        "held_age_s": 0.02,
        "heartbeat_age_s": 0.04,
        "witness_error": None,
        "disks": None,
        "disks_torn": None,
        **changes,
    }


def event(number: int, seconds: float, kind: str, text: str, pair: str = "web") -> Occurrence:
    at = (NOON + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    bad = ("unprotected", "hung")
    severity = Severity.WARNING if kind in bad else Severity.INFO
    return Occurrence(number, at, seconds, "alpha", pair, kind, severity, 7, text)


FAILOVER = (
    event(1, -3000, "daemon-started", "coloha 0.1.0", "-"),
    event(2, -2990, "following", "this node holds a copy of the VM on beta"),
    event(3, 0.0, "claimed", "beta is gone: this node takes over"),
    event(4, 0.009, "promoted", "the VM runs on this node now"),
    event(5, 0.012, "unprotected", "beta is silent"),
    event(6, 5.4, "protected", "beta follows and may take over"),
    event(7, 900.0, "reloaded", "pair web: checkpoint.period changed", "-"),
)


@dataclass
class Shown:
    """What the page is made of."""

    pairs: Sequence[Mapping[str, Any]] = (pair(),)
    events: Sequence[Occurrence] = FAILOVER
    pauses: Sequence[float] = tuple(0.004 + 0.001 * (n % 7) for n in range(120))
    unwell: str | None = None
    unready: str | None = None

    def view(self) -> View:
        return View(
            lambda: {
                "node": "alpha",
                "version": "0.1.0",
                "uptime_s": 5000.0,
                "pairs": list(self.pairs),
            },
            lambda: self.events,
            lambda _: self.pauses,
            lambda: self.unwell,
            lambda: self.unready,
        )


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def address(shown: Shown) -> Iterator[str]:
    web = Web(Metrics().app, shown.view())
    web.serve("127.0.0.1", 0)
    assert web.listener is not None
    yield f"http://127.0.0.1:{web.listener.getsockname()[1]}/"
    web.stop()


def look(folder: Path, act: Callable[[Tab], Any]) -> None:
    async def main() -> None:
        async with browser(folder) as tab:
            await act(tab)

    asyncio.run(main())


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "healthy": ({}, "web: protected"),
    "secondary": (
        {"phase": "follow", "role": "secondary", "loaded": 512, "held_age_s": None},
        "web: protected",
    ),
    "not yet a secondary": (
        {"phase": "follow", "role": "secondary", "protected": False, "loaded": 1,
         "why_not": "alpha has not said so", "held_age_s": None},
        "web: NOT PROTECTED",
    ),
    "failing over": (
        {"phase": "claim", "role": "secondary", "protected": False, "phase_age_s": 0.01,
         "why_not": "beta is silent", "waits_for": "the witness", "heartbeat_age_s": 0.6},
        "web: being decided",
    ),
    "unprotected": (
        {"phase": "solo", "protected": False, "phase_age_s": 65.0, "held_age_s": None,
         "why_not": "beta is silent", "waits_for": "beta to be heard", "heartbeat_age_s": 65.0,
         "witness_error": "/mnt/witness did not answer within 2 s", "paused": True},
        "web: NOT PROTECTED",
    ),
    "copying": (
        {"phase": "sync", "protected": False, "why_not": "beta is loading",
         "disks": {"copied_bytes": 3 << 30, "total_bytes": 10 << 30, "bytes_per_s": 1 << 27,
                   "left_s": 56.0}},
        "web: NOT PROTECTED",
    ),
    "failed": (
        {"phase": "failed", "protected": False, "why_not": "/var/lib/coloha: No space left"},
        "web: NOT PROTECTED",
    ),
}  # fmt: skip
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def test_every_state_says_how_it_is(shown: Shown, address: str, tmp_path: Path) -> None:
    """In a wide window and on a telephone, by day and by night, with scripts switched off."""

    async def act(tab: Tab) -> None:
        for name, (changes, expected) in STATES.items():
            shown.pairs = [pair(**changes)]
            for width, dark in ((1000, False), (380, True)):
                await tab.open(address, width=width, dark=dark)
                heading = await tab.ask("document.querySelector('h2').innerText")
                assert heading == expected
                text = await tab.ask("document.body.innerText")
                for key in ("why_not", "waits_for", "witness_error"):
                    assert (changes.get(key) or "") in text
                assert page.DOING[changes.get("phase", "protected")] in text
                assert await tab.ask(FITS), f"{name} is wider than {width} pixels"
                await tab.shot(tmp_path / f"{name}-{width}.png")
        assert tab.complaints == []

    look(tmp_path, act)


def test_it_loads_nothing_and_runs_nothing(shown: Shown, address: str, tmp_path: Path) -> None:
    evil = "<script>document.title='run'</script><img src=//evil/x>"
    shown.pairs = [pair(why_not=evil, protected=False, phase="solo", waits_for=evil)]
    shown.events = [event(1, 0, "claimed", evil), event(2, 1, "promoted", evil)]

    async def act(tab: Tab) -> None:
        await tab.open(address, scripts=True)
        assert await tab.ask("document.title") == "alpha: 1 of 1 not protected"
        assert await tab.ask("document.querySelectorAll('script, img').length") == 0
        loaded = await tab.ask("performance.getEntriesByType('resource').length")
        assert loaded == 0
        assert evil in await tab.ask("document.body.innerText")
        # What got in nevertheless could not run.
        await tab.ask("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=1>')")
        await tab.ask("document.body.append(document.createElement('style'))")
        assert any("Content Security Policy" in said for said in tab.complaints)

    look(tmp_path, act)


def test_the_last_failover_is_told_from_its_beginning_to_its_end(shown: Shown) -> None:
    text = page.render(shown.view().status(), FAILOVER)
    (course,) = text.split("The last failover")[1].split("</table>")[:1]
    told = [kind for kind in ("claimed", "promoted", "unprotected", "protected") if kind in course]
    assert told == ["claimed", "promoted", "unprotected", "protected"]
    assert "+9.0 ms" in course
    assert "following" not in course
    assert "reloaded" not in course


def test_nothing_to_tell() -> None:
    quiet = replace(Shown(), pairs=(), events=(), pauses=())
    text = page.render(quiet.view().status(), ())
    assert "No pair is configured" in text
    starting = {"pair": "web", "phase": "failed", "protected": False, "why_not": "it is starting"}
    text = page.render({**quiet.view().status(), "pairs": [starting]}, ())
    assert "it is starting" in text


def test_every_phase_has_words() -> None:
    assert page.DOING.keys() == {*Phase, "failed"}
    assert set(Phase) >= page.MOVING


@pytest.mark.parametrize(
    ("path", "unwell", "unready", "status", "text"),
    [
        ("-/healthy", None, None, 200, "healthy"),
        ("-/healthy", None, "web: it has failed", 200, "healthy"),
        ("-/healthy", "the event loop has been stuck for 9.0 s", None, 503, "stuck for 9.0 s"),
        ("-/ready", None, None, 200, "ready"),
        ("-/ready", None, "web: it has failed", 503, "web: it has failed"),
        ("-/ready", "the event loop has been stuck for 9.0 s", None, 503, "stuck"),
        ("elsewhere", None, None, 404, "there is /"),
    ],
)
def test_verdicts(
    shown: Shown, address: str, path: str, unwell: str | None, unready: str | None,
    status: int, text: str,
) -> None:  # fmt: skip
    shown.unwell, shown.unready = unwell, unready
    code, said = fetched(address + path)
    assert code == status
    assert text in said


def test_it_is_only_read(address: str) -> None:
    assert fetched(address, b"x=1")[0] == 405


def fetched(url: str, data: bytes | None = None) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, data, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_pages_are_served_side_by_side(address: str) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(fetched(address)[0])) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [200] * 20
