"""Taps: how a guest's NIC reaches a bridge of the host."""

import asyncio
from pathlib import Path

from coloha.config.model import Nic, Vm
from coloha.errors import LaunchError
from coloha.qemu.command_line import tap_name

_INTERFACES = Path("/sys/class/net")
IP_S = 5.0


async def prepare(pair: str, vm: Vm) -> None:
    """See that every NIC's tap exists; make the taps of bridges, attach them and bring them up.

    :raises LaunchError: if an interface is missing or cannot be made.
    """
    commands = []
    for index, nic in enumerate(vm.nics):
        commands += _commands(tap_name(pair, index, nic), nic)
    if commands:
        await _ip(commands)


def _commands(tap: str, nic: Nic) -> list[str]:
    present = (_INTERFACES / tap).exists()
    if nic.bridge is None:
        if not present:
            raise LaunchError(f"tap {tap} does not exist: make it, or set `bridge` instead")
        return []
    if not (_INTERFACES / nic.bridge / "bridge").is_dir():
        raise LaunchError(f"{nic.bridge} is not a bridge of this host: make it before the pair")
    make = [] if present else [f"tuntap add dev {tap} mode tap"]
    return [*make, f"link set dev {tap} master {nic.bridge}", f"link set dev {tap} up"]


async def _ip(commands: list[str]) -> None:
    """Run commands of `ip` in one batch."""
    try:
        process = await asyncio.create_subprocess_exec(
            "ip", "-batch", "-", stdin=-1, stdout=-1, stderr=-1
        )
    except OSError as error:
        raise LaunchError(f"ip (package iproute2): {error.strerror}") from error
    try:
        async with asyncio.timeout(IP_S):
            _, complaint = await process.communicate("\n".join(commands).encode())
    except TimeoutError:
        process.kill()
        raise LaunchError(f"ip did not end within {IP_S:g} s") from None
    if process.returncode:
        reason = " ".join(complaint.decode(errors="replace").split())
        raise LaunchError(f"cannot set up taps (is CAP_NET_ADMIN missing?): {reason}")
