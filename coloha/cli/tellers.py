"""What `coloha check` finds out about the MQTT broker and the hooks."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from coloha.config import Hook, HostConfig, Mqtt
from coloha.errors import BrokerError


def findings(host: HostConfig) -> Iterator[tuple[bool, str]]:
    """Yield whether the broker lets this node in, and whether each hook can run: no hook does."""
    if host.mqtt is not None:
        yield asyncio.run(_broker(host.mqtt, host.mqtt.client_id or f"coloha-{host.node}"))
    for name, hook in host.hooks.items():
        yield _hook(name, hook)


async def _broker(section: Mqtt, client_id: str) -> tuple[bool, str]:
    # The client is large, and most nodes do without.
    from coloha.adapters.mqtt import connect  # noqa: PLC0415

    try:
        # By the daemon's own name the broker would end the daemon's connection.
        async with connect(section, f"{client_id}-check"):
            pass
    except BrokerError as error:
        return False, f"MQTT: {error}"
    who = f"as {section.username}" if section.username else "without a password"
    return True, f"MQTT: {section.broker} lets this node in {who}"


def _hook(name: str, hook: Hook) -> tuple[bool, str]:
    program = hook.program
    if "/" not in program and shutil.which(program) is None:
        return False, f"hook {name}: {program} is not in PATH: install it, or write its path"
    if "/" in program and not Path(program).is_file():
        return False, f"hook {name}: {program} is not there: install it, or correct the path"
    if "/" in program and not os.access(program, os.X_OK):
        return False, f"hook {name}: {program} cannot be run: run chmod +x {program}"
    return True, f"hook {name}: {program}, for {', '.join(hook.on)}"
