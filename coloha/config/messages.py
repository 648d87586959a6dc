"""What pydantic found, as plain sentences at the place in the file where it was found."""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from coloha.config.section import Section
from coloha.config.settings import locate
from coloha.config.source import Source
from coloha.config.units import shown
from coloha.config.values import SeveralError
from coloha.errors import Problem

AnySection = TypeVar("AnySection", bound=Section)

_LONGEST_GUESS = 64
"""Longest word, in characters, that is compared with what could have been meant."""


def validate(
    model: type[AnySection], source: Source, folder: Path
) -> tuple[AnySection | None, list[Problem]]:
    """Return the model that a file holds, or None, and all problems that pydantic found in it.

    `folder` is where relative paths start.
    """
    if source.data is None:
        return None, []
    try:
        return model.model_validate(source.data, context={"folder": folder}), []
    except ValidationError as error:
        found = error.errors(include_url=False)
    return None, [problem for details in found for problem in _problems(model, source, details)]


def _problems(model: type[Section], source: Source, details: ErrorDetails) -> list[Problem]:
    path, around = locate(model, details["loc"])
    if source.refused & {path, (*path, "type")} or details["type"] == "default_factory_not_called":
        return []
    known = list(around.model_fields) if around else []
    if details["type"] == "extra_forbidden":
        message = _unknown("key", str(path[-1]), known)
        return [source.problem(path, message, source.key_place(path))]
    if details["type"] == "missing":
        return [source.problem(path, "missing: add this key", source.place(path[:-1]))]
    if details["type"] == "section":
        return [source.problem(path[:-1], details["msg"])]
    place = source.key_place(path) if details["loc"][-1:] == ("[key]",) else source.place(path)
    return [source.problem(path, message, place) for message in _explain(details)]


def _unknown(noun: str, word: str, known: Iterable[str]) -> str:
    known = list(known)
    guess = word.lower() if len(word) <= _LONGEST_GUESS else ""
    near = difflib.get_close_matches(guess, known, 1)
    if near:
        return f"unknown {noun} {shown(word)}, did you mean {near[0]!r}?"
    return f"unknown {noun} {shown(word)}: use {', '.join(known)}"


def _explain(details: ErrorDetails) -> list[str]:
    """Return the messages for one error; types without one of their own keep pydantic's."""
    explain = _MESSAGES.get(details["type"])
    return explain(details) if explain else [details["msg"]]


def _own(details: ErrorDetails) -> list[str]:
    error = details["ctx"]["error"]
    return error.messages if isinstance(error, SeveralError) else [str(error)]


def _not_text(details: ErrorDetails) -> list[str]:
    value = details["input"]
    if value is None:
        return ["is empty: write a value, or remove the key"]
    if isinstance(value, bool | int | float):
        return [f"must be text, not {shown(value)}: put it in quotes"]
    return [f"must be text, not {shown(value)}: write one value"]


def _not_a_number(details: ErrorDetails) -> list[str]:
    value = details["input"]
    if isinstance(value, str) and re.fullmatch("[0-9]+", value):
        return [f"must be a number, not text: write {shown(value)[1:-1]} without quotes"]
    return [f"must be a whole number, not {shown(value)}: write digits only"]


def _not_a_list(details: ErrorDetails) -> list[str]:
    return [f"must be a list, not {shown(details['input'])}: write each item as '- item'"]


def _not_a_section(details: ErrorDetails) -> list[str]:
    value = details["input"]
    if value is None:
        return ["is empty: indent its keys below it, or remove it"]
    return [f"must be a section, not {shown(value)}: write 'key: value' lines below it"]


def _not_listed(details: ErrorDetails) -> list[str]:
    known = re.findall("'([^']*)'", details["ctx"]["expected"])
    value = details["input"]
    if isinstance(value, str):
        return [_unknown("value", value, known)]
    return [f"cannot be {shown(value)}: use {', '.join(known)}"]


def _unknown_type(details: ErrorDetails) -> list[str]:
    known = re.findall("'([^']*)'", details["ctx"]["expected_tags"])
    return [_unknown("type", details["ctx"]["tag"], known)]


def _out_of_range(details: ErrorDetails) -> list[str]:
    words = {"ge": "at least", "le": "at most"}
    limits = [f"{words[name]} {limit}" for name, limit in details["ctx"].items() if name in words]
    return [f"{shown(details['input'])} is out of range: write {' and '.join(limits)}"]


def _too_few(details: ErrorDetails) -> list[str]:
    least = details["ctx"]["min_length"]
    if len(details["input"]) >= least:
        return []  # entries that are wrong do not count, and have problems of their own
    return [f"must have at least {least} {'entry' if least == 1 else 'entries'}: add some"]


def _too_many(details: ErrorDetails) -> list[str]:
    return [f"must have at most {details['ctx']['max_length']} entries: remove some"]


_MESSAGES: dict[str, Callable[[ErrorDetails], list[str]]] = {
    "value_error": _own,
    **dict.fromkeys(("string_type", "path_type"), _not_text),
    **dict.fromkeys(("int_type", "int_from_float"), _not_a_number),
    **dict.fromkeys(("tuple_type", "list_type"), _not_a_list),
    **dict.fromkeys(("mapping_type", "dict_type"), _not_a_section),
    **dict.fromkeys(("model_type", "model_attributes_type"), _not_a_section),
    "literal_error": _not_listed,
    "union_tag_invalid": _unknown_type,
    "union_tag_not_found": lambda _: ["has no type: add the key 'type'"],
    **dict.fromkeys(("greater_than_equal", "less_than_equal"), _out_of_range),
    "too_short": _too_few,
    "too_long": _too_many,
}
"""Error types of pydantic, and who explains them."""
