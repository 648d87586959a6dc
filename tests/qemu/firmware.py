"""Guests of a few instructions, as firmware images: they need no CPU worth its name."""

import struct
from pathlib import Path

_SIZE = 64 * 1024
_RESET_VECTOR = 0xFFF0
_JUMP_TO_START = b"\xea\x00\x00\x00\xf0"
_HALT = b"\xf4\xeb\xfd"


def _out(port: int, value: int, size: int) -> bytes:
    """16-bit code that writes to an I/O port."""
    load = {1: b"\xb0", 2: b"\xb8", 4: b"\x66\xb8"}[size] + value.to_bytes(size, "little")
    write = {1: b"\xee", 2: b"\xef", 4: b"\x66\xef"}[size]
    return load + b"\xba" + struct.pack("<H", port) + write


def _configure(register: int, value: int, size: int) -> bytes:
    """Write to the power management function of machine `pc`, PCI 0:1.3."""
    return _out(0xCF8, 0x80000B00 | register, 4) + _out(0xCFC, value, size)


SWITCH_OFF = _configure(0x40, 0x601, 4) + _configure(0x80, 1, 1) + _out(0x604, 0x2000, 2)
"""ACPI's S5: set the base of its registers, enable them, sleep."""

RESET = _out(0x64, 0xFE, 1)
"""By the keyboard controller."""

PANIC = _out(0x505, 0x1, 1)
"""Through QEMU's pvpanic device."""

CHANGES_ITS_CODE = bytes.fromhex(
    "b80010 8ed8 b80020 8ec0"  # DS is where the code will be, ES where the data
    "c7060000b001 c6060200cb"  # the code: mov al, 1; retf
    "26c606000001"  # the data: 1
    "b90010"  # `again`: 4096 times
    "9a00000010 263a060000 750f e2f2"  # call it; if it did not return what the data says, `stale`
    "8036010003 268036000003 ebe2"  # 1 becomes 2, and 2 becomes 1, in both; `again`
    "b021 e6e9 ebdc"  # `stale`: "!" to the debug console; `again`
)
"""Says "!" whenever it runs other code than its memory holds."""

IDLE = b""


def image(path: Path, code: bytes) -> Path:
    """Write the image of a guest that does this and halts; return its path."""
    rom = bytearray(_HALT * (_SIZE // len(_HALT) + 1))[:_SIZE]
    rom[: len(code) + len(_HALT)] = code + _HALT
    rom[_RESET_VECTOR : _RESET_VECTOR + len(_JUMP_TO_START)] = _JUMP_TO_START
    path.write_bytes(rom)
    return path
