import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from coloha.config import (
    Address,
    Bytes,
    Seconds,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
)

SECONDS = TypeAdapter(Seconds)
BYTES = TypeAdapter(Bytes)

MICROSECONDS = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("50ms", 0.05), ("0.05s", 0.05), ("250us", 0.00025), ("10m", 600.0), ("24h", 86400.0)],
)
def test_duration_is_seconds(text: str, seconds: float) -> None:
    value = SECONDS.validate_python(text)
    assert isinstance(value, float)
    assert value == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("128MiB", 128 * 2**20), ("1.5GiB", 1536 * 2**20), ("1B", 1), ("3KiB", 3072)],
)
def test_size_is_bytes(text: str, size: int) -> None:
    value = BYTES.validate_python(text)
    assert isinstance(value, int)
    assert value == size


@given(st.integers(0, 366 * 24 * 3600 * 10**6))
def test_every_microsecond_survives_a_round_trip(microseconds: int) -> None:
    text = format_seconds(microseconds / 10**6)
    assert parse_seconds(text) == microseconds / 10**6
    assert format_seconds(parse_seconds(text)) == text


@given(st.integers(0, 10**6), st.sampled_from(sorted(MICROSECONDS)))
def test_duration_means_its_unit(number: int, unit: str) -> None:
    expected = number * MICROSECONDS[unit]
    if expected > 366 * 24 * MICROSECONDS["h"]:
        with pytest.raises(ValueError, match="longer than 8784h"):
            parse_seconds(f"{number}{unit}")
    else:
        assert round(parse_seconds(f"{number}{unit}") * 10**6) == expected


@given(st.integers(0, 2**62))
def test_every_byte_survives_a_round_trip(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(0, 10**9), st.sampled_from(sorted(SIZES)))
def test_size_means_its_unit(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number * SIZES[unit]


@given(st.text() | st.from_regex(r"[0-9.]*[a-zA-Z ]*", fullmatch=True))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_seconds, parse_bytes):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert math.isfinite(value)
        assert value >= 0


@given(st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,3})?(us|ms|s|m|h|B|KiB|MiB)", fullmatch=True))
def test_schema_pattern_agrees_with_the_parser(text: str) -> None:
    for adapter in (SECONDS, BYTES):
        pattern = adapter.json_schema()["pattern"]
        if re.search(pattern, text) is None:
            with pytest.raises(ValidationError, match="unknown unit"):
                adapter.validate_python(text)


@pytest.mark.parametrize("value", [50, 0.05, 0, "50", "0.05"])
def test_bare_number_is_no_duration(value: object) -> None:
    with pytest.raises(ValidationError, match=r"has no unit .*: write 50ms or 0.05s"):
        SECONDS.validate_python(value)


@pytest.mark.parametrize("value", [134217728, "134217728"])
def test_bare_number_is_no_size(value: object) -> None:
    with pytest.raises(ValidationError, match=r"has no unit .*: write 128MiB or 2GiB"):
        BYTES.validate_python(value)


@pytest.mark.parametrize("value", [True, None, [], {}])
def test_other_types_are_no_quantities(value: object) -> None:
    for adapter in (SECONDS, BYTES):
        with pytest.raises(ValidationError, match=r"must be a (duration|size), not"):
            adapter.validate_python(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5sec", "write 5s"),
        ("5min", "write 5m"),
        ("5MS", "write 5ms"),
        ("5µs", "write 5us"),
        ("5 s", "has a space in it: write 5s"),
        ("5d", "unknown unit 'd'"),
        ("-5s", "is not a duration"),
        ("1e3s", "unknown unit 'e3s'"),
        ("\u0665s", "is not a duration"),
        ("0.1us", "finer than 1us"),
        ("9" * 21 + "s", "too many digits"),
        ("9000h", "longer than 8784h"),
    ],
)
def test_wrong_durations_say_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2KB", "write 2KiB"),
        ("128MB", "write 128MiB"),
        ("2GB", "write 2GiB"),
        ("2M", "write 2MiB"),
        ("2G", "write 2GiB"),
        ("2mib", "write 2MiB"),
        ("2 GiB", "has a space in it: write 2GiB"),
        ("0.5B", "finer than 1B"),
        ("2PiB", "unknown unit 'PiB'"),
    ],
)
def test_wrong_sizes_say_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("10.9.0.1:7770", "10.9.0.1", 7770, "10.9.0.1:7770"),
        ("[fd00::1]:1", "fd00::1", 1, "[fd00::1]:1"),
        ("[FD00:0::0001]:65535", "fd00::1", 65535, "[fd00::1]:65535"),
        ("0.0.0.0:7770", "0.0.0.0", 7770, "0.0.0.0:7770"),
    ],
)
def test_address(text: str, host: str, port: int, written: str) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, written)
    assert Address.parse(str(address)) == address


@given(st.ip_addresses(), st.integers(1, 65535))
def test_address_survives_a_round_trip(ip: object, port: int) -> None:
    text = f"{ip}:{port}" if "." in str(ip) else f"[{ip}]:{port}"
    try:
        address = Address.parse(text)
    except ValueError as error:
        assert re.search("disguise|link-local|not the address of one host", str(error))  # noqa: PT017
    else:
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("alpha:7770", "numeric IP address: write one, since a name would"),
        ("10.9.0.1", "has no port: write it like 10.9.0.1:7770"),
        ("fd00::1", "has no port: write it like '[fd00::1]:7770'"),
        ("[fd00::1]", "has no port: write it like '[fd00::1]:7770'"),
        ("fd00::1:7770", "lacks brackets: write '[fd00::1]:7770'"),
        ("[10.9.0.1]:7770", "brackets are for IPv6"),
        ("10.9.0.1:0", "port 0 does not exist"),
        ("10.9.0.1:65536", "port 65536 does not exist"),
        ("10.9.0.1:x", "is not an address"),
        ("010.9.0.1:7770", "is not a numeric IP address"),
        ("[fe80::1%eth0]:7770", "is link-local"),
        ("[::ffff:10.9.0.1]:7770", "write 10.9.0.1"),
        ("224.0.0.1:7770", "write a unicast address"),
        ("255.255.255.255:7770", "write a unicast address"),
        ("10.9.0.1:7770\n", "is not an address"),
    ],
)
def test_wrong_addresses_say_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        Address.parse(text)


@pytest.mark.parametrize(
    ("bound", "address", "covered"),
    [
        ("10.9.0.1:1", "10.9.0.1:1", True),
        ("10.9.0.1:1", "10.9.0.2:1", False),
        ("10.9.0.1:1", "10.9.0.1:2", False),
        ("0.0.0.0:1", "10.9.0.2:1", True),
        ("0.0.0.0:1", "10.9.0.2:2", False),
        ("[::]:1", "[fd00::1]:1", True),
        ("[::]:1", "10.9.0.1:1", False),
        ("0.0.0.0:1", "[fd00::1]:1", False),
    ],
)
def test_what_a_bound_socket_receives(bound: str, address: str, covered: bool) -> None:
    assert Address.parse(bound).covers(Address.parse(address)) is covered
