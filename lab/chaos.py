"""Chaos: random faults at random instants, while a client and two sniffers check what clients hear.

    make chaos [ARGS="--seed 1 --faults 50 --kinds link host-kill two"]

Exit status 0 only if the VM was protected again after each fault, no answer was wrong and no frame
was of a second voice. docs/chaos.md says what is done and what is checked.
"""

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.assets import load_assets
from lab.cluster import Cluster
from lab.faults import DEFAULT, Blow, Kind, plan
from lab.namespace import LabError
from lab.privileges import become_privileged
from lab.strike import GUEST_WORDS, TIMING, Result, Say, Striker
from lab.topology import Topology


@dataclass(slots=True)
class Outcome:
    """What a whole run did."""

    results: list[Result] = field(default_factory=list)
    problem: str | None = None
    """Why the run ended early, or what is wrong that no single blow shows."""

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return self.problem is None and all(result.good for result in self.results)


def run(
    seed: int,
    blows: Sequence[Blow],
    *,
    say: Say = print,
    program: list[str] | None = None,
    directory: Path | None = None,
) -> Outcome:
    """Let all blows happen to a fresh pair, up to the first that breaks a promise.

    `program` is what Python runs as the daemon. State stays in `directory` (else in a temporary
    folder) if something went wrong.
    """
    outcome = Outcome()
    folder = directory or Path(tempfile.mkdtemp(prefix="coloha-chaos-"))
    with Topology(directory=folder) as topology:
        cluster = Cluster(topology, load_assets(), TIMING, guest_words=GUEST_WORDS)
        if program is not None:
            cluster.program = program
        striker = Striker(topology, cluster, say)
        try:
            _play(striker, blows, outcome)
        except (LabError, OSError, subprocess.SubprocessError) as error:
            outcome.problem = str(error).partition("\n")[0]  # the rest is told below
        if not outcome.good:
            _explain(seed, blows, outcome, cluster, striker, say)
    if outcome.good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"all of its state is in {folder}")
    return outcome


def _play(striker: Striker, blows: Sequence[Blow], outcome: Outcome) -> None:
    striker.bring_up()
    for number, blow in enumerate(blows, 1):
        striker.tell(f"{number:3}. {blow}")
        result = striker.strike(blow)
        outcome.results.append(result)
        striker.tell(f"     {result}")
        if not result.good:
            return
    outcome.problem = striker.finish()


def _explain(
    seed: int,
    blows: Sequence[Blow],
    outcome: Outcome,
    cluster: Cluster,
    striker: Striker,
    say: Say,
) -> None:
    """Say all that helps to understand what went wrong."""
    say(f"\nTHIS WENT WRONG: {outcome.problem or 'a promise was broken'}")
    say(f"seed {seed}, the faults up to here:")
    for number, blow in enumerate(blows[: len(outcome.results) + 1], 1):
        say(f"  {number:3}. {blow}")
    say(striker.listener.account())
    for name in cluster.topology.hosts:
        say(f"--- events of {name}")
        for event in cluster.events(name)[-60:]:
            place = f"{event['monotonic_s']:.3f} generation {event['generation']}"
            say(f"{event['at']} {place} {event['kind']}: {event['text']}")
    say(cluster.report())


def table(results: Sequence[Result]) -> Table:
    """Sum the results up by kind."""
    made = Table(title="By kind of fault", title_justify="left")
    for heading in (
        *("fault", "number", "failovers", "cold boots", "wrong answers", "second voice"),
        *("stale", "longest client gap", "protected again: median", "longest"),
    ):
        made.add_column(heading, justify="left" if heading == "fault" else "right")
    kinds = [kind for kind in Kind if any(result.blow.kind is kind for result in results)]
    for kind in kinds:
        made.add_row(str(kind), *_row([each for each in results if each.blow.kind is kind]))
    if results:
        made.add_section()
        made.add_row("all", *_row(results))
    return made


def _row(results: Sequence[Result]) -> list[str]:
    times_s = [result.protected_s for result in results]
    return [
        str(len(results)),
        *(
            str(sum(getattr(result, name) for result in results))
            for name in ("failovers", "boots", "wrong", "second", "stale")
        ),
        f"{max(result.gap_ms for result in results) / 1000:.1f} s",
        f"{statistics.median(times_s):.1f} s",
        f"{max(times_s):.1f} s",
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, help="repeats a run's faults (random)")
    parser.add_argument("--faults", type=int, default=20, help="how many; a pair is one (20)")
    parser.add_argument(
        *("--kinds", "-k"),
        nargs="+",
        type=Kind,
        default=list(DEFAULT),
        metavar="KIND",
        help="of: " + ", ".join(Kind) + " (all but both-copies)",
    )
    return parser.parse_args()


def main() -> int:
    """Parse the command line, draw a plan, let it happen."""
    options = _parse()
    become_privileged()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.faults} faults of: {', '.join(options.kinds)}", flush=True)
    began_s = time.monotonic()
    try:
        blows = plan(seed, options.faults, options.kinds)
        outcome = run(seed, blows, say=lambda text: print(text, flush=True))
    except (LabError, ValueError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    console = Console(width=max(Console().width, 150))
    console.print(table(outcome.results))
    count = sum(len(result.blow.faults) for result in outcome.results)
    end = "one voice, nothing forgotten, protected again each time" if outcome.good else "FAILED"
    print(f"seed {seed}: {count} faults in {time.monotonic() - began_s:.0f} s: {end}")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    raise SystemExit(main())
