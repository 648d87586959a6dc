"""What the models say about themselves: their sections, their keys, and what changed in them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from coloha.config.model import PairConfig
from coloha.config.section import Section, type_of
from coloha.config.source import KeyPath, dotted


def sections_in(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field of this annotation can hold, itself or in a container."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return sections_in(get_args(annotation)[0])
    return [section for inner in get_args(annotation) for section in sections_in(inner)]


def is_container(info: FieldInfo) -> bool:
    """Whether the field holds many values, by name or by number."""
    return get_origin(info.annotation) in (tuple, Mapping)


def is_live(info: FieldInfo) -> bool:
    """Whether the field takes effect on reload."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("live"))


def all_sections(root: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield `root` and all sections below it, each with its path: `vm.nics[]`, `nodes.<name>`."""
    yield path, root
    for name, info in root.model_fields.items():
        below = f"{path}.{name}" if path else name
        if is_container(info):
            below += "[]" if get_origin(info.annotation) is tuple else ".<name>"
        for section in sections_in(info.annotation):
            yield from all_sections(section, below)


def locate(
    root: type[Section], location: tuple[str | int, ...]
) -> tuple[KeyPath, type[Section] | None]:
    """Return the path in the file for a location that pydantic reports, and the section around it.

    pydantic puts the tag of a union and the word `[key]` into locations; a file has neither. The
    section is None where keys are free.
    """
    path: list[str | int] = []
    around: type[Section] | None = None
    below: type[Section] | None = root
    tags: dict[str, type[Section]] = {}
    expected = "field"
    for step in location:
        if expected == "tag":
            below, expected = tags[str(step)], "field"
            continue
        if expected == "key word" and step == "[key]":
            break
        path.append(step)
        if expected == "item":
            around, expected = None, "key word"
            continue
        around, expected = below, "field"
        info = below.model_fields.get(str(step)) if below else None
        members = sections_in(info.annotation) if info else []
        below = members[0] if members else None
        if info is not None and info.discriminator is not None:
            tags, expected = {type_of(member): member for member in members}, "tag"
        elif info is not None and is_container(info):
            expected = "item"
    return tuple(path), around


def changed_settings(old: PairConfig, new: PairConfig) -> list[str]:
    """Return the dotted paths of all settings that differ, such as `checkpoint.period`, sorted.

    A list whose length changed, or a section of another type, counts as one setting.
    """
    return sorted(dotted(path) for path in _differences((), old, new))


def live_settings() -> frozenset[str]:
    """Return the dotted paths of the settings that take effect on reload."""
    return frozenset(
        f"{path}.{name}"
        for path, section in all_sections(PairConfig)
        for name, info in section.model_fields.items()
        if is_live(info)
    )


def _differences(path: KeyPath, old: Any, new: Any) -> Iterator[KeyPath]:
    if isinstance(old, Section) and type(old) is type(new):
        for name in type(old).model_fields:
            yield from _differences((*path, name), getattr(old, name), getattr(new, name))
    elif isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        for name in old:
            yield from _differences((*path, name), old[name], new[name])
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences((*path, index), before, after)
    elif old != new:
        yield path
