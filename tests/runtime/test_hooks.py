"""Programs that run when something happens: real ones."""

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloha.config import Hook
from coloha.core.actions import Severity
from coloha.runtime import hooks as hooks_module
from coloha.runtime.aside import Aside
from coloha.runtime.hooks import WAITING, Hooks
from coloha.runtime.occurrences import Occurrence
from tests.runtime.tellers_support import Told, aside, occurrence, until


class Acting:
    """Hooks at work."""

    def __init__(self, hooks: Hooks, thread: Aside, told: Told) -> None:
        self.hooks, self.told = hooks, told
        self._thread = thread

    def happen(self, *events: Occurrence) -> None:
        for event in events:
            self.hooks.take(event)
        self._thread.call(self.hooks.wake)

    def ended(self, outcome: str, name: str = "page") -> int:
        return self.hooks.runs[name, outcome]

    def wait(self, outcome: str, count: int, name: str = "page") -> None:
        until(lambda: self.ended(outcome, name) >= count, f"{count} x {outcome}")


@contextlib.contextmanager
def acting(**sections: Hook) -> Iterator[Acting]:
    told = Told()
    hooks = Hooks(sections, told)
    with aside(hooks.run) as thread:
        yield Acting(hooks, thread, told)


def script(folder: Path, text: str, name: str = "hook") -> str:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return str(path)


def hook(program: str, *on: str, timeout: str = "30s", arguments: tuple[str, ...] = ()) -> Hook:
    section = {"on": on or ("any",), "program": program, "arguments": arguments}
    return Hook.model_validate({**section, "timeout": timeout})


def test_a_hook_gets_the_event(tmp_path: Path) -> None:
    program = script(tmp_path, 'env > environment; cat > event; echo "$@" > arguments')
    event = occurrence(3, "promoted", severity=Severity.WARNING, text="one\ntwo\0'$(false)")
    with acting(page=hook(program, arguments=("--loud", "$HOME `x`"))) as at_work:
        at_work.happen(event)
        at_work.wait("ok", 1)
    assert json.loads((tmp_path / "event").read_text()) == {
        "number": 3,
        "at": event.at,
        "monotonic_s": 1.5,
        "node": "alpha",
        "pair": "vm",
        "kind": "promoted",
        "severity": "warning",
        "generation": 7,
        "text": event.text,
    }
    environment = (tmp_path / "environment").read_text()
    for line in (
        "COLOHA_NODE=alpha",
        "COLOHA_PAIR=vm",
        "COLOHA_KIND=promoted",
        "COLOHA_SEVERITY=warning",
        "COLOHA_GENERATION=7",
        "COLOHA_NUMBER=3",
        f"COLOHA_AT={event.at}",
        "COLOHA_TEXT=one\ntwo'$(false)",
        f"PATH={os.environ['PATH']}",
    ):
        assert f"{line}\n" in environment, line
    assert (tmp_path / "arguments").read_text() == "--loud $HOME `x`\n"


def test_only_for_what_it_is_for(tmp_path: Path) -> None:
    program = script(tmp_path, 'echo "$COLOHA_KIND" >> log')
    counts = script(tmp_path, 'echo "$COLOHA_KIND" >> all', "counts")
    hooks = {"page": hook(program, "failover", "halted"), "all": hook(counts)}
    with acting(**hooks) as at_work:
        kinds = ("protected", "promoted", "halted", "hook-failed", "claimed")
        at_work.happen(*(occurrence(n, kind) for n, kind in enumerate(kinds)))
        at_work.wait("ok", 3)
        at_work.wait("ok", 4, "all")
    assert (tmp_path / "log").read_text().split() == ["promoted", "halted", "claimed"]
    assert (tmp_path / "all").read_text().split() == [k for k in kinds if k != "hook-failed"]


def test_runs_of_one_hook_follow_one_another(tmp_path: Path) -> None:
    slow = script(tmp_path, "test $COLOHA_NUMBER -gt 1 || sleep 0.3; echo $COLOHA_NUMBER >> log")
    with acting(page=hook(slow)) as at_work:
        at_work.happen(*(occurrence(number) for number in range(1, 6)))
        at_work.wait("ok", 5)
    assert (tmp_path / "log").read_text().split() == ["1", "2", "3", "4", "5"]


def test_a_slow_hook_holds_up_no_other(tmp_path: Path) -> None:
    slow, quick = script(tmp_path, "sleep 60", "slow"), script(tmp_path, "true", "quick")
    with acting(slow=hook(slow), quick=hook(quick)) as at_work:
        at_work.happen(*(occurrence(number) for number in range(3)))
        at_work.wait("ok", 3, "quick")
        assert at_work.ended("ok", "slow") == 0


def test_few_run_at_once(tmp_path: Path) -> None:
    count = hooks_module.SIDE_BY_SIDE + 2
    program = script(tmp_path, "touch running.$$; ls | grep -c running >> log; sleep 0.2; rm r*.$$")
    with acting(**{f"h{index}": hook(program) for index in range(count)}) as at_work:
        at_work.happen(occurrence(1))
        for index in range(count):
            at_work.wait("ok", 1, f"h{index}")
    assert max(map(int, (tmp_path / "log").read_text().split())) <= hooks_module.SIDE_BY_SIDE


def test_a_hook_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    program = script(tmp_path, "sleep 1000 & echo $! > child; wait")
    with acting(page=hook(program, timeout="500ms")) as at_work:
        at_work.happen(occurrence(1, "promoted"))
        at_work.wait("timeout", 1)
        until(lambda: at_work.told.of("hook-failed"), "news of it")
        assert at_work.told.of("hook-failed") == [
            "page, run for promoted of vm: killed after 0.5 s"
        ]
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "the end of what it started")


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo progress; echo no mail today >&2; exit 3", "exit code 3 (no mail today)"),
        ("echo only this; exit 1", "exit code 1 (only this)"),
        ("exit 2", "exit code 2"),
        ("kill -9 $$", "signal 9"),
        ("yes x | head -c 3000000; exit 4", "exit code 4 (x)"),
    ],
)
def test_a_hook_that_fails_is_told(tmp_path: Path, text: str, words: str) -> None:
    with acting(page=hook(script(tmp_path, text))) as at_work:
        at_work.happen(occurrence(1))
        at_work.wait("failed", 1)
        until(lambda: at_work.told.events, "news of it")
        assert at_work.told.events == [
            ("hook-failed", Severity.WARNING, f"page, run for protected of vm: {words}")
        ]


def test_a_program_that_is_not_there_is_told() -> None:
    with acting(page=hook("/nowhere/page")) as at_work:
        at_work.happen(occurrence(1))
        at_work.wait("failed", 1)
        until(lambda: at_work.told.events, "news of it")
        (told,) = at_work.told.of("hook-failed")
        assert told.endswith("/nowhere/page cannot be run (No such file or directory)")


def test_a_text_that_no_environment_holds(tmp_path: Path) -> None:
    program = script(tmp_path, "wc -c > size")
    with acting(page=hook(program)) as at_work:
        at_work.happen(occurrence(1, text="x" * 1_000_000))
        at_work.wait("ok", 1)
    assert int((tmp_path / "size").read_text()) > 1_000_000


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    program = script(tmp_path, "while test -e wait; do sleep 0.05; done")
    (tmp_path / "wait").touch()
    with acting(page=hook(program)) as at_work:
        at_work.happen(occurrence(1))
        until(lambda: not at_work.hooks._hooks[0]._queue, "the first run")
        at_work.happen(*(occurrence(number) for number in range(WAITING + 7)))
        assert at_work.ended("dropped") == 7
        (tmp_path / "wait").unlink()
        at_work.wait("ok", 1)
        until(lambda: at_work.told.of("hook-dropped"), "news of it")
        assert at_work.told.of("hook-dropped") == ["page is too slow: 7 events were dropped"]


def test_the_end_gives_hooks_a_moment_and_no_more(tmp_path: Path) -> None:
    quick = script(tmp_path, "sleep 0.1; touch done", "quick")
    slow = script(tmp_path, "echo $$ > pid; sleep 1000", "slow")
    with acting(quick=hook(quick), slow=hook(slow)) as at_work:
        at_work.happen(occurrence(1, "daemon-stopped"))
        until((tmp_path / "pid").exists, "the slow one")
        until((tmp_path / "pid").read_text, "its number")
        began = time.monotonic()
    assert (tmp_path / "done").exists()
    assert not alive(int((tmp_path / "pid").read_text()))
    assert time.monotonic() - began < 100  # seconds; the program would have taken 1000


def test_signals_of_the_daemon_do_not_reach_it(tmp_path: Path) -> None:
    """A hook has a session of its own, and the usual signals."""
    program = script(tmp_path, "ps -o pid=,sid= -p $$ > ids; cat /proc/self/status > status")
    with acting(page=hook(program)) as at_work:
        at_work.happen(occurrence(1))
        at_work.wait("ok", 1)
    status = (tmp_path / "status").read_text()
    ignored = int(next(x for x in status.splitlines() if x.startswith("SigIgn")).split()[1], 16)
    assert not ignored & 1 << signal.SIGTERM - 1
    (pid, sid) = (tmp_path / "ids").read_text().split()
    assert pid == sid
