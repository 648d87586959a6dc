"""docs/troubleshooting.md knows every message, and no other."""

import ast
import re
import resource
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from coloha.core.wire import Reject
from coloha.qemu.versions import RULES
from lab.assets import load_assets
from lab.namespace import CHECKOUT
from tests.docs import messages
from tests.docs.pages import DOCS, rows, section

PAGE = DOCS / "troubleshooting.md"
APART = ("Events", "What `coloha status` waits for", "QEMU's own words")
OWN = re.compile(r"`([^`]+)`")


def cells(heading: str) -> set[str]:
    """What is in backquotes in the first cells of a section's tables."""
    return {text for row in rows(section(PAGE, heading)) for text in OWN.findall(row[0])}


def headings() -> list[str]:
    return re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)


def errors() -> set[str]:
    reasons = {reason.value for reason in Reject} | {"stranger"}
    found = [cells(heading) for heading in headings() if heading not in APART]
    return set().union(*found) - reasons


def test_every_kind_of_event_is_explained_and_no_other() -> None:
    assert cells("Events") == messages.kinds().keys(), "correct the table of events"


def test_kinds_are_found_in_every_layer() -> None:
    told_by = set().union(*messages.kinds().values())
    assert {"core/primary.py", "runtime/pair.py", "runtime/watchman.py"} <= told_by
    assert {"runtime/daemon.py", "runtime/recorder.py"} <= told_by


def test_transcripts_tell_no_kind_that_is_not_found() -> None:
    files = (CHECKOUT / "tests" / "core" / "transcripts").iterdir()
    text = "".join(path.read_text() for path in files)
    told = set(re.findall(r"^tell \w+ ([a-z-]+):", text, re.MULTILINE))
    assert told
    assert told <= messages.kinds().keys()


@pytest.mark.parametrize(
    "told",
    [
        'c.tell("new-kind", "text")',
        'kind = "old" if c else "new-kind"\n  c.tell(kind, "text")',
        'self._say("new-kind", "text", Severity.ERROR)',
        'self._tell(self._pair, "new-kind", Severity.INFO, text, 0)',
        'self._occurrences.add("-", "new-kind", Severity.INFO, "text", 0)',
    ],
)
def test_a_new_kind_is_found(told: str) -> None:
    tree = ast.parse(f"def f(self, c):\n  {told}\n")
    assert "new-kind" in set(messages.kinds_in(tree))


def test_a_kind_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(messages.UnreadableError):
        list(messages.kinds_in(ast.parse("def f(c):\n  c.tell(made(), 'text')\n")))


def test_what_is_waited_for_is_explained_and_no_other() -> None:
    said = cells("What `coloha status` waits for") - {"waits for"}
    assert said == messages.waits(), "correct the table of what is waited for"


def test_every_error_is_explained() -> None:
    known = [messages.pattern(message) for message in errors()]
    missing = {
        f"{place}: {text}"
        for text, place in messages.templates().items()
        if not any(each.fullmatch(text) for each in known)
    }
    assert not missing, "not in docs/troubleshooting.md"


def test_every_error_that_is_explained_exists() -> None:
    texts = messages.strings()
    texts |= {f"QEMU ... {rule.problem}: {rule.advice}".replace("`", "") for rule in RULES}
    unknown = {
        message for message in errors() if not any(messages.fits(message, text) for text in texts)
    }
    assert not unknown, "nothing in coloha says so"


def test_no_message_of_the_page_is_all_gaps() -> None:
    assert not {text for text in errors() if not re.search(r"[a-z]{3}", text.lower())}


def test_every_reason_to_drop_a_heartbeat_is_explained() -> None:
    reasons = {reason.value for reason in Reject} | {"stranger"}
    assert reasons <= cells("Between the hosts")


def say(*words: str | Path, **limits: int) -> str:
    """What QEMU complains about."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    argv: Sequence[str | Path] = [
        *(load_assets().qemu, "-nodefaults", "-display", "none", "-S"),
        *words,
    ]
    ended = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit
    )
    assert ended.returncode != 0
    return ended.stderr


def complaints(folder: Path) -> Iterator[tuple[str, str]]:
    """Messages of the page, and how QEMU is brought to say each."""
    image, drive = folder / "image", "driver=file,node-name=a,filename="
    image.write_bytes(bytes(1 << 20))
    yield "unsupported machine type", say("-machine", "none-such")
    yield "unable to find CPU model", say("-cpu", "none-such")
    yield "Cannot allocate memory", say("-m", "60G", RLIMIT_AS=2 << 30)
    yield "Could not open '...'", say("-blockdev", f"{drive}{folder / 'missing'}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"tcp:127.0.0.1:{taken.getsockname()[1]},server=on,wait=off"
        yield "Address already in use", say("-qmp", where)
    holds = ("-blockdev", f"{drive}{image}", "-device", "virtio-blk-pci,drive=a")
    quiet = ("-nodefaults", "-display", "none", "-S", "-qmp", "stdio")
    first = subprocess.Popen(
        [str(load_assets().qemu), *quiet, *holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout is not None
        assert b"QMP" in first.stdout.readline()
        yield 'Failed to get "write" lock', say(*holds)
    finally:
        first.kill()
        first.communicate()


def test_qemu_says_what_the_page_says(tmp_path: Path) -> None:
    known = cells("QEMU's own words")
    for message, said in complaints(tmp_path):
        assert message in known
        assert messages.pattern(message).search(said), f"{message}: QEMU says {said!r}"
