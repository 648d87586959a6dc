"""Write docs/configuration.md and the JSON Schemas: `python -m coloha.config.reference --write`."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from coloha.config.model import HostConfig, PairConfig
from coloha.config.schema import host_schema, pair_schema, quantity_range
from coloha.config.section import Section, type_of
from coloha.config.settings import all_sections, is_container, is_live, sections_in
from coloha.config.units import Address, Kind

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m coloha.config.reference --write` from coloha/config. -->

A host has one host file, `coloha.yaml`, and one pair file per pair in its `pairs_directory`.
`etc/coloha.yaml` and `etc/pairs.d/example.yaml` are examples to start from. All files are read at
once, and all that is wrong with them is reported at once, each with file, line and column.

## How values are written

- Files are YAML in UTF-8 with YAML 1.2's rules for plain text: only `true` and `false` are
  booleans, and a MAC address is text. Duplicate keys, unknown keys, anchors, aliases, merge keys,
  tags and second documents are refused.
- A **duration** is a number and a unit: us, ms, s, m or h, such as `50ms` or `0.05s`.
- A **size** is a number and a unit: B, KiB, MiB, GiB or TiB, such as `128MiB`.
- An **address** is a numeric IP address and a port: `10.9.0.1:7770` or `'[fd00::1]:7770'`, the
  latter in quotes. Host names are refused, since a failover would have to wait for DNS.
- A **name** has up to 32 of a-z, 0-9 and `-`, and no `-` at either end.
- A **file** must exist; a **path** need not.

## What takes effect when

*Reload* says how a change takes effect: `live` on reload (SIGHUP), `restart` with the next start of
the daemon. Both nodes of a pair must agree on everything in its file except `vm.qemu`,
`vm.kernel`, `vm.initrd` and `vm.firmware` (the paths), `vm.attach`, `bridge` and `tap` of its
NICs, `recovery`, and of `witness` all but its `type` and, for etcd, its `prefix`.
"""


def render() -> str:
    """Return docs/configuration.md."""
    parts = [_INTRODUCTION]
    for title, root in (("Host file: `coloha.yaml`", HostConfig), ("Pair file", PairConfig)):
        for path, section in all_sections(root):
            heading = _heading(path, section) if path else f"## {title}"
            parts.append(f"{heading}\n\n{_summary(section)}\n\n{_table(section)}\n")
    return "\n".join(parts)


def _heading(path: str, section: type[Section]) -> str:
    """Return the heading of a section; of several kinds of one, each has its own."""
    kind = f" of `type: {type_of(section)}`" if "type" in section.model_fields else ""
    return f"### `{path}`{kind}"


def _summary(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _table(section: type[Section]) -> str:
    rows = [
        "| key | type | default | range | reload | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, info in section.model_fields.items():
        cells = (
            f"`{name}`",
            _type(info),
            _default(info),
            _range(info),
            _reload(info),
            info.description or "",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _type(info: FieldInfo) -> str:
    if sections_in(info.annotation):
        return "sections" if is_container(info) else "section"
    kind = next((mark for mark in info.metadata if isinstance(mark, Kind)), None)
    return kind.label if kind else _type_name(info.annotation)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next(mark.label for mark in arguments if isinstance(mark, Kind))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (UnionType, Union):
        return " or ".join(_type_name(inner) for inner in arguments if inner is not NoneType)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    return {Address: "address", str: "text"}[annotation]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if info.default is PydanticUndefined:
        return "see meaning" if not sections_in(info.annotation) else "as below"
    if info.default is None:
        return "none"
    empty = {(): "empty list", "{}": "nothing"}
    text = info.default if isinstance(info.default, tuple) else str(info.default)
    return empty.get(text, f"`{info.default}`")


def _reload(info: FieldInfo) -> str:
    if sections_in(info.annotation):
        return ""
    return "live" if is_live(info) else "restart"


def _range(info: FieldInfo) -> str:
    limits = quantity_range(info)
    if limits is not None:
        return f"{limits.low} to {limits.high}"
    low = [m.ge if isinstance(m, Ge) else m.min_length for m in info.metadata if _is(m, Ge, MinLen)]
    high = [
        m.le if isinstance(m, Le) else m.max_length for m in info.metadata if _is(m, Le, MaxLen)
    ]
    if low and low == high:
        return f"exactly {low[0]}"
    return f"{low[0] if low else 0} to {high[0]}" if high else ""


def _is(mark: object, *types: type) -> bool:
    return isinstance(mark, types)


def files(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each generated file below `root` and what it must hold."""
    yield root / "docs/configuration.md", render()
    for name, schema in (("coloha", host_schema()), ("pair", pair_schema())):
        text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        yield root / f"etc/schema/{name}.schema.json", text


def main(arguments: list[str] | None = None) -> int:
    """Write the generated files, or name those that are out of date and return 1."""
    parser = argparse.ArgumentParser(
        prog="python -m coloha.config.reference", description=main.__doc__
    )
    parser.add_argument("--write", action="store_true", help="write the files")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="source tree")
    options = parser.parse_args(arguments)
    stale = 0
    for path, text in files(options.root):
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        if options.write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        else:
            sys.stderr.write(f"{path} is out of date: run with --write\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
