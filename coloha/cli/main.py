"""`coloha`: parse the command line, run one verb."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from coloha import __version__
from coloha.cli import exits
from coloha.errors import ColohaError, ConfigError

DEFAULT_CONFIG = Path("/etc/coloha/coloha.yaml")

EXITS = """exit codes:
  0  yes: it was done, all is well
  1  no: a check found a problem, a pair is not protected, the daemon did not answer, a replay
     decides otherwise
  2  the configuration, the command line or a flight record was refused; nothing was started
"""


VERBS = (
    *("run", "check", "status", "events", "logs", "start", "stop", "protect", "unprotect"),
    *("switchover", "drain", "failover", "pause", "resume", "reload", "replay"),
    *("support-bundle", "keygen", "schema", "simulate"),
)
APART = ("replay", "keygen", "schema", "simulate")
"""Verbs that need no host file."""


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line; of the other verbs just the names, if `only` one is
    asked for: loading all of them takes longer than most have to do.
    """
    whole = argparse.ArgumentParser(
        prog="coloha",
        description="Fault tolerance for QEMU virtual machines: the other half of COLO.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"coloha {__version__}")
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        if only not in (None, name):
            verbs.add_parser(name)
            continue
        module = importlib.import_module(f"coloha.cli.{name.replace('-', '_')}")
        summary = (module.__doc__ or "").split("\n")[0].partition(": ")[2]
        verb = verbs.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=module.EXAMPLE + "\n" + EXITS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name not in APART:
            verb.add_argument(
                "--config",
                type=Path,
                default=DEFAULT_CONFIG,
                metavar="FILE",
                help=f"the host file (default: {DEFAULT_CONFIG})",
            )
        module.add_arguments(verb)
        verb.set_defaults(call=module.call)
    return whole


def main(argv: list[str] | None = None) -> int:
    """Run `coloha` with these arguments and return the exit code."""
    try:
        try:
            return _call(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away: nothing is left to say, at the interpreter's end too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK


def _call(argv: list[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    only = words[0] if words and words[0] in VERBS else None
    arguments = parser(only).parse_args(argv)
    try:
        code = arguments.call(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exits.BAD_CONFIG
    except ColohaError as error:
        print(f"coloha: {error}", file=sys.stderr)
        return exits.FAILED
    except KeyboardInterrupt:
        return 130
    assert isinstance(code, int)
    return code
