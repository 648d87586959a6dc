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
from tests.core.test_world import QUICK
from tests.flight.recording import RecordedWorld, live, story_of, texts


def protected(seed: int = 3) -> tuple[RecordedWorld, str, str]:
    """A world in which the VM is protected; its primary and its secondary."""
    world = RecordedWorld(seed, **QUICK)
    world.run_until(world.protected, 20)
    world.run(0.5)
    primary = world.in_phase(Phase.PROTECTED).name
    return world, primary, world.in_phase(Phase.FOLLOW).name


def again(world: RecordedWorld) -> None:
    world.run(2.0)
    world.run_until(world.protected, 30)
    world.run(0.3)


def story(world: RecordedWorld, name: str, folder: Path) -> Story:
    return story_of(world.save(name, folder / name))


def only(story: Story) -> Incident:
    (incident,) = story.incidents
    return incident


def test_the_primarys_qemu_died(tmp_path: Path) -> None:
    world, alpha, beta = protected()
    killed_at = world.now
    world.kill_qemu(alpha)
    again(world)
    mine, theirs = story(world, alpha, tmp_path), story(world, beta, tmp_path)

    incident = only(mine)
    assert incident.failover
    assert (incident.primary, incident.winner, incident.won) == (True, beta, 2)
    text = incident.paragraph()
    assert f"the VM failed over from {alpha} to {beta}. Why: {alpha}'s QEMU died (killed)." in text
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
    assert incident.heard_at - incident.at < world.now - killed_at


def test_the_primarys_host_was_cut_off(tmp_path: Path) -> None:
    world, alpha, beta = protected()
    world.cut = {(alpha, beta), (beta, alpha)}
    world.witness_down.add(alpha)
    world.run(2.5)
    world.cut = set()
    world.witness_down = set()
    again(world)
    mine, theirs = only(story(world, alpha, tmp_path)), only(story(world, beta, tmp_path))
    assert mine.failover
    assert theirs.failover
    for incident, other in ((mine, beta), (theirs, alpha)):
        assert f"Why: nothing was heard of {other} for 5" in incident.paragraph()
        assert "(a heartbeat is due every 100 ms; 500 ms count as silence)" in incident.cause
    text = mine.paragraph()
    assert f"Then the witness did not answer {alpha}: down. {beta} has generation 2" in text
    assert f"{alpha}'s QEMU was killed, and dead at" in text
    assert "no client heard it" in text
    assert mine.won_at is not None
    assert mine.dead_at is not None
    assert mine.won_at - mine.at > 1.0  # it learned of it only when it was back
    told = texts(story(world, alpha, tmp_path))
    assert f"{alpha} holds the output until it is decided who goes on" in told
    assert f"the witness did not answer {alpha}: down" in told
    assert "the witness answers again" in told
    assert any(text.startswith(f"{beta} is heard again after ") for text in told)
    text = theirs.paragraph()
    assert re.search(rf"5\d\d ms after {alpha} was last heard", text)


def test_the_primarys_qemu_hung(tmp_path: Path) -> None:
    world, alpha, _ = protected()
    world.freeze_qemu(alpha)
    again(world)
    incident = only(story(world, alpha, tmp_path))
    assert incident.failover
    text = incident.paragraph()
    assert f"Why: no commit for 1 s. Then {alpha}'s QEMU did not answer when asked for" in text
    assert f"{alpha}'s QEMU is dead, killed by coloha" in text


def test_the_secondarys_qemu_died(tmp_path: Path) -> None:
    world, alpha, beta = protected()
    world.kill_qemu(beta)
    again(world)
    mine, theirs = only(story(world, alpha, tmp_path)), only(story(world, beta, tmp_path))
    assert not mine.failover
    assert not theirs.failover
    text = mine.paragraph()
    assert f"{alpha} lost its secondary; the VM stayed on {alpha}: no failover." in text
    assert f"The witness gave generation 2 to {alpha}" in text
    assert "was held until then" in text
    assert f"the copy on {beta} fell out; the VM stayed on {alpha}" in theirs.paragraph()
    assert f"Why: {beta}'s QEMU died (killed)" in theirs.paragraph()


def test_a_silence_that_ends_in_time_is_no_failover(tmp_path: Path) -> None:
    world, alpha, beta = protected()
    world.cut = {(alpha, beta), (beta, alpha)}
    world.witness_down = {alpha, beta}
    world.run(0.8)
    world.cut = set()
    world.run(0.2)
    world.witness_down = set()
    again(world)
    for name in (alpha, beta):
        incident = only(story(world, name, tmp_path))
        assert not incident.failover
        assert "nothing was decided: no failover" in incident.paragraph()
        assert "Protected again at" in incident.paragraph()


def test_the_vm_alone_died(tmp_path: Path) -> None:
    world, alpha, beta = protected()
    world.kill_daemon(beta)
    world.kill_qemu(beta)
    world.run(1.5)
    world.kill_qemu(alpha)
    world.run(2.0)
    first, second = story(world, alpha, tmp_path).incidents
    assert f"Why: {alpha}'s QEMU left COLO" in first.paragraph()
    assert f"the VM was lost while it ran on {alpha} alone" in second.paragraph()
    assert f"the VM boots anew on {alpha}" in second.paragraph()
    assert f"the VM is not protected: {alpha} waits for {beta} to be heard" in second.paragraph()


def test_a_daemon_that_was_away(tmp_path: Path) -> None:
    world, alpha, _ = protected()
    world.kill_daemon(alpha)
    world.run(0.1)
    world.start_daemon(alpha)
    again(world)
    told = texts(story(world, alpha, tmp_path))
    assert sum("starts on" in text for text in told) == 2
    assert any(re.fullmatch(rf"{alpha} finds QEMU p-\w+ running", text) for text in told)
    assert f"{alpha} goes on with the epochs of the QEMU that it found" in told


def test_times_never_run_backwards_and_each_failover_is_told_by_both(tmp_path: Path) -> None:
    """In any history: what one node tells as a failover, the record of generations knows."""
    failovers = 0
    for seed in range(60):
        world = live(RecordedWorld, seed)
        for name in world.nodes:
            told = story(world, name, tmp_path)
            times = [moment.at for moment in told.moments]
            assert all(later >= earlier - 1e-3 for earlier, later in pairwise(times))
            assert told.last is not None
            assert told.last.phase in (Phase.PROTECTED, Phase.FOLLOW)
            for incident in told.incidents:
                text = incident.paragraph()
                assert text.endswith(".")
                assert "None" not in text
                if incident.failover:
                    failovers += 1
                    node = incident.peer if incident.primary else name
                    assert f"witness: protected({(incident.won or 0) - 1}, " in "\n".join(
                        line[10:] for line in world.history
                    )
                    assert any(
                        f"-> solo({incident.won}, {node}) by {node}" in line
                        for line in world.history
                    ), f"seed {seed}: {text}"
    assert failovers > 20


@pytest.mark.parametrize("phase", Phase)
def test_every_move_has_words(phase: Phase) -> None:
    settings = Settings("vm", "here", "there", first=True, incarnation=1)
    for after in TRANSITIONS[phase]:
        text = words.move(phase, after, settings)
        assert "{" not in text
        assert not text.startswith("here went from")


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
