"""The kinds of text that settings hold: names, MAC addresses, paths, QEMU arguments.

Each kind is a type that validates itself, says what to do when it is wrong, and describes itself
to the JSON Schema. Paths are made absolute by the folder of their file, which `load` passes in the
validation context; without one (models made by hand) they stay as they are and no file is opened.
"""

import contextlib
import hashlib
import itertools
import os
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StrictInt, ValidationInfo, WithJsonSchema

from coloha.config.units import Address, Kind, shown

SHORTEST_KEY = 32
"""Fewest bytes of a shared key: as many as HMAC-SHA256 puts out."""
LONGEST_KEY = 4096
MOST_KEYS = 3
LONGEST_PASSWORD = 1024

_NAME = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_INTERFACE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,14}"
_MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
_MACHINE = r"[A-Za-z0-9][A-Za-z0-9._-]*(,[A-Za-z0-9._-]+=[A-Za-z0-9._-]+)*"
_KEY_PREFIX = r"[A-Za-z0-9._/-]{0,127}/"
_PARAMETER = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
_URL = r"https?://([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
_CPU = r"[^\s,][^\s]*"

_LINK = "QEMU's connection belongs to coloha, so there is nothing to set"
_FOLLOW = "coloha follows the guest's shutdown, reset and panic itself, so remove it"
_RESERVED = {
    **dict.fromkeys(("qmp", "qmp-pretty", "mon", "incoming", "daemonize", "pidfile"), _LINK),
    **dict.fromkeys(("action", "no-shutdown", "no-reboot"), _FOLLOW),
    **dict.fromkeys(("S", "preconfig"), "coloha starts and stops the guest itself, so remove it"),
    "loadvm": "the guest's state comes from the other node, so remove it",
    "name": "QEMU is named after the pair: change 'pair' instead",
    "m": "set vm.memory instead",
    **dict.fromkeys(("machine", "M"), "set vm.machine instead"),
    **dict.fromkeys(("accel", "enable-kvm"), "set vm.accelerator instead"),
    **dict.fromkeys(
        ("netdev", "nic", "net"),
        "list the NIC in vm.nics instead: the output of any other is not held until a commit",
    ),
    "smp": "set vm.cpus instead",
    "cpu": "set vm.cpu instead",
    "kernel": "set vm.kernel instead",
    "initrd": "set vm.initrd instead",
    "append": "set vm.append instead",
    "bios": "set vm.firmware instead",
    **dict.fromkeys(
        ("nodefaults", "no-user-config", "readconfig"),
        "both nodes must have the same devices, so coloha keeps other configuration out: remove it",
    ),
    **dict.fromkeys(
        ("runas", "run-with", "chroot"),
        "the user and the root folder of QEMU are set where coloha is started: remove it",
    ),
}
"""QEMU options that coloha owns, without their dashes, and what to do instead."""


_ALWAYS_WRITABLE = frozenset(
    ("hda", "hdb", "hdc", "hdd", "fda", "fdb", "sd", "mtdblock", "pflash", "snapshot", "virtfs")
)
_READ_ONLY = r"\bread-?only=on\b|\"read-only\":\s*true"


def _name(text: str) -> str:
    if re.fullmatch(_NAME, text) is None:
        raise ValueError(
            f"{shown(text)} is not a name: use up to 32 of a-z, 0-9 and '-', no '-' at either end"
        )
    return text


def _interface(text: str) -> str:
    if re.fullmatch(_INTERFACE, text) is None:
        raise ValueError(
            f"{shown(text)} is not an interface name: use up to 15 of letters, digits, '.', '_'"
            " and '-', not beginning with '.' or '-'"
        )
    return text


def _mac(text: str) -> str:
    if re.fullmatch(_MAC, text) is None:
        raise ValueError(
            f"{shown(text)} is not a MAC address: write six octets like 52:54:00:12:34:56"
        )
    mac = text.lower()
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac} is a multicast address: make its first octet even, such as 52")
    if mac == "00:00:00:00:00:00":
        raise ValueError(f"{mac} is no NIC's address: write one like 52:54:00:12:34:56")
    return mac


def _machine(text: str) -> str:
    if re.fullmatch(_MACHINE, text) is None:
        raise ValueError(f"{shown(text)} is not a machine type: write one like pc or pc,usb=off")
    if ",accel=" in text:
        raise ValueError("accel= does not belong here: set vm.accelerator instead")
    return text


def _cpu(text: str) -> str:
    if re.fullmatch(_CPU, text) is None:
        raise ValueError(f"{shown(text)} is not a CPU model: write one like Skylake-Client,-hle")
    return text


def _extra_argument(text: str) -> str:
    option = re.fullmatch(r"--?([A-Za-z].*)", text, re.DOTALL)
    reason = _RESERVED.get(option[1]) if option else None
    if reason is not None:
        raise ValueError(f"{text} is reserved for coloha: {reason}")
    return text


def disks_are_read_only(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse disks that the guest could write to: the secondary's would not follow."""
    for option, value in itertools.pairwise((*arguments, "")):
        name = option.lstrip("-") if option.startswith("-") else ""
        if name in _ALWAYS_WRITABLE or (
            name in ("drive", "blockdev") and re.search(_READ_ONLY, value) is None
        ):
            raise ValueError(
                f"{option} {value}".rstrip()
                + " can be written to, and these writes would not reach the"
                " secondary: list it in vm.disks instead, or add readonly=on or read-only=on"
            )
    return arguments


def _concrete(address: Address) -> Address:
    if address.is_wildcard:
        raise ValueError(f"{address} is no address to connect to: write the node's own IP address")
    return address


def _resolved(path: Path, info: ValidationInfo) -> Path:
    folder: Path | None = (info.context or {}).get("folder")
    return folder / path if folder is not None else path


def _program(text: str, info: ValidationInfo) -> str:
    if not text.strip():
        raise ValueError("is empty: write a program's name or its path")
    return str(_resolved(Path(text), info)) if "/" in text else text


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{shown(str(path))} is relative: write an absolute path")
    return path


def _regular(path: Path) -> os.stat_result:
    """Return the status of a regular file. Raises ValueError that says what to do."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise ValueError(
            f"{shown(str(path))} cannot be used ({reason}): create it or correct it"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown(str(path))} is not a regular file: name one")
    return status


def _disk_image(path: Path, info: ValidationInfo) -> Path:
    path = _resolved(path, info)
    if info.context and not path.is_block_device():
        _regular(path)
    return path


def _existing(path: Path, info: ValidationInfo) -> Path:
    path = _resolved(path, info)
    if info.context:
        _regular(path)
    return path


class SeveralError(ValueError):
    """More than one thing is wrong with a value: `messages` says each."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


def _secret(path: Path, info: ValidationInfo) -> Path:
    """Return where a secret is: where the file says, or where systemd has put it for this daemon,
    under the file's name (systemd.exec, LoadCredential=).
    """
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), path.name)
    with contextlib.suppress(PermissionError):  # only the daemon itself may see what is there
        if _is_credential(credential) and credential.is_file():
            return credential
    return _resolved(path, info)


def _is_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return folder is not None and path.parent == Path(folder)


def _open_to_others(path: Path) -> list[str]:
    """Say so if others than its owner may use a file. Raises ValueError if it is none.

    Of a credential systemd sees to that, by an access list, which looks like a group's rights.
    """
    mode = stat.S_IMODE(_regular(path).st_mode)
    if mode & 0o077 and not _is_credential(path):
        return [f"{path} is open to others (mode {mode:04o}): run chmod 600 {path}"]
    return []


def _read_secret(path: Path, longest: int) -> tuple[bytes, list[str]]:
    """Return the first `longest` bytes of a file and one more, stripped, and what is wrong with it.

    Raises ValueError if it cannot be read at all.
    """
    problems = _open_to_others(path)
    try:
        with path.open("rb") as stream:
            return stream.read(longest + 1).strip(), problems
    except OSError as error:
        problems.append(
            f"{path} cannot be read ({error.strerror}): give it to the user that runs coloha"
        )
        raise SeveralError(problems) from None


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the shared keys in `path`, one on each line, without the white space around them.

    The first is used; the others are accepted from other nodes, while keys are changed. What is no
    text is one key. Raises ValueError that says everything that is wrong with the file and what to
    do.
    """
    content, problems = _read_secret(path, LONGEST_KEY)
    keys = tuple(line.strip() for line in content.split(b"\n")) if content.isascii() else (content,)
    if len(content) > LONGEST_KEY:
        problems.append(f"{path} is larger than {LONGEST_KEY} bytes: this is no key, write one")
    elif len(keys) > MOST_KEYS:
        problems.append(f"{path} has {len(keys)} lines, each a key: leave {MOST_KEYS} at most")
    elif min(map(len, keys)) < SHORTEST_KEY:
        problems.append(
            f"{path} holds {min(map(len, keys))} bytes{' in a line' if len(keys) > 1 else ''}, a"
            f" key needs at least {SHORTEST_KEY}: write one with coloha keygen"
        )
    if problems:
        raise SeveralError(problems)
    return keys


def key_name(key: bytes) -> str:
    """Return what a key is called where people see it: it tells nothing of the key."""
    return hashlib.sha256(b"coloha key " + key).hexdigest()[:8]


def read_password(path: Path) -> str:
    """Return the password in `path`, without the white space around it.

    Raises ValueError that says everything that is wrong with the file and what to do.
    """
    password, problems = _read_secret(path, LONGEST_PASSWORD)
    if not password:
        problems.append(f"{path} is empty: write the password into it")
    elif len(password) > LONGEST_PASSWORD:
        problems.append(f"{path} is larger than {LONGEST_PASSWORD} bytes: this is no password")
    text = password.decode(errors="replace")
    if not text.isprintable():
        problems.append(f"{path} holds more than one line of UTF-8 text: write the password alone")
    if problems:
        raise SeveralError(problems)
    return text


def _key_file(path: Path, info: ValidationInfo) -> Path:
    path = _secret(path, info)
    if info.context:
        read_keys(path)
    return path


def _password_file(path: Path, info: ValidationInfo) -> Path:
    path = _secret(path, info)
    if info.context:
        read_password(path)
    return path


def _private_file(path: Path, info: ValidationInfo) -> Path:
    path = _secret(path, info)
    if info.context and (problems := _open_to_others(path)):
        raise SeveralError(problems)
    return path


def _endpoint(text: str) -> str:
    match = re.fullmatch(r"(https?)://([^/?#@]+)", text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a URL of etcd: write it like http://10.9.0.3:2379")
    return f"{match[1]}://{_concrete(Address.parse(match[2]))}"


def _key_prefix(text: str) -> str:
    if re.fullmatch(_KEY_PREFIX, text) is None:
        raise ValueError(
            f"{shown(text)} is not a prefix of keys: use up to 128 of letters, digits, '.', '_',"
            " '-' and '/', with '/' at the end"
        )
    return text


def _parameter(text: str) -> str:
    if re.fullmatch(_PARAMETER, text) is None:
        raise ValueError(
            f"{shown(text)} is not the name of a parameter: use letters, digits, '_' and '-',"
            " beginning with a letter"
        )
    return text


def _user(text: str) -> str:
    if not (0 < len(text) <= 256 and text.isprintable()):
        raise ValueError(f"{shown(text)} is not a user: write up to 256 characters on one line")
    return text


Name = Annotated[
    str,
    AfterValidator(_name),
    Kind("name"),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$"}),
]
"""A node or a pair."""

InterfaceName = Annotated[
    str,
    AfterValidator(_interface),
    Kind("interface"),
    WithJsonSchema({"type": "string", "pattern": f"^{_INTERFACE}$"}),
]
"""A network interface of this host: at most 15 characters, as Linux has it."""

Mac = Annotated[
    str,
    AfterValidator(_mac),
    Kind("MAC address"),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_MAC}$", "examples": ["52:54:00:12:34:56"]},
    ),
]
"""A unicast MAC address, in lower case after validation."""

Machine = Annotated[
    str,
    AfterValidator(_machine),
    Kind("text"),
    WithJsonSchema({"type": "string", "pattern": f"^{_MACHINE}$", "examples": ["pc", "q35"]}),
]
"""A QEMU machine type, with properties if need be."""

Cpu = Annotated[
    str,
    AfterValidator(_cpu),
    Kind("text"),
    WithJsonSchema({"type": "string", "pattern": f"^{_CPU}$", "examples": ["Skylake-Client"]}),
]
"""A QEMU CPU model, with flags if need be."""

ExtraArgument = Annotated[str, AfterValidator(_extra_argument), Kind("text")]
"""One word of QEMU's command line that coloha does not own."""

NodeAddress = Annotated[Address, AfterValidator(_concrete)]
"""An address that others can connect to: no wildcard."""

Program = Annotated[str, AfterValidator(_program), Kind("program")]
"""A program: looked up in PATH by its name, or an absolute path after validation."""

ResolvedPath = Annotated[Path, AfterValidator(_resolved), Kind("path")]
"""A path, absolute after validation; nothing needs to exist there yet."""

AbsolutePath = Annotated[Path, AfterValidator(_absolute), Kind("absolute path")]
"""A path that has to be written as an absolute one."""

ExistingFile = Annotated[Path, AfterValidator(_existing), Kind("file")]
"""A regular file on this host, an absolute path after validation."""

DiskImage = Annotated[Path, AfterValidator(_disk_image), Kind("file or block device")]
"""A regular file or a block device on this host, an absolute path after validation."""

KeyFile = Annotated[Path, AfterValidator(_key_file), Kind("file")]
"""A file that `read_keys` accepts."""

PasswordFile = Annotated[Path, AfterValidator(_password_file), Kind("file")]
"""A file that `read_password` accepts."""

PrivateFile = Annotated[Path, AfterValidator(_private_file), Kind("file")]
"""A regular file on this host that its owner alone may use."""

Endpoint = Annotated[
    str,
    AfterValidator(_endpoint),
    Kind("URL"),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_URL}$", "examples": ["http://10.9.0.3:2379"]}
    ),
]
"""A client URL of a member of etcd: scheme, numeric address, port."""

KeyPrefix = Annotated[
    str,
    AfterValidator(_key_prefix),
    Kind("text"),
    WithJsonSchema({"type": "string", "pattern": f"^{_KEY_PREFIX}$"}),
]
"""What the keys of etcd begin with."""

ParameterName = Annotated[
    str,
    AfterValidator(_parameter),
    Kind("text"),
    WithJsonSchema({"type": "string", "pattern": f"^{_PARAMETER}$"}),
]
"""What a program calls one of its parameters."""

User = Annotated[str, AfterValidator(_user), Kind("text")]
"""A user of another service."""

Count = Annotated[StrictInt, Kind("whole number")]
"""A whole number, written without quotes."""
