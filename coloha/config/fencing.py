"""How the host of another node is switched off: what a host file says of a fence agent."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from coloha.config.section import Section
from coloha.config.units import Kind, Seconds, as_written, seconds_between
from coloha.config.values import Count, ParameterName, PasswordFile, Program

_SET_BY_COLOHA = {
    **dict.fromkeys(("action", "option", "nodename"), "coloha sets it: remove it"),
    **dict.fromkeys(
        ("password", "passwd"), "a secret does not belong here: write it into password_file"
    ),
    "delay": "set fencing.NODE.delay instead",
}


def _parameters(parameters: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in parameters.items():
        if name in _SET_BY_COLOHA:
            raise ValueError(f"{name}: {_SET_BY_COLOHA[name]}")
        if not value.isprintable():
            raise ValueError(f"{name} is more than one line: write it on one")
    return parameters


def _as_text(value: object) -> object:
    """Whole numbers need no quotes here: what they mean is the agent's affair."""
    return str(value) if type(value) is int else value


Parameters = Annotated[
    Mapping[
        ParameterName,
        Annotated[str, BeforeValidator(_as_text), WithJsonSchema({"type": ["string", "integer"]})],
    ],
    AfterValidator(_parameters),
    Kind("keys and values"),
]
"""What an agent is told, by the names of its own manual."""


class FenceAgent(Section):
    """How this host has the host of another node switched off, by a fence agent.

    Fence agents are programs of the ClusterLabs project (Debian: `fence-agents`), each for one kind
    of device.
    """

    agent: Program = Field(
        description="Fence agent: a name looked up in PATH, such as `fence_ipmilan`, or a path,"
        " where a relative one with a slash starts at this file's folder."
    )
    parameters: Parameters = Field(
        default={},
        description="What the agent is told, as its manual names it, such as `ip`, `username`,"
        " `plug`. The device must be the one of that node's host: coloha cannot see whose it is.",
    )
    password_file: PasswordFile | None = Field(
        default=None,
        description="File with the device's password, readable by its owner only. Relative paths"
        " start at this file's folder.",
    )
    timeout: Annotated[Seconds, seconds_between("1s", "5m")] = Field(
        default=as_written("20s"),
        description="How long one attempt may take: to switch the host off, and to see that it is.",
    )
    retries: Annotated[Count, Field(ge=0, le=10)] = Field(
        default=2, description="How many more attempts follow one that was not confirmed."
    )
    verify: Literal["status", "agent"] = Field(
        default="status",
        description="Who confirms. `status`: the agent, asked again afterwards, must say that the"
        " host is off. `agent`: that it says it switched the host off is enough; for agents that"
        " cannot tell the status.",
    )
    delay: Annotated[Seconds, seconds_between("0s", "5m")] = Field(
        default=as_written("15s"),
        description="Without a witness: how long the secondary waits before it has its silent"
        " primary switched off. A primary does not wait, so when only the link is cut it goes on."
        " Longer than a fencing takes, or they switch each other off.",
    )

    @property
    def deadline_s(self) -> float:
        """How long fencing may take as a whole, in seconds."""
        return self.timeout * (1 + self.retries)
