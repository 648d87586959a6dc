"""The kinds of witness that a pair file can name."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from coloha.config.section import Section, beside
from coloha.config.units import Seconds, as_written, seconds_between
from coloha.config.values import (
    AbsolutePath,
    Endpoint,
    ExistingFile,
    KeyPrefix,
    PasswordFile,
    PrivateFile,
    User,
)

_WAIT = seconds_between("100ms", "30s")


class FileWitness(Section):
    """A witness that is a folder which both nodes reach, on storage that neither of them owns."""

    type: Literal["file"] = Field(
        description="Kind of witness: `file` keeps the records in files in a shared folder."
    )
    directory: AbsolutePath = Field(
        description="Folder of the records, an absolute path. It must be the same storage for"
        " both nodes; it may be mounted after coloha starts. The path may differ by host."
    )
    timeout: Annotated[Seconds, _WAIT] = Field(
        default=as_written("1s"),
        description="How long one access may take before the witness counts as unreachable. Raise"
        " it for slow storage: a failover waits this long at worst.",
    )

    @property
    def place(self) -> str:
        """Where the records are, for messages."""
        return str(self.directory)

    @property
    def agreed(self) -> str:
        """What both nodes must say alike."""
        return self.type


def _apart(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    for index, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:index]:
            raise ValueError(f"{endpoint} is there twice: list each member once")
    if len({endpoint.startswith("https:") for endpoint in endpoints}) > 1:
        raise ValueError("http and https are mixed: use https for all members, or for none")
    return endpoints


class EtcdWitness(Section):
    """A witness that is an etcd cluster, version 3.4 or newer: one key per pair.

    Three members on three machines survive the loss of one; two of these may be the pair's hosts.
    """

    type: Literal["etcd"] = Field(
        description="Kind of witness: `etcd` keeps the records in an etcd cluster."
    )
    endpoints: Annotated[
        tuple[Endpoint, ...], Field(min_length=1, max_length=9), AfterValidator(_apart)
    ] = Field(
        description="Client URLs of the members of one etcd cluster, such as"
        " `http://10.9.0.3:2379`. They are asked in turn, so list all. The two nodes may list them"
        " differently."
    )
    prefix: KeyPrefix = Field(
        default="/coloha/",
        description="What the keys begin with; the pair's name follows. Change it where several"
        " coloha installations share one etcd. The same on both nodes.",
    )
    timeout: Annotated[Seconds, _WAIT] = Field(
        default=as_written("3s"),
        description="How long one access may take, all members tried, before the witness counts as"
        " unreachable. Keep it above the time in which etcd elects a leader, by default 2s at"
        " worst. A failover waits this long at worst.",
    )
    user: User | None = Field(
        default=None,
        description="User of etcd, with read and write permission for the prefix. Without it etcd"
        " must have authentication switched off.",
    )
    password_file: PasswordFile | None = Field(
        default=None,
        description="File with the password of `user`, readable by its owner only. Relative paths"
        " start at this file's folder.",
    )
    ca_file: ExistingFile | None = Field(
        default=None,
        description="Certificates, in PEM, of the authorities that may sign the members'"
        " certificates. Without it those are this host's. For https only. Relative paths start at"
        " this file's folder.",
    )
    cert_file: ExistingFile | None = Field(
        default=None,
        description="Certificate, in PEM, that this node shows to etcd. For https only. Relative"
        " paths start at this file's folder.",
    )
    key_file: PrivateFile | None = Field(
        default=None,
        description="Key of `cert_file`, in PEM, unencrypted, readable by its owner only. Relative"
        " paths start at this file's folder.",
    )

    @property
    def place(self) -> str:
        """Where the records are, for messages."""
        return f"etcd at {', '.join(self.endpoints)}"

    @property
    def agreed(self) -> str:
        """What both nodes must say alike.

        The endpoints are not in it: each host may reach the members its own way, or list its own
        first. That both ask the same cluster is seen from the records.
        """
        return f"{self.type} {self.prefix}"

    @field_validator("password_file")
    @classmethod
    def _of_a_user(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        return beside(file, info, "user", "password")

    @field_validator("ca_file", "cert_file")
    @classmethod
    def _for_tls(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        endpoints = info.data.get("endpoints", ())
        if file is not None and any(endpoint.startswith("http:") for endpoint in endpoints):
            raise ValueError("means nothing with http: write the endpoints with https or remove it")
        return file

    @field_validator("key_file")
    @classmethod
    def _of_a_certificate(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        return beside(file, info, "cert_file", "key")


class NoWitness(Section):
    """No witness: two hosts alone. Each keeps its copy of the record, and none can tell a dead host
    from a cut link: what then happens has to be chosen.
    """

    type: Literal["none"] = Field(description="Kind of witness: `none` is none at all.")
    on_silence: Literal["hold", "primary"] = Field(
        default="hold",
        description="What happens to a protected pair whose nodes do not hear each other. `hold`:"
        " the output waits until they do, until the silent host is known to be switched off (see"
        " `fencing`), or until an operator decides. `primary`: the primary goes on alone; its"
        " secondary never takes over from silence, so the death of the primary's host is not"
        " survived without an operator.",
    )

    @property
    def timeout(self) -> float:
        """Nobody is asked, in seconds."""
        return 0.0

    @property
    def place(self) -> str:
        """Where the records are, for messages."""
        return "of none"

    @property
    def agreed(self) -> str:
        """What both nodes must say alike."""
        return f"{self.type} {self.on_silence}"


Witness = Annotated[FileWitness | EtcdWitness | NoWitness, Field(discriminator="type")]
"""Any kind of witness."""
