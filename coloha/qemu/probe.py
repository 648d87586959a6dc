"""Looks at a QEMU program before any VM depends on it."""

import contextlib
import json
import shutil
from dataclasses import dataclass

from coloha.ask import ask
from coloha.errors import LaunchError
from coloha.qemu import versions
from coloha.qemu.versions import Version

PROBE_S = 20.0


@dataclass(frozen=True, slots=True)
class Probe:
    """What a QEMU program can do. `colo`: it was built with COLO."""

    version: Version
    colo: bool


async def probe(program: str, accelerator: str) -> Probe:
    """Start the program without a machine, ask it, end it.

    :raises LaunchError: if it cannot be started, or does not have the accelerator.
    """
    if shutil.which(program) is None:
        raise LaunchError(f"{program}: no such program: install QEMU (package qemu-system-x86)")
    argv = (
        *(program, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"none,accel={accelerator}", "-qmp", "stdio"),
    )
    commands = ("qmp_capabilities", "query-version", "query-migrate-capabilities", "quit")
    text = "".join(json.dumps({"execute": command, "id": command}) for command in commands)
    try:
        answer = await ask(argv, text, PROBE_S)
    except TimeoutError:
        raise LaunchError(f"{program} did not answer within {PROBE_S:g} s") from None
    except OSError as error:
        raise LaunchError(f"{program} cannot be started: {error.strerror}") from error
    replies = _replies(answer.output)
    try:
        version = versions.parse(replies.get("query-version"))
    except ValueError:
        reason = answer.complaint.decode(errors="replace").strip() or "it said nothing of use"
        raise LaunchError(f"{program} with accelerator {accelerator}: {reason}") from None
    capabilities = replies.get("query-migrate-capabilities") or []
    assert isinstance(capabilities, list)
    return Probe(version, any(entry.get("capability") == "x-colo" for entry in capabilities))


def _replies(output: bytes) -> dict[str, object]:
    """Return what each command returned, by its id, which is its name."""
    replies = {}
    for line in output.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and "id" in message:
                replies[str(message["id"])] = message.get("return")
    return replies
