"""Takes kernel modules, and those that they depend on, out of an unpacked kernel package.

`modules.py TREE OUT NAME...` fills OUT with `NAME.ko` files and `order`, the names in the order in
which insmod accepts them. A name without a file is built into the kernel and is left out. Runs on
the system's python3, before the project's own environment exists.
"""

import lzma
import re
import sys
from pathlib import Path


def load(path: Path) -> bytes:
    """The module's plain bytes; Debian 13 and newer ship them compressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def dependencies(module: bytes) -> list[str]:
    """The modules that this one names in its .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.decode() for name in found[1].split(b",") if name] if found else []


def ordered(names: list[str], files: dict[str, Path]) -> dict[str, bytes]:
    """Every module needed for `names`, dependencies first."""
    result: dict[str, bytes] = {}
    for name in names:
        if name in files:
            module = load(files[name])
            result |= ordered(dependencies(module), files) | {name: module}
    return result


def main() -> None:
    """Command line: TREE OUT NAME..."""
    tree, out = Path(sys.argv[1]), Path(sys.argv[2])
    files = {
        path.name.split(".")[0].replace("-", "_"): path for path in sorted(tree.rglob("*.ko*"))
    }
    modules = ordered(sys.argv[3:], files)
    for name, module in modules.items():
        (out / f"{name}.ko").write_bytes(module)
    (out / "order").write_text("".join(f"{name}\n" for name in modules))


if __name__ == "__main__":
    main()
