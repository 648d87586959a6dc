"""What all sections of the configuration have in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

LIVE: dict[str, Any] = {"live": True}
"""Marks a field that takes effect on reload; every other one needs a restart."""


class Section(BaseModel):
    """Base of all sections: read-only, and no key that is not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def type_of(member: type[Section]) -> str:
    """Return what `type` is in a section that is one of several kinds."""
    return str(get_args(member.model_fields["type"].annotation)[0])


def missing(message: str) -> PydanticCustomError:
    """Make the error of a field that should be there: it is reported at the section around it."""
    return PydanticCustomError("section", "{message}", {"message": message})
