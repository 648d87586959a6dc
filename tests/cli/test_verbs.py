"""Every verb: its help, its exit codes, its answer to a configuration that is broken."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coloha import __version__
from coloha.cli import main as main_module
from coloha.cli import start
from coloha.cli.main import main
from coloha.config import key_name, read_keys, schema
from lab.namespace import CHECKOUT
from tests.cli.support import FakeDaemon, configure
from tests.config.support import PAIR, edit

ORDERS = ("start", "stop", "failover", "switchover", "pause", "resume", "protect", "unprotect")
VERBS = (
    "run",
    "check",
    "status",
    "events",
    "drain",
    "reload",
    *ORDERS,
    "keygen",
    "schema",
    "simulate",
)
ASKING: dict[str, list[str]] = {
    **{verb: [] for verb in ("status", "events", "drain", "reload")},
    **{verb: ["web"] for verb in ORDERS},
}
"""Verbs that ask the daemon, and what they need to be told."""
CONFIGURED: dict[str, list[str]] = {**ASKING, "run": [], "check": []}
LOADING = {"run", "check"}
"""Verbs that need all of the configuration."""

Captured = pytest.CaptureFixture[str]


def leave(capsys: Captured, *words: str) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of a command line that argparse ends."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def coloha(*words: str, **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "coloha", *words],
        cwd=CHECKOUT,
        text=True,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        **options,
    )


def test_the_help_lists_every_verb_and_the_exit_codes(capsys: Captured) -> None:
    code, out, _ = leave(capsys, "--help")
    assert code == 0
    for verb in VERBS:
        _, _, summary = out.partition(f"\n    {verb}")
        assert len(summary.lstrip().split("\n")[0].split()) > 2, f"{verb} has no summary"
    assert "exit codes:\n  0  yes" in out


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_examples_that_work(verb: str, capsys: Captured) -> None:
    code, out, _ = leave(capsys, verb, "--help")
    assert code == 0
    assert "exit codes:\n  0  yes" in out
    examples = [line.strip() for line in out.splitlines() if line.startswith("  coloha ")]
    assert examples
    for example in examples:
        words = shlex.split(example.partition("|")[0].partition(">")[0])
        assert words[:2] == ["coloha", verb]
        parsed = main_module.parser().parse_args(words[1:])
        assert callable(parsed.call)


def test_the_version(capsys: Captured) -> None:
    assert leave(capsys, "--version") == (0, f"coloha {__version__}\n", "")


@pytest.mark.parametrize(
    "words", [[], ["halt"], ["status", "--colour"], ["start"], ["schema"], ["schema", "node"]]
)
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: Captured) -> None:
    code, out, err = leave(capsys, *words)
    assert (code, out) == (2, "")
    assert "usage: coloha" in err


@pytest.mark.parametrize(
    ("kind", "made"), [("host", schema.host_schema), ("pair", schema.pair_schema)]
)
def test_the_schema_is_the_one_in_etc(
    kind: str, made: Callable[[], dict[str, object]], capsys: Captured
) -> None:
    assert main(["schema", kind]) == 0
    printed = capsys.readouterr().out
    name = "coloha" if kind == "host" else "pair"
    assert printed == (CHECKOUT / "etc" / "schema" / f"{name}.schema.json").read_text()
    assert json.loads(printed) == made()


@pytest.mark.parametrize("verb", sorted(CONFIGURED.keys() - LOADING))
def test_a_broken_configuration_keeps_nobody_from_asking_the_daemon(
    verb: str, tmp_path: Path, capsys: Captured
) -> None:
    host_file = configure(tmp_path, edit(PAIR, "memory: 128MiB", "memory: lots"))
    assert main([verb, "--config", str(host_file), *CONFIGURED[verb]]) == 1
    said = capsys.readouterr().err
    assert said.startswith("coloha: no daemon answers on ")
    host_file.write_text("node: [")
    assert main([verb, "--config", str(host_file), *CONFIGURED[verb]]) == 2
    assert capsys.readouterr().err.startswith(f"{host_file}:1:")


@pytest.mark.parametrize("verb", sorted(LOADING))
def test_a_broken_configuration_ends_with_2_and_starts_nothing(
    verb: str, tmp_path: Path, capsys: Captured
) -> None:
    pair = edit(edit(PAIR, "memory: 128MiB", "memory: lots"), "bridge: br0", "bridge: ''")
    host_file = configure(tmp_path, edit(pair, "type: file", "type: oracle"))
    (tmp_path / "key").chmod(0o644)
    before = sorted(tmp_path.rglob("*"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    assert main([verb, "--config", str(host_file), *CONFIGURED[verb]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    complaints = said.err.splitlines()
    web = tmp_path / "pairs.d" / "web.yaml"
    assert len(complaints) == 4
    for place, words in (
        (host_file, "key_file"),
        (web, "vm.memory"),
        (web, "vm.nics[0].bridge"),
        (web, "witness"),
    ):
        assert any(c.startswith(f"{place}:") and f"{words}: " in c for c in complaints), words
    assert sorted(tmp_path.rglob("*")) == before
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children


@pytest.mark.parametrize("verb", CONFIGURED)
def test_a_missing_configuration_ends_with_2(verb: str, tmp_path: Path, capsys: Captured) -> None:
    missing = tmp_path / "none.yaml"
    assert main([verb, "--config", str(missing), *CONFIGURED[verb]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert str(missing) in said.err
    assert list(tmp_path.iterdir()) == []


def test_the_default_configuration_is_that_of_the_package(capsys: Captured) -> None:
    assert str(main_module.DEFAULT_CONFIG) == "/etc/coloha/coloha.yaml"
    for verb in CONFIGURED:
        assert "/etc/coloha/coloha.yaml" in leave(capsys, verb, "--help")[1]


@pytest.mark.parametrize("verb", ASKING)
def test_without_a_daemon_the_answer_is_1(verb: str, tmp_path: Path, capsys: Captured) -> None:
    host_file = configure(tmp_path)
    assert main([verb, "--config", str(host_file), *ASKING[verb]]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"coloha: no daemon answers on {tmp_path}/run/control.sock ")
    assert len(said.err.splitlines()) == 1


def test_start_says_what_happens_next(tmp_path: Path, capsys: Captured) -> None:
    daemon = FakeDaemon(tmp_path)
    with daemon.serving():
        assert main(["start", "--config", str(daemon.host_file), "web"]) == 0
        assert "web: starting" in capsys.readouterr().out
        assert main(["start", "--config", str(daemon.host_file), "db"]) == 1
        assert capsys.readouterr().err == "coloha: no pair 'db' on this node\n"
    assert daemon.asked == [{"verb": "start", "pair": pair} for pair in ("web", "db")]


def happened(number: int, pair: str, severity: str) -> dict[str, object]:
    return {
        "number": number,
        "at": f"2030-01-01T00:00:0{number}.000+00:00",
        "pair": pair,
        "severity": severity,
        "generation": 7,
        "kind": "failover",
        "text": f"news {number}",
    }


def test_events_are_printed_line_by_line(tmp_path: Path, capsys: Captured) -> None:
    daemon = FakeDaemon(tmp_path)
    daemon.events = [
        happened(1, "-", "info"),
        happened(2, "web", "warning"),
        happened(3, "db", "error"),
    ]
    config = ["events", "--config", str(daemon.host_file)]
    with daemon.serving():
        assert main(config) == 0
        assert capsys.readouterr().out.splitlines() == [
            "2030-01-01T00:00:01.000+00:00   - gen 7 failover: news 1",
            "2030-01-01T00:00:02.000+00:00 ! web gen 7 failover: news 2",
            "2030-01-01T00:00:03.000+00:00 X db gen 7 failover: news 3",
        ]
        assert main([*config, "--pair", "web"]) == 0
        assert "news 2" in (out := capsys.readouterr().out)
        assert len(out.splitlines()) == 1
        assert main([*config, "--json", "--follow"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line) for line in lines] == daemon.events
    assert [request["follow"] for request in daemon.asked] == [False, False, True]


def test_an_interrupt_is_no_error_message(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "call", interrupted)
    assert main(["start", "web"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [("schema", "host"), ("schema", "pair"), ("--help",)])
def test_a_reader_that_went_away_is_no_error(words: tuple[str, ...]) -> None:
    """`coloha schema pair | head -1`, whatever the timing."""
    reader, writer = os.pipe()
    os.close(reader)
    with coloha(*words, stdout=writer) as process:
        os.close(writer)
        _, complaint = process.communicate()
    assert complaint == ""
    assert process.returncode == 0


def test_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("w") as full, coloha("schema", "host", stdout=full) as process:
        _, complaint = process.communicate()
    assert process.returncode not in (0, None)
    assert "No space left on device" in complaint


def test_a_key_is_made_and_changed_step_by_step(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "key"
    assert main(["keygen", str(file)]) == 0
    (old,) = read_keys(file)
    assert f"{key_name(old)} is used" in capsys.readouterr().out
    assert file.stat().st_mode & 0o777 == 0o600
    assert main(["keygen", str(file)]) == 1
    assert "exists: --add" in capsys.readouterr().err
    assert read_keys(file) == (old,)
    assert main(["keygen", "--add", str(file)]) == 0
    _, new = read_keys(file)
    assert read_keys(file) == (old, new)
    assert main(["keygen", "--add", str(file)]) == 1
    assert main(["keygen", "--drop", str(file)]) == 1, "it would lose the new key"
    assert read_keys(file) == (old, new)
    assert main(["keygen", "--use", str(file)]) == 0
    assert read_keys(file) == (new, old)
    assert main(["keygen", "--use", str(file)]) == 1, "it would go back"
    assert read_keys(file) == (new, old)
    assert f"{key_name(new)} is used, {key_name(old)} is accepted" in capsys.readouterr().out
    assert main(["keygen", "--drop", str(file)]) == 0
    assert read_keys(file) == (new,)
    assert main(["keygen", "--drop", str(file)]) == 1
    assert main(["keygen", "--use", str(file)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_that_cannot_be_changed_stays(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "key"
    assert main(["keygen", "--add", str(file)]) == 1
    assert "No such file" in capsys.readouterr().err
    file.write_text("short")
    file.chmod(0o600)
    assert main(["keygen", "--use", str(file)]) == 1
    assert "holds 5 bytes" in capsys.readouterr().err
    assert file.read_text() == "short"
    assert main(["keygen", str(tmp_path / "none" / "key")]) == 1
    assert "cannot be written" in capsys.readouterr().err
