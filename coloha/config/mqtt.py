"""The MQTT broker that is told what happens: what a host file says of it."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from coloha.config.section import Section, beside
from coloha.config.units import Kind, Seconds, as_written, seconds_between, shown
from coloha.config.values import Count, ExistingFile, PasswordFile, PrivateFile, User

PORTS = {"mqtt": 1883, "mqtts": 8883}
"""Where brokers listen, without and with TLS."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"({_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])"
_BROKER = rf"mqtts?://{_HOST}(:[0-9]{{1,5}})?"
_PARTS = rf"(?P<scheme>mqtts?)://(?P<host>{_HOST})(:(?P<port>[0-9]{{1,5}}))?"
_TOPIC = r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*"
_LIKE = "write it like mqtts://broker.example.org or mqtt://10.9.0.9:1883"


def _broker(text: str) -> str:
    """Return the URL with its port."""
    if "@" in text:
        raise ValueError(
            "a secret does not belong here: write the user into mqtt.username and the password into"
            " mqtt.password_file"
        )
    parts = re.fullmatch(_PARTS, text)
    if parts is None:
        raise ValueError(f"{shown(text)} is not a URL of a broker: {_LIKE}")
    host, port = parts["host"], int(parts["port"] or PORTS[parts["scheme"]])
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            raise ValueError(f"{shown(host)} is no IP address: {_LIKE}") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} does not exist: write one from 1 to 65535")
    return f"{parts['scheme']}://{host}:{port}"


def _topic(text: str) -> str:
    if len(text) > 128 or re.fullmatch(_TOPIC, text) is None:
        raise ValueError(
            f"{shown(text)} cannot begin a topic: use up to 128 of letters, digits, '.', '_', '-',"
            " and '/' between them"
        )
    return text


def _client_id(text: str) -> str:
    if not (0 < len(text) <= 64 and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(f"{shown(text)} is not a client ID: write 1 to 64 characters, no space")
    return text


BrokerUrl = Annotated[
    str,
    AfterValidator(_broker),
    Kind("URL"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^{_BROKER}$",
            "examples": ["mqtts://broker.example.org", "mqtt://10.9.0.9:1883"],
        }
    ),
]
"""A broker: scheme, host, port."""

Topic = Annotated[
    str,
    AfterValidator(_topic),
    Kind("text"),
    WithJsonSchema({"type": "string", "pattern": f"^{_TOPIC}$"}),
]
"""What topics begin with."""

ClientId = Annotated[str, AfterValidator(_client_id), Kind("text")]
"""What a broker knows a connection by."""


class Mqtt(Section):
    """An MQTT broker (3.1.1) that is told what happens on this node; see docs/mqtt.md.

    Nothing waits for it: neither a checkpoint nor a failover.
    """

    broker: BrokerUrl = Field(
        description="The broker: `mqtts://` with TLS (port 8883 unless another is given), `mqtt://`"
        " without (1883). A name will do here: only what is told waits for DNS."
    )
    topic: Topic = Field(
        default="coloha",
        description="What every topic begins with; the node's name follows. Change it where several"
        " coloha installations share a broker.",
    )
    client_id: ClientId | None = Field(
        default=None,
        description="What the broker knows this node by; by default `coloha-` and the node's name."
        " A broker ends the connection of a client when another comes with the same.",
    )
    username: User | None = Field(
        default=None,
        description="User of the broker, who may publish below `topic`. Without it the broker must"
        " accept anybody, or whoever shows the right certificate.",
    )
    password_file: PasswordFile | None = Field(
        default=None,
        description="File with the password of `username`, readable by its owner only. It is read"
        " again for each connection. Relative paths start at this file's folder.",
    )
    ca_file: ExistingFile | None = Field(
        default=None,
        description="Certificates, in PEM, of the authorities that may sign the broker's. Without"
        " it those are this host's. For `mqtts://` only. Relative paths start at this file's"
        " folder.",
    )
    cert_file: ExistingFile | None = Field(
        default=None,
        description="Certificate, in PEM, that this node shows to the broker. For `mqtts://` only."
        " Relative paths start at this file's folder.",
    )
    key_file: PrivateFile | None = Field(
        default=None,
        description="Key of `cert_file`, in PEM, unencrypted, readable by its owner only. Relative"
        " paths start at this file's folder.",
    )
    keepalive: Annotated[Seconds, seconds_between("5s", "10m")] = Field(
        default=as_written("15s"),
        description="How often the broker is asked whether it is there while there is nothing to"
        " tell. After one and a half of these it tells the others that this node is offline.",
    )
    queue: Annotated[Count, Field(ge=10, le=100_000)] = Field(
        default=1000,
        description="Events that wait at most for a broker that does not answer. Later ones are"
        " dropped and counted; `coloha events` has them.",
    )

    @property
    def host(self) -> str:
        """Name or address of the broker's host."""
        return urlsplit(self.broker).hostname or ""

    @property
    def port(self) -> int:
        """Its TCP port."""
        return urlsplit(self.broker).port or 0

    @property
    def tls(self) -> bool:
        """Whether it is spoken to with TLS."""
        return self.broker.startswith("mqtts:")

    @field_validator("password_file")
    @classmethod
    def _of_a_user(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        return beside(file, info, "username", "password")

    @field_validator("ca_file", "cert_file")
    @classmethod
    def _for_tls(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file is not None and info.data.get("broker", "").startswith("mqtt:"):
            raise ValueError("means nothing without TLS: write mqtts:// in broker, or remove it")
        return file

    @field_validator("key_file")
    @classmethod
    def _of_a_certificate(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        return beside(file, info, "cert_file", "key")
