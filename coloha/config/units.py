"""Durations, sizes and socket addresses: how they are written, and what they become.

Every quantity in a configuration file is text with its unit (`50ms`, `128MiB`), so no reader has
to know which unit a bare number would have. After validation a duration is a float in seconds, a
size an int in bytes, and an address an `Address`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, GetCoreSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

_DURATION_UNITS = {"us": 1, "ms": 1_000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
_SIZE_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_DURATION_WORDS = {
    "us": ("usec", "µs", "μs"),
    "ms": ("msec", "millis"),
    "s": ("sec", "secs", "second", "seconds"),
    "m": ("min", "mins", "minute", "minutes"),
    "h": ("hr", "hour", "hours"),
}
_SIZE_WORDS = {
    "B": ("byte", "bytes"),
    "KiB": ("k", "kb"),
    "MiB": ("m", "mb"),
    "GiB": ("g", "gb"),
    "TiB": ("t", "tb"),
}
"""What else people write for a unit, in lower case."""

_LONGEST_US = 366 * 24 * _DURATION_UNITS["h"]
"""Far above any range in use, and low enough for floats to hold every microsecond exactly."""
_MOST_DIGITS = 20

_SHOWN = 60
"""How much of a wrong value a message repeats, in characters."""


def shown(value: object) -> str:
    """Return `value` as a message should repeat it: short, on one line, in YAML's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    return "this"


def _one_of(words: Mapping[str, int]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


@dataclass(frozen=True, slots=True, eq=False)
class _Notation:
    """One kind of quantity: its units in terms of the smallest, and how to help with others."""

    noun: str
    units: Mapping[str, int]
    words: Mapping[str, tuple[str, ...]]
    example: str
    per_value: int
    """How many of the smallest unit make 1 of the validated value: microseconds in a second."""

    def parse(self, text: str) -> int:
        """Return the amount in the smallest unit. Raises ValueError that says what to write."""
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(.*)", text, re.DOTALL)
        if match is None:
            raise ValueError(f"{shown(text)} is not a {self.noun}: write {self.example}")
        number, unit = match[1], match[2]
        if len(number) > _MOST_DIGITS:
            raise ValueError(f"{shown(text)} has too many digits for a {self.noun}")
        if unit not in self.units:
            raise ValueError(self._wrong_unit(text, number, unit))
        amount = Fraction(number) * self.units[unit]
        if amount.denominator != 1:
            smallest = next(iter(self.units))
            raise ValueError(f"{shown(text)} is finer than 1{smallest}: round it")
        return int(amount)

    def _wrong_unit(self, text: str, number: str, unit: str) -> str:
        allowed = _one_of(self.units)
        if not unit:
            return f"{shown(text)} has no unit ({allowed}): write {self.example}"
        if unit.strip() in self.units:
            return f"{shown(text)} has a space in it: write {number}{unit.strip()}"
        meant = [known for known, others in self.words.items() if unit.strip().lower() in others]
        meant += [known for known in self.units if unit.strip().lower() == known.lower()]
        what = f"{number}{meant[0]}" if meant else self.example
        return f"unknown unit {shown(unit)} (use {allowed}): write {what}"

    def format(self, amount: int) -> str:
        """Return an amount of the smallest unit as a whole number of the largest unit possible."""
        fitting = (size for size in self.units.values() if size <= amount and amount % size == 0)
        size = max(fitting, default=1)
        unit = next(unit for unit, own in self.units.items() if own == size)
        return f"{amount // size}{unit}"

    def require_text(self, value: object) -> str:
        """Return `value` if it is text. Raises ValueError for the bare numbers of YAML."""
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = _one_of(self.units)
            raise ValueError(f"{shown(value)} has no unit ({allowed}): write {self.example}")
        raise ValueError(f"must be a {self.noun}, not {shown(value)}: write {self.example}")


_DURATION = _Notation("duration", _DURATION_UNITS, _DURATION_WORDS, "50ms or 0.05s", 10**6)
_SIZE = _Notation("size", _SIZE_UNITS, _SIZE_WORDS, "128MiB or 2GiB", 1)


def parse_seconds(text: str) -> float:
    """Return the duration `text`, such as `50ms`, in seconds. Raises ValueError."""
    microseconds = _DURATION.parse(text)
    if microseconds > _LONGEST_US:
        raise ValueError(
            f"{shown(text)} is longer than {_DURATION.format(_LONGEST_US)}: shorten it"
        )
    return microseconds / _DURATION.per_value


def format_seconds(seconds: float) -> str:
    """Return a duration in seconds as it is written, to the microsecond: 0.05 is `50ms`."""
    return _DURATION.format(round(seconds * _DURATION.per_value)) if seconds else "0s"


def parse_bytes(text: str) -> int:
    """Return the size `text`, such as `128MiB`, in bytes. Raises ValueError."""
    return _SIZE.parse(text)


def format_bytes(size: int) -> str:
    """Return a size in bytes as it is written: 134217728 is `128MiB`."""
    return _SIZE.format(size)


@dataclass(frozen=True, slots=True)
class Kind:
    """Field metadata: what the reference calls the type."""

    label: str


@dataclass(frozen=True, slots=True)
class Range:
    """Field metadata that also validates: a quantity from `low` to `high`, both as written."""

    low: str
    high: str
    notation: _Notation

    def check(self, value: float) -> float:
        """Return `value` if it is in range. Raises ValueError."""
        low, high = self.notation.parse(self.low), self.notation.parse(self.high)
        amount = round(value * self.notation.per_value)
        if not low <= amount <= high:
            written = self.notation.format(amount)
            raise ValueError(f"{written} is out of range: write {self.low} to {self.high}")
        return value

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def seconds_between(low: str, high: str) -> Range:
    """Limit a `Seconds` field: `seconds_between("5ms", "10s")`."""
    return Range(low, high, _DURATION)


def bytes_between(low: str, high: str) -> Range:
    """Limit a `Bytes` field: `bytes_between("16MiB", "1TiB")`."""
    return Range(low, high, _SIZE)


def as_written(text: str) -> Any:
    """Mark the default of a quantity: it is validated like text from a file."""
    return text


Seconds = Annotated[
    float,
    BeforeValidator(lambda value: parse_seconds(_DURATION.require_text(value))),
    PlainSerializer(format_seconds, return_type=str, when_used="json"),
    Kind("duration"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h)$",
            "examples": ["50ms", "0.05s", "10m"],
        }
    ),
]
"""A duration: text with the unit us, ms, s, m or h in the file, a float in seconds after it."""

Bytes = Annotated[
    int,
    BeforeValidator(lambda value: parse_bytes(_SIZE.require_text(value))),
    PlainSerializer(format_bytes, return_type=str, when_used="json"),
    Kind("size"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$",
            "examples": ["128MiB", "2GiB"],
        }
    ),
]
"""A size: text with the unit B, KiB, MiB, GiB or TiB in the file, an int in bytes after it."""


@dataclass(frozen=True, order=True, slots=True)
class Address:
    """A numeric IP address and a port, in the form that sockets take."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether this is 0.0.0.0 or [::]: every address of the host, of one family."""
        return ipaddress.ip_address(self.host).is_unspecified

    def same_family(self, other: "Address") -> bool:
        """Whether both are IPv4 or both are IPv6."""
        return (":" in self.host) == (":" in other.host)

    def covers(self, other: "Address") -> bool:
        """Whether a socket bound here also receives what is sent to `other`."""
        if self.port != other.port or not self.same_family(other):
            return False
        return self.is_wildcard or self.host == other.host

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `10.9.0.1:7770` or `[fd00::1]:7770`. Raises ValueError that says what to write."""
        match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,9})", text)
        if match is None:
            raise ValueError(_wrong_address(text))
        host, port = match[1] or match[2] or "", int(match[3])
        if not 1 <= port <= 65535:
            raise ValueError(f"port {port} does not exist: write one from 1 to 65535")
        return cls(_numeric_host(host, bracketed=match[1] is not None), port)

    @classmethod
    def validate(cls, value: object) -> "Address":
        """Return an address made from the text of a file. Raises ValueError."""
        if isinstance(value, Address):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise ValueError(f"must be an address, not {shown(value)}: write it like 10.9.0.1:7770")

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.validate, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
            "examples": ["10.9.0.1:7770", "[fd00::1]:7770"],
        }


def _wrong_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if ":" in host and re.fullmatch("[0-9]+", port) and _is_numeric(host):
        return f"{shown(text)} lacks brackets: write '[{host}]:{port}'"
    bare = text.strip("[]")
    if _is_numeric(bare):
        whole = f"'[{bare}]:7770'" if ":" in bare else f"{bare}:7770"
        return f"{shown(text)} has no port: write it like {whole}"
    return f"{shown(text)} is not an address: write it like 10.9.0.1:7770 or '[fd00::1]:7770'"


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _numeric_host(host: str, *, bracketed: bool) -> str:
    """Return `host` in its shortest form. Raises ValueError for what a socket cannot use."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{shown(host)} is not a numeric IP address: write one, since a name would make"
            " a failover wait for DNS"
        ) from None
    if bracketed != (address.version == 6):
        raise ValueError("brackets are for IPv6 addresses: write it like 10.9.0.1:7770")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            raise ValueError(
                f"{shown(host)} is an IPv4 address in disguise: write {address.ipv4_mapped}"
            )
        if address.is_link_local:
            raise ValueError(
                f"{shown(host)} is link-local, so it differs by host: use another address"
            )
    if address.is_multicast or host == "255.255.255.255":
        raise ValueError(f"{host} is not the address of one host: write a unicast address")
    return str(address)
