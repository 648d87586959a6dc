"""`coloha keygen`: make the key that all nodes share, or change it, step by step."""

import argparse
import os
import secrets
import shutil
import sys
from pathlib import Path

from coloha.cli import exits
from coloha.config import key_name, read_keys
from coloha.errors import StartError

EXAMPLE = """examples:
  coloha keygen /etc/coloha/key
  coloha keygen --add /etc/coloha/key

To change the key without a gap: --add, then --use, then --drop. After each step copy the file to
the other host and restart both daemons, one after the other; docs/security.md has it all.
"""

KEY_BYTES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--add", action="store_true", help="accept a new key, and use the old one")
    step.add_argument("--use", action="store_true", help="use the newest key, accept the old one")
    step.add_argument("--drop", action="store_true", help="accept no key but the one in use")
    parser.add_argument("file", type=Path, help="the key file")


def call(arguments: argparse.Namespace) -> int:
    """Write the file, whole or not at all; say which keys are in it."""
    file: Path = arguments.file
    if not (arguments.add or arguments.use or arguments.drop):
        if file.exists():
            print(f"coloha: {file} exists: --add adds a key to it", file=sys.stderr)
            return exits.FAILED
        keys = [_new()]
    else:
        try:
            keys = list(read_keys(file))
        except ValueError as error:
            raise StartError(str(error)) from error
        if arguments.add:
            keys.append(_new())
        elif arguments.use:
            keys.insert(0, keys.pop())
        else:
            keys = keys[:1]
    _write(file, b"\n".join(keys) + b"\n")
    used, *others = map(key_name, read_keys(file))
    print(f"{file}: {used} is used" + "".join(f", {name} is accepted" for name in others))
    return exits.OK


def _new() -> bytes:
    return secrets.token_hex(KEY_BYTES).encode()


def _write(file: Path, content: bytes) -> None:
    """Replace a file; it keeps its owner.

    :raises StartError: if that cannot be.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            if file.exists():
                status = file.stat()
                shutil.chown(new, status.st_uid, status.st_gid)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise StartError(f"{file} cannot be written: {error.strerror}") from error
