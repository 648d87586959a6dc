"""The commands in the documents, run as far as a developer's machine lets them."""

import contextlib
import io
import re
import shlex
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from coloha.cli.main import parser
from coloha.config import load
from lab.namespace import CHECKOUT
from tests.docs import commands
from tests.docs.pages import README, blocks, named, pages
from tests.runtime.daemon_support import COLOHA, Daemon

ONE_LOOP = pytest.mark.parametrize("daemons", ["uvloop"], indirect=True)
WATCH = "coloha status --watch"
RECORD = CHECKOUT / "tests" / "flight" / "records" / "beta.jsonl.gz"


def test_every_command_is_declared() -> None:
    missing = [f"{place}: {text}" for text, place in commands.commands()
               if commands.declared(text) is None]  # fmt: skip
    assert not missing, "have a test run it, or say in tests/docs/commands.py why none can"


def test_nothing_is_declared_that_is_not_in_a_document() -> None:
    there = [text for text, _ in commands.commands()]
    stale = {text for text in commands.RUN if text not in there}
    stale |= {
        begin
        for begin in commands.NOT_HERE
        if not any(text == begin or text.startswith(begin + " ") for text in there)
    }
    assert not stale
    for document, begin in commands.PICTURES:
        found = [b for b in blocks(CHECKOUT / document) if b.lines[0].startswith(begin)]
        assert found, f"{document} has no block that begins with {begin!r}"


def test_the_tests_that_run_them_exist() -> None:
    for test in set(commands.RUN.values()):
        path, _, name = test.partition("::")
        assert f"def {name}(" in (CHECKOUT / path).read_text(), test


def test_a_new_command_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Type\n\n    rm -rf x   # no\n\nor\n\n```sh\ncoloha nonsense\n```\n# Go\n    now\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "named", lambda path: path.name)
        patch.setattr(commands, "is_picture", lambda block: False)
        found = [text for text, _ in commands.commands_of(page)]
    assert found == ["rm -rf x", "coloha nonsense", "now"]
    assert not any(map(commands.declared, found))


def inline() -> list[tuple[str, str]]:
    """What stands in running text as a command of coloha, and where."""
    return [
        (span, f"{named(path)}:{number}")
        for path in pages()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for span in re.findall(r"`(coloha [a-z][^`]*)`", line)
    ]


def understood(span: str) -> bool:
    """Whether the command line takes it. What is in brackets may be there or not; what is left out
    that it asks for is no matter.
    """
    words = shlex.split(re.sub(r"[][]", "", span.replace("\\|", "|")))[1:]
    words = ["1" if word == "N" else word.split("|")[0] for word in words]
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            parser().parse_args(words)
        except SystemExit as end:
            lacks = ("arguments are required", "expected one argument", "expected at least one")
            if end.code and not any(lack in said.getvalue() for lack in lacks):
                return False
        with contextlib.suppress(SystemExit):
            parser().parse_args([words[0], "--help"])
    return all(word in said.getvalue() for word in words if word.startswith("-") and word != "-")


def test_commands_in_running_text_are_understood() -> None:
    assert len(inline()) > 40
    wrong = {f"{place}: {span}" for span, place in inline() if not understood(span)}
    assert not wrong
    assert not understood("coloha nonsense")
    assert not understood("coloha failover PAIR --nonsense")


def of(test: str) -> list[str]:
    """The commands that a test of this module runs."""
    return [text for text, place in commands.RUN.items() if place == commands.HERE + test]


def coloha(words: list[str], timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    argv = [*COLOHA, *words]
    return subprocess.run(
        argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_the_files_of_the_readme_load(tmp_path: Path) -> None:
    """As they are, with stand-ins for the files that they name; on either host."""
    found = {
        b.lines[0]: b.text for b in blocks(README) if b.lines[0].startswith(("node:", "pair:"))
    }
    assert found.keys() == {"node: alpha", "pair: web"}
    (tmp_path / "pairs.d").mkdir()
    (tmp_path / "key").write_text("0123456789abcdef" * 4)
    (tmp_path / "key").chmod(0o600)
    pair = found["pair: web"].replace("/srv/web", str(tmp_path))
    for name in re.findall(rf"{tmp_path}/([\w.]+)", pair):
        (tmp_path / name).touch()
    (tmp_path / "pairs.d" / "web.yaml").write_text(pair)
    host = found["node: alpha"]
    for text in (host, host.replace("alpha", "beta").replace("10.9.0.1", "10.9.0.2")):
        (tmp_path / "coloha.yaml").write_text(text)
        assert [pair.name for pair in load(tmp_path / "coloha.yaml").pairs] == ["web"]


EXPECTED = {
    "coloha check": (1, "PROBLEM vm: "),
    "coloha events": (0, "launch-failed"),
    "coloha status": (1, "NOT PROTECTED"),
}


@ONE_LOOP
def test_what_the_command_line_is_asked(alpha: Daemon) -> None:
    assert set(of("test_what_the_command_line_is_asked")) == EXPECTED.keys()
    alpha.start()
    alpha.wait(lambda: alpha.events("launch-failed"), "the launch that fails")
    for command, (status, words) in EXPECTED.items():
        assert words in alpha.cli(*command.split()[1:], status=status)
    argv = [*COLOHA, *WATCH.split()[1:], "--config", str(alpha.host_file)]
    with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        shown = (line for line in watch.stdout if "NOT PROTECTED" in line)
        assert next(shown)
        assert next(shown), "it is shown once"
        watch.terminate()


@pytest.mark.parametrize("command", of("test_records_are_replayed"))
def test_records_are_replayed(command: str) -> None:
    words = command.replace("/var/lib/coloha/flight/PAIR", str(RECORD)).split()[1:]
    done = coloha(words)
    told = done.stdout + done.stderr
    assert done.returncode == 0 or "the record holds nothing of that time" in told, told
    assert ("--from" in words) or "failed over from" in told


@pytest.mark.parametrize("command", of("test_histories_are_simulated"))
def test_histories_are_simulated(command: str) -> None:
    """As many as a moment allows."""
    words = command.replace("--explore 6", "--explore 1").split()[1:]
    words = [word for word in words if word not in ("--histories", "1000000")]
    few = [] if {"--explore", "--help"} & set(words) else ["--histories", "20"]
    done = coloha([*words, *few])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--help" in words or "no promise was broken" in done.stdout


@pytest.mark.parametrize("command", [text for text in commands.RUN if text.startswith("make ")])
def test_what_make_is_asked_is_understood(command: str) -> None:
    """What make would run; and that this knows each option and value."""
    argv = ["make", "--dry-run", *shlex.split(command)[1:]]
    planned = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    last = shlex.split(planned.splitlines()[-1])
    asked = subprocess.run(
        [*last, "--help"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert all(word in asked.stdout for word in last if word.startswith("--"))
