"""The files of disks: what qemu-img knows of them, and the overlays that it makes."""

import json
from pathlib import Path

from coloha.ask import ask
from coloha.config.disk import Disk
from coloha.errors import LaunchError

ASK_S = 10.0
"""How long qemu-img may take for what reads or writes little."""


async def size(qemu_img: str, disk: Disk) -> int:
    """Return what the guest sees as the size of a disk, bytes.

    :raises LaunchError: if the image cannot be read, or is not of that format.
    """
    # Another QEMU may have it open: -U does not mind.
    argv = (qemu_img, "info", "-U", "--output=json", "-f", disk.format, str(disk.image))
    described = json.loads(await _ask(argv, str(disk.image)))
    return int(described["virtual-size"])


async def make_overlay(qemu_img: str, path: Path, size_bytes: int) -> None:
    """Make an empty qcow2 image.

    :raises LaunchError: if that is not possible.
    """
    argv = (qemu_img, "create", "-q", "-f", "qcow2", str(path), str(size_bytes))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LaunchError(f"overlay_directory {path.parent}: {error.strerror}") from error
    await _ask(argv, str(path))


async def _ask(argv: tuple[str, ...], image: str) -> bytes:
    program = argv[0]
    try:
        answer = await ask(argv, "", ASK_S)
    except TimeoutError:
        raise LaunchError(f"{image}: {program} did not answer within {ASK_S:g} s") from None
    except OSError as error:
        raise LaunchError(
            f"{program} cannot be started ({error.strerror}): install it (Debian: qemu-utils), or"
            " set vm.qemu_img"
        ) from error
    if answer.code != 0:
        complaint = answer.complaint.decode(errors="replace").strip() or f"exit {answer.code}"
        raise LaunchError(f"{image}: {complaint}")
    return answer.output
