"""Interfaces of this host: the taps of guests' NICs, and its own addresses."""

import socket
from collections.abc import Sequence
from pathlib import Path

from coloha.ask import ask
from coloha.config.model import PairConfig, Vm
from coloha.errors import LaunchError, StartError
from coloha.qemu.command_line import tap_name
from coloha.qemu.launch import tap_commands

_INTERFACES = Path("/sys/class/net")
IP_S = 5.0


def wanted(pair: str, vm: Vm) -> list[tuple[str, str]]:
    """Return the taps that are to be made for a VM, each with its bridge.

    :raises LaunchError: if there is no such bridge, or a tap that is not to be made is missing.
    """
    taps = []
    for index, nic in enumerate(vm.nics):
        tap = tap_name(pair, index, nic)
        if nic.bridge is None:
            if not (_INTERFACES / tap).exists():
                raise LaunchError(f"tap {tap} does not exist: make it, or set `bridge` instead")
        elif not (_INTERFACES / nic.bridge / "bridge").is_dir():
            raise LaunchError(f"{nic.bridge} is not a bridge of this host: make it before the pair")
        else:
            taps.append((tap, nic.bridge))
    return taps


async def make_taps(taps: Sequence[tuple[str, str]]) -> None:
    """See that there are these taps, each attached to its bridge, and up.

    :raises LaunchError: if one cannot be made.
    """
    commands = [command for tap, bridge in taps for command in tap_commands(tap, bridge)]
    if commands:
        await _ip(commands)


def see_own_addresses(pair: PairConfig, node: str) -> None:
    """See that the addresses which the pair's file gives `node` are this host's.

    A host file that was copied without changing `node` would make this host the other one.

    :raises StartError: if they are not.
    """
    addresses = pair.nodes[node]
    for host in (addresses.channel.host, addresses.heartbeat.host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((host, 0))
            except OSError as error:
                raise StartError(
                    f"pair {pair.name} says that {node} has the address {host}, and this host has "
                    f"not ({error.strerror}): is `node` in the host file right?"
                ) from error


async def _ip(commands: list[str]) -> None:
    """Run commands of `ip` in one batch."""
    try:
        answer = await ask(("ip", "-batch", "-"), "\n".join(commands), IP_S)
    except TimeoutError:
        raise LaunchError(f"ip did not end within {IP_S:g} s") from None
    except OSError as error:
        raise LaunchError(f"ip (package iproute2): {error.strerror}") from error
    if answer.code:
        reason = " ".join(answer.complaint.decode(errors="replace").split())
        raise LaunchError(f"cannot set up taps (is CAP_NET_ADMIN missing?): {reason}")
