"""`coloha run`: be the daemon of this host, until SIGTERM."""

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os

import uvloop

from coloha import config
from coloha.adapters.journal import JournalHandler
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
    """Log to the journal where stderr goes there, else to stderr."""
    # A fatal signal, such as the service manager's to a daemon that hangs, says where it was.
    faulthandler.enable()
    handlers: list[logging.Handler] = []
    if "JOURNAL_STREAM" in os.environ:
        with contextlib.suppress(OSError):
            handlers.append(JournalHandler())
    form = "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(
        handlers=handlers or [logging.StreamHandler()],
        level=level.upper(),
        format="%(message)s" if handlers else f"%(asctime)s {form}",
    )
