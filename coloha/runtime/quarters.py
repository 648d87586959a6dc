"""Tells people, by a few events, how far a long copy has come."""

from coloha.qemu.steps import Progress


class Quarters:
    """Notices when a copy begins, and when a quarter more of it is done."""

    def __init__(self) -> None:
        self._told: int | None = None

    def news(self, progress: Progress | None) -> str | None:
        """Return what is new since the last call, in words; `progress` is None without a copy."""
        if progress is None or progress.total <= 0:
            self._told = None
            return None
        quarter = min(4, 4 * progress.copied // progress.total)
        if self._told is not None and quarter <= self._told:
            return None
        self._told = quarter
        copied, total = progress.copied >> 20, progress.total >> 20
        return f"{25 * quarter} % of the disks is copied, {copied} of {total} MiB"
