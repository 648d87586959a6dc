"""Interfaces of this host: the taps of guests' NICs, and its own addresses."""

import socket
from pathlib import Path

from coloha.ask import ask
from coloha.config.model import PairConfig, Vm
from coloha.config.nic import Nic
from coloha.errors import LaunchError, StartError
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
