"""The man page and the completions are those of the parser, and who reads them agrees."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from coloha.cli.main import parser
from lab import manual
from lab.namespace import CHECKOUT
from tests.cli.support import configure

MAN = CHECKOUT / "etc" / "man" / "coloha.1"
BASH = CHECKOUT / "etc" / "completion" / "coloha.bash"
ZSH = CHECKOUT / "etc" / "completion" / "_coloha"


def test_they_are_current() -> None:
    for path, text in manual.made().items():
        assert path.read_text().split() == text.split(), "run make docs"


def test_man_has_nothing_to_complain_about() -> None:
    argv = ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(MAN)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for words in ("coloha support-bundle", "EXIT STATUS", "--against FILE", "example:"):
        assert words in done.stdout


def completed(*words: str, home: Path | None = None) -> list[str]:
    """What bash offers at the end of these words."""
    listed = " ".join(f"'{word}'" for word in words)
    script = BASH.read_text()
    if home is not None:
        script = script.replace("/etc/coloha/pairs.d", str(home / "pairs.d"))
    script += f"""
COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}
complete -p coloha > /dev/null
_shtab_coloha
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_verbs_options_and_pairs(tmp_path: Path) -> None:
    configure(tmp_path)
    assert set(completed("coloha", "st")) == {"status", "start", "stop"}
    assert completed("coloha", "check", "--ag") == ["--against"]
    assert completed("coloha", "status", "", home=tmp_path) == ["web"]
    assert completed("coloha", "failover", "", home=tmp_path) == ["web"]


def test_zsh_can_read_it() -> None:
    zsh = shutil.which("zsh")
    assert zsh is not None, "zsh is missing: run make test"
    done = subprocess.run([zsh, "-n", str(ZSH)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", manual.verbs(parser()))
def test_every_help_shows_an_example_that_is_understood(verb: str) -> None:
    text = manual.verbs(parser())[verb].format_help()
    _, _, examples = text.partition("\nexample")
    lines = [line.strip() for line in examples.splitlines()[1:] if line.startswith("  coloha ")]
    assert lines, f"no example of {verb}"
    for line in lines:
        words = shlex.split(re.split(r"[|#>]", line)[0])[1:]
        assert words[0] == verb
        parser().parse_args(words)
