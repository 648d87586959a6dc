"""Records in the journal: their fields, and what happens when nobody reads them."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloha.adapters.journal import JournalHandler, message_id, packed


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        journal.settimeout(5)
        yield journal


@pytest.fixture
def log(tmp_path: Path, journal: socket.socket) -> Iterator[logging.Logger]:
    log, handler = logging.getLogger("test.journal"), JournalHandler(tmp_path / "socket")
    log.addHandler(handler)
    yield log
    log.removeHandler(handler)
    handler.close()


def test_a_record_with_fields(log: logging.Logger, journal: socket.socket) -> None:
    fields = {"COLOHA_PAIR": "web", "COLOHA_KIND": "protected"}
    log.warning("%s: gone", "web", extra={"fields": fields})
    lines = journal.recv(65536).decode().splitlines()
    assert lines[:3] == ["MESSAGE=web: gone", "PRIORITY=4", "SYSLOG_IDENTIFIER=coloha"]
    assert "COLOHA_PAIR=web" in lines
    assert f"MESSAGE_ID={message_id('protected')}" in lines
    log.warning("no event")
    assert "MESSAGE_ID" not in journal.recv(65536).decode()


def test_a_value_of_several_lines_keeps_them() -> None:
    """systemd, docs/JOURNAL_NATIVE_PROTOCOL.md: name, newline, 64-bit length, value, newline."""
    assert packed({"A": "x\ny"}) == b"A\n\x03\0\0\0\0\0\0\0x\ny\n"
    assert packed({"A": "x"}) == b"A=x\n"


def test_a_journal_that_does_not_read_is_not_waited_for(
    log: logging.Logger, journal: socket.socket
) -> None:
    for _ in range(5000):
        log.error("x" * 10000)
    assert journal.recv(65536).startswith(b"MESSAGE=x")


def test_a_journal_that_is_gone_does_no_harm(log: logging.Logger, journal: socket.socket) -> None:
    journal.close()
    log.error("into the void")


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        JournalHandler(tmp_path / "none")


def test_a_kind_has_one_id() -> None:
    assert message_id("protected") == message_id("protected") != message_id("promoted")
    assert len(message_id("protected")) == 32
