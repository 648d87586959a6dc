"""The man page and the completions of shells, from the command line's own parser.

`python -m lab.manual --write` writes them to etc/man and etc/completion.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import shtab

from coloha.cli import main
from lab.namespace import CHECKOUT

WIDTH = 78
FILES = {
    "/etc/coloha/coloha.yaml": "what is true for every pair on this host",
    "/etc/coloha/pairs.d/PAIR.yaml": "one pair",
    "/etc/coloha/key": "the key that both hosts share",
    "/run/coloha": "sockets, and what QEMUs complain about",
    "/var/lib/coloha": "what survives a reboot: state, events, flight records",
}
_PREAMBLE = {
    "bash": """
_coloha_pairs() {
  compgen -W "$(ls /etc/coloha/pairs.d 2> /dev/null | sed -n 's/[.]yaml$//p')" -- "$1"
}
""",
    "zsh": """
_coloha_pairs() {
  local -a pairs=(${(f)"$(ls /etc/coloha/pairs.d 2> /dev/null | sed -n 's/[.]yaml$//p')"})
  compadd -a pairs
}
""",
}


def verbs(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each verb."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    found: Mapping[str, argparse.ArgumentParser] = group.choices
    return found


def manual() -> str:
    """Return the man page, coloha(1)."""
    os.environ["COLUMNS"] = str(WIDTH)
    parser = main.parser()
    lines = [
        '.TH COLOHA 1 "" "coloha" "coloha"',
        ".SH NAME",
        r"coloha \- fault tolerance for QEMU virtual machines",
        ".SH SYNOPSIS",
        ".B coloha",
        r"\fIVERB\fR [\fIOPTION\fR]...",
        ".SH DESCRIPTION",
        "coloha keeps a second copy of a virtual machine on another host, checkpoint by",
        "checkpoint, and has it take over when the first one dies.",
        ".SH VERBS",
    ]
    for name, verb in verbs(parser).items():
        body = verb.format_help().partition("\nexit codes:")[0]
        lines += [f".SS coloha {_plain(name)}", *_as_it_is(body)]
    lines += [".SH EXIT STATUS", *_as_it_is(main.EXITS.partition("\n")[2]), ".SH FILES"]
    for path, text in FILES.items():
        lines += [".TP", f".I {_plain(path)}", text]
    lines += [".SH SEE ALSO", ".BR qemu-system-x86_64 (1),", ".BR systemctl (1)"]
    return "\n".join(lines) + "\n"


def _as_it_is(text: str) -> list[str]:
    return [".nf", *map(_plain, text.rstrip().splitlines()), ".fi"]


def _plain(line: str) -> str:
    """Return a line as roff takes it for text."""
    line = line.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{line}" if line.startswith((".", "'")) else line


def completion(shell: str) -> str:
    """Return the completion of a shell, bash or zsh."""
    parser = main.parser()
    for verb in verbs(parser).values():
        for action in verb._actions:
            if action.dest == "pair":
                action.complete = dict.fromkeys(_PREAMBLE, "_coloha_pairs")  # type: ignore[attr-defined]
            elif action.type is Path or action.dest in ("file", "against"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell, preamble=_PREAMBLE[shell])


def made() -> Mapping[Path, str]:
    """Return what each file is to hold."""
    return {
        CHECKOUT / "etc/man/coloha.1": manual(),
        CHECKOUT / "etc/completion/coloha.bash": completion("bash"),
        CHECKOUT / "etc/completion/_coloha": completion("zsh"),
    }


def run() -> int:
    """Write the files."""
    if sys.argv[1:] != ["--write"]:
        print(inspect.getdoc(sys.modules[__name__]))
        return 2
    for path, text in made().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
