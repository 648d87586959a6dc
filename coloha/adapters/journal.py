"""The journal of systemd, by its own protocol: each record with fields to search for.

A datagram per record (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md). It is never waited for: a journal
that does not read loses records, not epochs.
"""

import logging
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
BUFFER_BYTES = 8 << 20

_EVENTS = uuid.UUID("0f4c5d31-9c0b-4c86-8f0d-2f5f4fdd64c5")
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def message_id(kind: str) -> str:
    """Return the MESSAGE_ID of a kind of event."""
    return uuid.uuid5(_EVENTS, kind).hex


class JournalHandler(logging.Handler):
    """Sends records to the journal. `fields` of a record's `extra` become fields of the entry."""

    def __init__(self, address: Path = SOCKET) -> None:
        """:raises OSError: if there is no journal."""
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            self._socket.connect(str(address))
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or lose it."""
        try:
            fields = {
                "MESSAGE": self.format(record),
                "PRIORITY": str(_priority(record.levelno)),
                "SYSLOG_IDENTIFIER": "coloha",
                "CODE_FILE": record.pathname,
                "CODE_LINE": str(record.lineno),
                **getattr(record, "fields", {}),
            }
            if "COLOHA_KIND" in fields:
                fields["MESSAGE_ID"] = message_id(fields["COLOHA_KIND"])
            self._socket.send(packed(fields))
        except OSError:
            pass  # it does not read, or is gone
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Send no more."""
        self._socket.close()
        super().close()


def _priority(level: int) -> int:
    """Return the priority of syslog for a level of logging."""
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)


def packed(fields: Mapping[str, str]) -> bytes:
    """Return an entry as the journal reads it: a value of several lines comes with its length."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)
