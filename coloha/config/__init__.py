"""Configuration: strict YAML in, read-only models out, every problem at once.

`load` is the way in. Durations are floats in seconds, sizes ints in bytes, paths absolute.
"""

from coloha.config.checkpoint import Checkpoint
from coloha.config.disk import Disk
from coloha.config.fencing import FenceAgent
from coloha.config.hook import Hook
from coloha.config.load import Config, control_socket, folders, load
from coloha.config.model import (
    Heartbeat,
    HostConfig,
    Listen,
    NodeAddresses,
    PairConfig,
    Vm,
)
from coloha.config.mqtt import Mqtt
from coloha.config.nic import Nic
from coloha.config.recovery import Recovery
from coloha.config.settings import changed_settings, live_settings
from coloha.config.units import (
    Address,
    Bytes,
    Seconds,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
)
from coloha.config.values import key_name, read_keys, read_password
from coloha.config.watchdog import Watchdog
from coloha.config.witness import EtcdWitness, FileWitness, NoWitness, Witness

__all__ = [
    "Address",
    "Bytes",
    "Checkpoint",
    "Config",
    "Disk",
    "EtcdWitness",
    "FenceAgent",
    "FileWitness",
    "Heartbeat",
    "Hook",
    "HostConfig",
    "Listen",
    "Mqtt",
    "Nic",
    "NoWitness",
    "NodeAddresses",
    "PairConfig",
    "Recovery",
    "Seconds",
    "Vm",
    "Watchdog",
    "Witness",
    "changed_settings",
    "control_socket",
    "folders",
    "format_bytes",
    "format_seconds",
    "key_name",
    "live_settings",
    "load",
    "parse_bytes",
    "parse_seconds",
    "read_keys",
    "read_password",
]
