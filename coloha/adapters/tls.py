"""TLS to a server that a section of the configuration names."""

import os
import ssl
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """A section with the files of a connection, all PEM."""

    @property
    def ca_file(self) -> Path | None:
        """Certificates of the authorities that count; None for this host's."""
        ...

    @property
    def cert_file(self) -> Path | None:
        """The certificate that this node shows."""
        ...

    @property
    def key_file(self) -> Path | None:
        """Its key."""
        ...


def named(section: Files) -> list[Path]:
    """Return the files that the section names."""
    return [file for file in (section.ca_file, section.cert_file, section.key_file) if file]


def context(section: Files) -> ssl.SSLContext:
    """Return what connections are made with, of what is in the files now.

    :raises OSError: if a file cannot be read, or is not what it should be.
    """
    made = ssl.create_default_context(cafile=section.ca_file)
    if section.cert_file is not None:
        # An encrypted key must not make OpenSSL ask at a terminal.
        made.load_cert_chain(section.cert_file, section.key_file, lambda: "")
    return made


def words(error: BaseException) -> str:
    """Return what the system says of an error, without the wrappings of Python; else its
    text, and its type if it has none.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).lower().replace("_", " ")
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
