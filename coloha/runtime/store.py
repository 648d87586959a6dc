"""What the daemon must remember over its own restart: one JSON file per pair."""

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from coloha.core.events import Durable
from coloha.durable import replace_file
from coloha.errors import StoreError
from coloha.flight.codec import codec

log = logging.getLogger(__name__)

RETRY_S = 0.5
FORMAT = 1


class Store:
    """The durable states of this node's pairs."""

    def __init__(self, directory: Path) -> None:
        """Make the folder if need be.

        :raises StoreError: if that is impossible.
        """
        self._directory = directory
        # The threads exist before they are needed: later, memory may be short.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="store")
        self._threads.submit(int).result()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"state_directory {directory}: {error.strerror}") from error

    def load(self, pair: str) -> Durable:
        """Return the durable state of a pair; a fresh one if there is no file.

        :raises StoreError: if the file is there but cannot be understood.
        """
        path = self._path(pair)
        try:
            return _durable(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return Durable()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is damaged ({error}): see the runbook") from error

    async def save(self, pair: str, durable: Durable, failed: Callable[[str], None]) -> None:
        """Write the state so that it survives a crash; try until it is done.

        A node that cannot write must not act either: its pump stands still here, its pulse stops,
        and the other node takes over. `failed` is told why, each time.
        """
        content = {"format": FORMAT, **asdict(durable)}
        data = (json.dumps(content) + "\n").encode()
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._threads, replace_file, self._path(pair), data)
                return
            except OSError as error:
                log.error("%s: cannot write %s: %s", pair, self._path(pair), error)
                failed(f"{self._path(pair)}: {error.strerror or error}")
                await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _path(self, pair: str) -> Path:
        return self._directory / f"{pair}.json"


_ADDED = {"pauses": 0, "partings": 0, "record": None}
"""Left out by earlier versions."""

_CODEC = codec(Durable)


def _durable(content: object) -> Durable:
    """Return the state that a file holds.

    :raises ValueError: if it holds none, or a part of one.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("not a state")
    if content.pop("format") != FORMAT:
        raise ValueError("it was written by another version of coloha")
    durable: Durable = _CODEC.decode(_ADDED | content)
    return durable
