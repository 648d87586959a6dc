"""The witness port: the third party that holds the generation record."""

import json
from dataclasses import asdict
from typing import Protocol

from coloha.core.record import Record
from coloha.errors import ColohaError


class WitnessError(ColohaError):
    """The witness was asked in vain. `unknown`: a swap may have been made, or may yet be."""

    def __init__(self, reason: str, *, unknown: bool = False) -> None:
        super().__init__(reason)
        self.unknown = unknown


class Witness(Protocol):
    """Holds one record per pair and changes it only by compare-and-swap."""

    async def read(self, pair: str) -> Record | None:
        """Return the record of a pair, None if there never was one.

        :raises WitnessError: if it cannot be known now.
        """
        ...

    async def swap(self, pair: str, expected: Record | None, new: Record, by: str) -> Record | None:
        """Replace `expected` by `new`, if the record is `expected`; return what the record is now.

        :param by: the node that asks, or `OPERATOR`.
        :raises WitnessError: if the answer is not known, or the rules forbid it.
        """
        ...

    async def probe(self, pair: str) -> None:
        """See that a swap would work from here, and change nothing.

        :raises WitnessError: if it would not.
        """
        ...

    async def close(self) -> None:
        """Let go of what the witness needs."""
        ...


def encode_record(record: Record) -> bytes:
    """Return the form in which witnesses keep a record."""
    return f"{json.dumps(asdict(record))}\n".encode()


def decode_record(data: bytes) -> Record:
    """Return the record that a witness keeps.

    :raises ValueError: if this is none.
    """
    try:
        record = Record(**json.loads(data))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    names: list[object] = [record.lineage, record.primary]
    numbers: list[object] = [record.generation]
    if record.secondary is not None or record.session is not None:
        names.append(record.secondary)
        numbers.append(record.session)
    if not all(type(name) is str for name in names):
        raise ValueError("a name is not a text")
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("a number is not a positive integer")
    return record
