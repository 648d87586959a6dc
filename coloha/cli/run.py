"""`coloha run`: be the daemon of this host, until SIGTERM."""

import argparse
import asyncio
import logging
import os
import sys

import uvloop

from coloha import config
from coloha.cli import exits
from coloha.runtime.daemon import Daemon

EXAMPLE = """example:
  coloha run --config /etc/coloha/coloha.yaml

SIGHUP reads the configuration again, SIGTERM ends the daemon and leaves the VMs running.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument(
        "--event-loop",
        choices=("uvloop", "asyncio"),
        help="use this event loop, whatever the configuration says",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much to log (default: %(default)s)",
    )


def call(arguments: argparse.Namespace) -> int:
    """Run the daemon."""
    loaded = config.load(arguments.config)
    _log(arguments.log_level)
    daemon = Daemon(loaded, arguments.config)
    loop = arguments.event_loop or loaded.host.event_loop
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(daemon.run())
    return exits.OK


def _log(level: str) -> None:
    """Log to stderr; under systemd the journal adds time and unit by itself."""
    plain = "JOURNAL_STREAM" in os.environ
    form = "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format=form if plain else f"%(asctime)s {form}",
    )
