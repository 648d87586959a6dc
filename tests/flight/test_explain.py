"""Why it failed over: the story of a record holds the facts, whatever happened."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from coloha.core.context import Settings
from coloha.core.phases import TRANSITIONS, Phase
from coloha.flight import words
from coloha.flight.explain import Story
from coloha.flight.incident import Incident
from tests.flight.recording import recorded, story_of, texts
from tests.flight.scenes import live, scene


def only(story: Story) -> Incident:
    (incident,) = story.incidents
    return incident


def test_the_primarys_qemu_died(tmp_path: Path) -> None:
    with scene() as played:
        alpha, beta = played.primary, played.secondary
        played.kill_qemu(alpha)
        played.settle()
    mine, theirs = played.story(alpha, tmp_path), played.story(beta, tmp_path)

    incident = only(mine)
    assert incident.failover
    assert (incident.primary, incident.winner, incident.won) == (True, beta, 2)
    text = incident.paragraph()
    assert f"the VM failed over from {alpha} to {beta}. Why: {alpha}'s QEMU died (killed)" in text
    assert f"{beta} has generation 2" in text
    assert "was held, and no client heard it" in text
    assert "Protected again at" in text

    incident = only(theirs)
    assert incident.failover
    assert (incident.primary, incident.winner, incident.won) == (False, beta, 2)
    text = incident.paragraph()
    assert f"the VM failed over from {alpha} to {beta}. Why: {alpha} said that its copy" in text
    assert f"The witness gave generation 2 to {beta}" in text
    assert "became the VM: clients hear it since" in text
    assert incident.heard_at is not None
    assert incident.at <= (incident.won_at or 0) <= incident.heard_at
    assert incident.heard_at - incident.at < 0.5


def test_without_a_witness_nobody_gives_a_generation(tmp_path: Path) -> None:
    with scene(arbiter="hold") as played:
        alpha, beta = played.primary, played.secondary
        played.kill_qemu(alpha)
        played.settle()
    text = only(played.story(beta, tmp_path)).paragraph()
    assert f"the VM failed over from {alpha} to {beta}" in text
    assert f"{beta} took generation 2 at" in text
    assert "witness" not in text


def test_the_primarys_host_was_cut_off(tmp_path: Path) -> None:
    with scene() as played:
        alpha, beta = played.primary, played.secondary
        played.cut(witness_of={alpha})
        played.run(2.5)
        played.mend()
        played.settle()
    mine, theirs = only(played.story(alpha, tmp_path)), only(played.story(beta, tmp_path))
    assert mine.failover
    assert theirs.failover
    for incident, other in ((mine, beta), (theirs, alpha)):
        assert f"Why: nothing was heard of {other} for 5" in incident.paragraph()
        assert "(a heartbeat is due every 100 ms; 500 ms count as silence)" in incident.cause
    text = mine.paragraph()
    assert f"Then the witness did not answer {alpha}: " in text
    assert f". {beta} has generation 2" in text
    assert f"{alpha}'s QEMU was killed, and dead at" in text
    assert "no client heard it" in text
    assert mine.won_at is not None
    assert mine.dead_at is not None
    assert mine.won_at - mine.at > 1.0  # it learned of it only when it was back
    told = texts(played.story(alpha, tmp_path))
    assert f"{alpha} holds the output until it is decided who goes on" in told
    assert any(text.startswith(f"the witness did not answer {alpha}: ") for text in told)
    assert "the witness answers again" in told
    assert any(text.startswith(f"{beta} is heard again after ") for text in told)
    text = theirs.paragraph()
    assert re.search(rf"5\d\d ms after {alpha} was last heard", text)


def test_the_primarys_qemu_hung(tmp_path: Path) -> None:
    with scene() as played:
        alpha, _ = played.primary, played.secondary
        played.freeze_qemu(alpha)
        played.settle()
    incident = only(played.story(alpha, tmp_path))
    assert incident.failover
    text = incident.paragraph()
    assert (
        f"Why: {alpha}'s QEMU did not answer when asked for a sign of life (first sign: no" in text
    )
    assert f"{alpha}'s QEMU is dead." in text


def test_the_secondarys_qemu_died(tmp_path: Path) -> None:
    with scene() as played:
        alpha, beta = played.primary, played.secondary
        played.kill_qemu(beta)
        played.settle()
    mine, theirs = only(played.story(alpha, tmp_path)), only(played.story(beta, tmp_path))
    assert not mine.failover
    assert not theirs.failover
    text = mine.paragraph()
    assert f"{alpha} lost its secondary; the VM stayed on {alpha}: no failover." in text
    assert f"The witness gave generation 2 to {alpha}" in text
    assert "was held until then" in text
    assert f"the copy on {beta} fell out; the VM stayed on {alpha}" in theirs.paragraph()
    assert f"Why: {beta}'s QEMU died (killed)" in theirs.paragraph()


def test_a_silence_that_ends_in_time_is_no_failover(tmp_path: Path) -> None:
    with scene() as played:
        alpha, beta = played.primary, played.secondary
        played.cut(witness_of={alpha, beta})
        played.run(0.8)
        played.mend(witness=False)
        played.run(0.2)
        played.mend()
        played.settle()
    for name in (alpha, beta):
        incident = only(played.story(name, tmp_path))
        assert not incident.failover
        assert "nothing was decided: no failover" in incident.paragraph()
        assert "Protected again at" in incident.paragraph()


def test_the_vm_alone_died(tmp_path: Path) -> None:
    with scene() as played:
        alpha, beta = played.primary, played.secondary
        played.kill_daemon(beta)
        played.kill_qemu(beta)
        played.run(1.5)
        played.kill_qemu(alpha)
        played.run(2.0)
    first, second = played.story(alpha, tmp_path).incidents
    assert f"Why: {alpha}'s QEMU left COLO" in first.paragraph()
    assert f"the VM was lost while it ran on {alpha} alone" in second.paragraph()
    assert f"the VM boots anew on {alpha}" in second.paragraph()
    assert f"the VM is not protected: {alpha} waits for {beta} to be heard" in second.paragraph()


def test_a_daemon_that_was_away(tmp_path: Path) -> None:
    with scene() as played:
        alpha, _ = played.primary, played.secondary
        played.kill_daemon(alpha)
        played.run(0.1)
        played.start_daemon(alpha)
        played.settle()
    told = texts(played.story(alpha, tmp_path))
    assert sum("starts on" in text for text in told) == 2
    assert any(re.fullmatch(rf"{alpha} finds QEMU p-\w+ running", text) for text in told)
    assert f"{alpha} goes on with the epochs of the QEMU that it found" in told


def test_an_incident_that_a_restart_cuts_short(tmp_path: Path) -> None:
    with scene() as played:
        alpha, beta = played.primary, played.secondary
        played.kill_daemon(beta)
        played.kill_qemu(beta)
        played.run(1.5)
        played.kill_daemon(alpha)
        played.start_daemon(alpha)
        played.start_daemon(beta)
        played.settle()
    incident = only(played.story(alpha, tmp_path))
    assert incident.paragraph().endswith(
        "What follows is another life of coloha, or not in the record."
    )


def test_in_any_history_the_story_agrees_with_the_witness(tmp_path: Path) -> None:
    failovers = 0
    for seed in range(150):
        with recorded() as tapes:
            swaps = "\n".join(live(seed))
        for name, tape in tapes.items():
            told = story_of(tape.save(tmp_path / name))
            assert all(one.at <= other.at + 1e-3 for one, other in pairwise(told.moments))
            assert told.last is not None
            assert told.last.phase in (Phase.ARM, Phase.PROTECTED, Phase.FOLLOW)
            for incident in told.incidents:
                text = incident.paragraph()
                assert text.endswith(".")
                assert "None" not in text
                if incident.failover:
                    failovers += 1
                    winner = incident.peer if incident.primary else name
                    assert incident.winner == winner
                    assert f"-> solo({incident.won}, {winner}) by {winner}" in swaps, f"seed {seed}"
    assert failovers > 20


@pytest.mark.parametrize("phase", Phase)
def test_every_move_has_words(phase: Phase) -> None:
    settings = Settings("vm", "here", "there", first=True, incarnation=1)
    for after in TRANSITIONS[phase]:
        text = words.move(phase, after, settings)
        assert "{" not in text
        assert not text.startswith("here went from"), "give it words in coloha/flight/words.py"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.0, "0.0 ms"), (-1, "0.0 ms"), (0.0042, "4.2 ms"), (0.0123, "12 ms")),
        *((0.9996, "1.0 s"), (59.96, "60.0 s"), (150, "2 min")),
    ],
)
def test_lengths(seconds: float, text: str) -> None:
    assert words.length(seconds) == text


def test_clock() -> None:
    assert words.clock(1793502727.25) == "03:12:07.250"
    assert words.clock(1793502727.0) == "03:12:07.000"
    assert words.day(1793502727.25) == "2026-11-01"
