"""The fake QEMU as a process of its own, for what only a process can do: complain and die.

It obeys commands that QEMU does not have: `say` an event, `complain` on stderr, `spoil`: complain
as soon as the stream is cut, and `die`, with last events, by an exit status or a signal.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from coloha.qemu.command_line import Files
from coloha.qemu.process import ChildLauncher, Process
from tests.qemu.fake import FakeQemu

ROOT = Path(__file__).parents[2]


def start(files: Files, version: str = "11.1.3", first_words: str = "") -> Process:
    """Start it with its monitors where a run has them."""
    files.directory.mkdir(parents=True, exist_ok=True)
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.qemu.fake_child import main
main()
"""
    argv = [sys.executable, "-c", program, str(files.directory), version, first_words]
    return ChildLauncher().start(argv, files.stderr)


def main() -> None:
    """The process."""
    directory, version, first_words = sys.argv[1:]
    print(first_words, file=sys.stderr, flush=True)
    asyncio.run(_serve(Path(directory), version))


async def _serve(directory: Path, version: str) -> None:
    async with FakeQemu(directory) as qemu:

        def say(arguments: dict[str, Any]) -> object:
            qemu.event(arguments["event"], arguments.get("data"))
            return {}

        def complain(arguments: dict[str, Any]) -> object:
            print(arguments["text"], file=sys.stderr, flush=True)
            return {}

        def spoil(arguments: dict[str, Any]) -> object:
            def ended() -> None:
                complain(arguments)
                qemu.event("COLO_EXIT")

            def yank(_: dict[str, Any]) -> object:
                asyncio.get_running_loop().call_later(0.05, ended)
                return {}

            qemu.answers |= {
                "query-yank": lambda _: [{"type": "migration"}],
                "query-status": lambda _: {"status": "colo", "running": False},
                "yank": yank,
            }
            return {}

        def die(arguments: dict[str, Any]) -> object:
            for event, data in arguments.get("events", []):
                qemu.event(event, data)
            if "signal" in arguments:
                os.kill(os.getpid(), arguments["signal"])
                signal.pause()
            os._exit(arguments.get("status", 0))

        major, minor, micro = map(int, version.split("."))
        qemu.answers |= {
            "say": say,
            "complain": complain,
            "die": die,
            "spoil": spoil,
            "executed": lambda _: [command.name for command in qemu.executed],
            "query-version": lambda _: {"qemu": {"major": major, "minor": minor, "micro": micro}},
            "query-colo-status": lambda _: {"mode": "secondary"},
        }
        await asyncio.Event().wait()
