"""`coloha keygen`: make the key that all nodes share, or change it, step by step."""

import argparse
import os
import re
import secrets
import shutil
import time
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
_MADE = re.compile(rb"made-(\d{10})-")


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
        _write(file, [_new([])], anew=True)
    else:
        try:
            keys = list(read_keys(file))
        except ValueError as error:
            raise StartError(str(error)) from error
        _write(file, _step(arguments, keys))
    used, *others = map(key_name, read_keys(file))
    print(f"{file}: {used} is used" + "".join(f", {name} is accepted" for name in others))
    return exits.OK


def _step(arguments: argparse.Namespace, keys: list[bytes]) -> list[bytes]:
    """Return the keys after a step.

    :raises StartError: if it is not its turn: a step that is taken twice must not undo itself.
    """
    newest = max(keys, key=_made_at)
    if arguments.add:
        if len(keys) > 1:
            raise StartError("a key is being changed already: go on with --use or --drop")
        return [*keys, _new(keys)]
    if len(keys) == 1:
        raise StartError(f"there is one key, {key_name(newest)}: begin with --add")
    if arguments.use:
        if keys[0] == newest:
            raise StartError(f"{key_name(newest)}, the newest, is in use: go on with --drop")
        return [newest, *(key for key in keys if key != newest)]
    if keys[0] != newest:
        raise StartError(f"{key_name(newest)}, the newest, is not in use yet: go on with --use")
    return [newest]


def _new(keys: list[bytes]) -> bytes:
    """Make a key that says when it was made, later than the others."""
    made_at = max([int(time.time()), *(_made_at(key) + 1 for key in keys)])
    return f"made-{made_at:010d}-{secrets.token_hex(KEY_BYTES)}".encode()


def _made_at(key: bytes) -> int:
    """Return when a key was made, Unix seconds; 0 for one that does not say so."""
    found = _MADE.match(key)
    return int(found[1]) if found else 0


def _write(file: Path, keys: list[bytes], *, anew: bool = False) -> None:
    """Replace the file, which keeps its owner, or make it `anew`.

    :raises StartError: if that cannot be.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            if not anew:
                status = file.stat()
                shutil.chown(new, status.st_uid, status.st_gid)
            stream.write(b"\n".join(keys) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if anew:
            file.hardlink_to(new)  # fails if it is there
            new.unlink()
        else:
            new.replace(file)
    except FileExistsError:
        new.unlink(missing_ok=True)
        raise StartError(f"{file} exists: --add adds a key to it") from None
    except OSError as error:
        new.unlink(missing_ok=True)
        raise StartError(f"{file} cannot be written: {error.strerror}") from error
