"""Reads a file of lines that another process is writing."""

from pathlib import Path


class Tail:
    """The lines of a file, each one once; a line that is not finished yet is left for later."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def lines(self) -> list[str]:
        """The whole lines written since the last call; none while the file is missing."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode().splitlines()
