"""What all sections of the configuration have in common."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo
from pydantic_core import PydanticCustomError

LIVE: dict[str, Any] = {"live": True}
"""Marks a field that takes effect on reload; every other one needs a restart."""


class Section(BaseModel):
    """Base of all sections: read-only, and no key that is not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def type_of(member: type[Section]) -> str:
    """Return what `type` is in a section that is one of several kinds."""
    return str(get_args(member.model_fields["type"].annotation)[0])


def beside(file: Path | None, info: ValidationInfo, other: str, what: str) -> Path | None:
    """Return a file that goes with the setting `other` of the same section: neither is enough.

    :param what: the file holds, for a message.
    """
    # What was given but is wrong is absent from info.data.
    given = info.data.get(other, "wrong")
    if file is not None and given is None:
        raise ValueError(f"means nothing without {other}: add {other} or remove it")
    if file is None and given not in (None, "wrong"):
        raise missing(f"{other} has no {what}: add {info.field_name}, or remove {other}")
    return file


def missing(message: str) -> PydanticCustomError:
    """Make the error of a field that should be there: it is reported at the section around it."""
    return PydanticCustomError("section", "{message}", {"message": message})
