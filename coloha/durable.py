"""Writing a small file so that it survives a crash: whole, or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`: write aside, fsync, rename, fsync the folder.

    :raises OSError: before the rename, and `path` is as it was; or `NotSyncedError` after it.
    """
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        written = 0
        while written < len(data):  # a disk that is nearly full takes a part, without an error
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    aside.replace(path)
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise NotSyncedError(error.errno, error.strerror, str(path)) from error


class NotSyncedError(OSError):
    """The file has its new content, but a crash may still bring the old one back."""


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
