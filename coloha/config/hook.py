"""Hooks: programs of the operator's that run when something happens."""

import difflib
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from coloha.config.section import Section
from coloha.config.units import Kind, Seconds, as_written, seconds_between, shown
from coloha.config.values import Program
from coloha.core.kinds import TRIGGERS


def _trigger(text: str) -> str:
    if text not in TRIGGERS:
        near = difflib.get_close_matches(text[:64].lower(), map(str, TRIGGERS), 1)
        hint = f"did you mean {near[0]!r}?" if near else "docs/mqtt.md lists the kinds"
        raise ValueError(f"unknown event {shown(text)}: {hint}")
    return text


def _argument(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{shown(text)} has a character that no argument can have: remove it")
    return text


Argument = Annotated[str, AfterValidator(_argument), Kind("text")]
"""One word of a command line."""

Trigger = Annotated[
    str,
    AfterValidator(_trigger),
    Kind("event"),
    WithJsonSchema({"type": "string", "enum": [str(word) for word in TRIGGERS]}),
]
"""A kind of event, a class of them, a severity, or `any`."""


class Hook(Section):
    """A program that runs when something happens, with the event as JSON on its standard input.

    Its environment says the same: `COLOHA_KIND`, `COLOHA_PAIR` and others; see docs/mqtt.md.
    """

    on: Annotated[tuple[Trigger, ...], Field(min_length=1)] = Field(
        description="The events that it runs for: kinds (`promoted`), classes (`failover`,"
        " `protection`, `guest`, `service`, `daemon`), `warning` (and worse), `error`, or `any`."
    )
    program: Program = Field(
        description="Program to run: a name looked up in PATH, or a path, where a relative one with"
        " a slash starts at this file's folder. It runs as the daemon's user."
    )
    arguments: tuple[Argument, ...] = Field(
        default=(), description="Its arguments, as they are: no shell looks at them."
    )
    timeout: Annotated[Seconds, seconds_between("100ms", "10m")] = Field(
        default=as_written("30s"),
        description="How long one run may take; then it is killed, with all that it started.",
    )
