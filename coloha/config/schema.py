"""JSON Schemas of the two kinds of file, made from the models, for editors to check and complete.

They know less than the loader does: rules across settings and files are not in them.
"""

from typing import Any

from pydantic.fields import FieldInfo

from coloha.config.model import HostConfig, PairConfig
from coloha.config.section import Section
from coloha.config.settings import all_sections, is_live
from coloha.config.units import Range

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def host_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `coloha.yaml`."""
    return _schema(HostConfig)


def pair_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a pair file."""
    return _schema(PairConfig)


def quantity_range(info: FieldInfo) -> Range | None:
    """Return the limits of a field that holds a duration or a size, if it has any."""
    return next((mark for mark in info.metadata if isinstance(mark, Range)), None)


def _schema(root: type[Section]) -> dict[str, Any]:
    schema = {"$schema": _DIALECT, **root.model_json_schema()}
    for path, section in all_sections(root):
        part = schema["$defs"][section.__name__] if path else schema
        _drop_titles(part)
        for name, info in section.model_fields.items():
            _describe(part["properties"][name], info)
    return schema


def _drop_titles(part: dict[str, Any]) -> None:
    """Drop the titles that pydantic makes of names: they only repeat them."""
    for field in part["properties"].values():
        field.pop("title", None)


def _describe(field: dict[str, Any], info: FieldInfo) -> None:
    """Say in words what the schema's language has no keyword for."""
    limits = quantity_range(info)
    if limits is not None:
        field["description"] += f" From {limits.low} to {limits.high}."
    if is_live(info):
        field["description"] += " Takes effect on reload."
