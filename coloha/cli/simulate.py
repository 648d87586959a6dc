"""`coloha simulate`: try to break the promises in simulated histories, or in all short ones."""

import argparse
import json
import secrets
import sys
from collections.abc import Iterator

from coloha.cli import exits
from coloha.sim import campaign
from coloha.sim.explore import Report, everywhere, explore
from coloha.sim.faults import KINDS, USUAL, PlanError, written
from coloha.sim.history import ARBITERS, Outcome, drawn_arbiter, live, plan
from coloha.sim.moves import Model
from coloha.sim.shrink import shrink

EXAMPLE = """examples:
  coloha simulate
  coloha simulate --seed 1 --histories 100000 --jobs 4
  coloha simulate --fault cut --fault qemu-crash
  coloha simulate --seed 1 --sweep 1
  coloha simulate --explore 4
  coloha simulate --seed 7 --plan '0.8 qemu-crash alpha 0 0; 2 heal'

faults:
""" + "".join(
    f"  {name:16} {kind.text}{'' if kind.usual else ' (only if named)'}\n"
    for name, kind in KINDS.items()
)

SEEDS = 1 << 40
_SHOWN = (
    *("failovers", "boots", "adopted", "overtaken", "recovered", "copy-bad", "hung"),
    *("epoch-kept", "late output", "switched off", "conceded"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--seed", type=int, help="the first seed (default: a random one)")
    parser.add_argument(
        "--histories", type=int, default=1000, metavar="N", help="how many (default: 1000)"
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=KINDS,
        metavar="NAME",
        help="only faults of this kind; may be given several times",
    )
    parser.add_argument(
        "--sweep",
        type=int,
        choices=(1, 2),
        help="one history, again and again, with one or two faults at every step of it",
    )
    parser.add_argument(
        "--arbiter",
        choices=ARBITERS,
        help="who decides when the nodes do not hear each other (default: drawn from the seed)",
    )
    parser.add_argument(
        "--explore",
        type=_whole,
        metavar="N",
        help="every order of what can happen within N instants of 0.5 s, after a fault or none",
    )
    parser.add_argument(
        "--more-faults",
        type=_whole,
        default=0,
        metavar="N",
        help="with --explore: so many faults more, at every step (default: 0; 1 takes long)",
    )
    parser.add_argument("--plan", metavar="TEXT", help="one history, with exactly these faults")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def call(arguments: argparse.Namespace) -> int:
    """Live through the histories, and print what came of them."""
    if arguments.explore is not None:
        return _explore(arguments)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(SEEDS)
    kinds = tuple(arguments.fault or USUAL)
    if arguments.plan is not None:
        try:
            planned = plan(seed, text=arguments.plan, arbiter=arguments.arbiter or "witness")
        except PlanError as error:
            print(f"coloha: --plan: {error}", file=sys.stderr)
            return exits.BAD_CONFIG
        return _tell_one(live(planned, log=True), arguments.json)
    if arguments.sweep is not None:
        arbiter = arguments.arbiter or drawn_arbiter(seed)
        report = campaign.sweep(arguments.sweep, seed, arguments.fault, arguments.jobs, arbiter)
    else:
        report = campaign.run(seed, arguments.histories, kinds, arguments.jobs, arguments.arbiter)
    told = [live(shrink(live(planned)).plan, log=True) for planned in report.broken]
    if arguments.json:
        print(json.dumps(_report(report) | {"broken": [_json(outcome) for outcome in told]}))
    else:
        print("\n".join(_summary(report)))
        for outcome in told:
            print("\n".join(("", *story(outcome))))
    return exits.FAILED if told else exits.OK


def _explore(arguments: argparse.Namespace) -> int:
    model = Model(arguments.arbiter or "witness")
    report = explore(model, everywhere(model), arguments.explore, arguments.more_faults)
    if arguments.json:
        print(json.dumps(_explored(report)))
    else:
        print("\n".join(found(report)))
    return exits.FAILED if report.violation else exits.OK


def found(report: Report) -> Iterator[str]:
    """Yield the lines that tell people what an exploration found."""
    yield (
        f"{report.states} states, {report.moves} moves, the farthest state {report.deepest} moves "
        f"from its root; {report.seconds:.1f} s"
    )
    yield str(report.violation or "no promise was broken, and nothing within the bounds left out")
    for line in report.lines:
        yield f"{line.at:6.1f}  {line.who:6} {line.text}"


def _explored(report: Report) -> dict[str, object]:
    violation = report.violation
    return {
        "instants": report.instants,
        "more_faults": report.faults,
        "states": report.states,
        "moves": report.moves,
        "deepest": report.deepest,
        "seconds": round(report.seconds, 3),
        "violation": violation.name if violation else None,
        "text": str(violation) if violation else None,
        "timeline": [[line.at, line.who, line.text] for line in report.lines],
    }


def _tell_one(outcome: Outcome, as_json: bool) -> int:
    if as_json:
        print(json.dumps(_json(outcome)))
    else:
        print("\n".join(story(outcome)))
    return exits.FAILED if outcome.violation else exits.OK


def _summary(report: campaign.Report) -> Iterator[str]:
    rate = report.histories / max(report.seconds, 1e-9)
    hours = report.seen["virtual seconds"] / 3600
    yield (
        f"from seed {report.first}: {report.histories} histories in {report.seconds:.1f} s "
        f"({rate:.0f} a second), {hours:.1f} h of virtual time"
    )
    yield "seen: " + ", ".join(f"{name} {report.seen[name]}" for name in _SHOWN)
    if not report.broken:
        yield "no promise was broken"


def story(outcome: Outcome) -> Iterator[str]:
    """Yield the lines that tell people what happened in a history."""
    planned, violation = outcome.plan, outcome.violation
    yield f"seed {planned.seed}: {violation or 'no promise was broken'}"
    yield ""
    for line in outcome.lines:
        yield f"{line.at:9.4f}  {line.who:6} {line.text}"
    yield ""
    text = written(planned.faults, planned.heal_at)
    arbiter = "" if planned.arbiter == "witness" else f" --arbiter {planned.arbiter}"
    yield f"again: coloha simulate --seed {planned.seed}{arbiter} --plan '{text}'"


def _report(report: campaign.Report) -> dict[str, object]:
    return {
        "first_seed": report.first,
        "histories": report.histories,
        "seconds": round(report.seconds, 3),
        "seen": dict(sorted(report.seen.items())),
    }


def _json(outcome: Outcome) -> dict[str, object]:
    violation = outcome.violation
    return {
        "seed": outcome.plan.seed,
        "arbiter": outcome.plan.arbiter,
        "violation": violation.name if violation else None,
        "text": str(violation) if violation else None,
        "plan": written(outcome.plan.faults, outcome.plan.heal_at),
        "timeline": [[round(line.at, 4), line.who, line.text] for line in outcome.lines],
    }
