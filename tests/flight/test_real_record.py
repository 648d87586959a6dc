"""The record of a real run: two failovers on real QEMU, as both hosts recorded them.

First the QEMU of alpha, the primary, was killed; then the host of beta, the new primary, was cut
off for three seconds. `make record` (lab/flight.py) makes the records anew. That is needed when the
core decides something differently or its state has another form: the tests here then fail, saying
where. Read what `coloha replay tests/flight/records/alpha.jsonl.gz` tells before you commit them.
"""

import functools
import re
import zlib
from pathlib import Path

import pytest

from coloha.core.phases import Phase
from coloha.flight.explain import explain
from coloha.flight.incident import Incident
from coloha.flight.record import Begins, inflated, read
from coloha.flight.replay import Began, DivergenceError, Replay, Step
from coloha.runtime import recorder
from tests.flight.recording import texts

RECORDS = Path(__file__).parent / "records"
DIED = re.compile(r"alpha's QEMU (died|closed its monitor)")
"""Whether the process or its monitor is seen to go first is a matter of luck."""
AGAIN = "the core changed: record it anew with `make record`"


@functools.cache
def items(node: str) -> list[Began | Step]:
    replay = Replay()
    try:
        found = list(replay.run(read(RECORDS / f"{node}.jsonl.gz")))
    except DivergenceError as error:
        pytest.fail(f"{AGAIN}\n{error}")
    assert not replay.torn
    return found


def incidents(node: str) -> list[Incident]:
    return explain(items(node)).incidents


@pytest.mark.parametrize("node", ["alpha", "beta"])
def test_it_decides_the_same_step_by_step(node: str) -> None:
    began, *steps = items(node)
    assert isinstance(began, Began)
    assert (began.header.node, began.header.pair) == (node, "vm")
    assert began.header.begins is Begins.START
    assert len(steps) > 300
    assert {step.after.phase for step in steps} >= {Phase.PROTECTED, Phase.FOLLOW, Phase.STANDBY}


def test_why_it_failed_over_first() -> None:
    """The killed side knows the reason, the other side its consequences."""
    alpha, beta = incidents("alpha")[0], incidents("beta")[0]
    for incident in (alpha, beta):
        assert incident.failover
        assert (incident.winner, incident.won) == ("beta", 2)
        assert "the VM failed over from alpha to beta. Why: " in incident.paragraph()
    assert DIED.search(alpha.paragraph())
    assert "beta has generation 2" in alpha.paragraph()
    assert "no client heard it. Protected again at" in alpha.paragraph()
    assert "Why: alpha said that its copy of the VM is lost" in beta.paragraph()
    assert "The witness gave generation 2 to beta" in beta.paragraph()
    assert "became the VM: clients hear it since" in beta.paragraph()
    assert abs(alpha.at - beta.at) < 1.0  # one kernel's clock: the hosts were namespaces


def test_why_it_failed_over_then() -> None:
    alpha, beta = incidents("alpha")[-1], incidents("beta")[-1]
    for incident, other in ((alpha, "beta"), (beta, "alpha")):
        assert incident.failover
        assert (incident.winner, incident.won) == ("alpha", 3)
        text = incident.paragraph()
        assert "the VM failed over from beta to alpha. Why: " in text
        assert f"nothing was heard of {other} for" in text
        assert "300 ms count as silence" in text
        assert "Protected again at" in text
    assert "The witness gave generation 3 to alpha" in alpha.paragraph()
    text = beta.paragraph()
    assert "Then the witness did not answer beta" in text
    assert "alpha has generation 3" in text
    assert "beta's QEMU was killed, and dead at" in text
    assert "was held, and no client heard it" in text


@pytest.mark.parametrize("node", ["alpha", "beta"])
def test_nothing_else_broke(node: str) -> None:
    assert [incident.failover for incident in incidents(node)] == [True, True]


def test_the_whole_course_is_told() -> None:
    told = texts(explain(items("alpha")))
    course: list[str | tuple[str, ...]] = [
        "coloha 0.",
        "alpha finds no QEMU running",
        "the VM belongs to alpha alone: alpha starts it",
        "the VM has booted on alpha",
        "beta is ready: the VM's memory is being copied to it",
        "the first copy is there",
        "the witness agrees: generation 1 is alpha's, and beta may take over",
        "protected: beta may take over",
        ("alpha's QEMU died", "alpha's QEMU closed its monitor"),
        "beta says that generation 2 is its own",
        ("beta has the VM; alpha is ready to follow it", "alpha has no QEMU and waits for an"),
        "alpha holds a copy of the VM and follows beta",
        "nothing was heard of beta",
        "alpha prepares to take over",
        "alpha asks the witness for generation 3, for alpha alone",
        "the witness agrees: generation 3 is alpha's alone",
        "the copy on alpha is the VM now: clients hear it",
        "beta is heard again after",
        "protected: beta may take over",
    ]
    rest = iter(told)
    for words in course:
        assert any(text.startswith(words) for text in rest), f"{words!r} is not in its place"


@pytest.mark.parametrize("node", ["alpha", "beta"])
def test_it_holds_nothing_of_the_machine_it_was_made_on(node: str) -> None:
    path = RECORDS / f"{node}.jsonl.gz"
    assert path.stat().st_size < 300_000
    text = b"".join(inflated(path))
    assert b"/tmp" not in text
    assert b"/home" not in text
    assert b"/work" not in text


def test_the_recorder_keeps_at_least_the_last_hour() -> None:
    """By what a second of the protected VM took, written as the recorder writes."""
    deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    lines = b"".join(inflated(RECORDS / "alpha.jsonl.gz")).splitlines(keepends=True)
    steps = [item for item in items("alpha") if isinstance(item, Step)]
    size, seconds, since = 0, 0.0, 0
    for place, step in enumerate(steps):
        if step.after.phase is not Phase.PROTECTED:
            since = place + 1
        elif step.at - steps[since].at >= recorder.WRITE_EVERY_S:
            batch = b"".join(lines[1 + since : 1 + place])
            size += len(deflate.compress(batch) + deflate.flush(zlib.Z_SYNC_FLUSH))
            seconds += step.at - steps[since].at
            since = place
    assert seconds > 1
    assert size / seconds * 3600 < recorder.FILE_BYTES * recorder.KEPT_FILES
