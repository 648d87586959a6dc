"""The witness port: the third party that holds the generation record."""

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

        :param by: the node that asks.
        :raises WitnessError: if the answer is not known, or the rules forbid it.
        """
        ...

    async def close(self) -> None:
        """Let go of what the witness needs."""
        ...
