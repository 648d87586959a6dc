"""The status page: what an operator wants to see first. No scripts, nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from html import escape
from typing import Any

from coloha.flight.words import length
from coloha.runtime.occurrences import Occurrence

REFRESH_S = 5
RECENT = 15
MOVES = ("claimed", "promoted", "cold-start", "handed-over", "overtaken", "conceded")
"""Kinds that belong to a change of who runs the VM."""
ENDS = ("protected", "following")
BEFORE_S, AFTER_S = 30.0, 600.0
"""How much of the time around the last move belongs to its course."""

DOING = {
    "init": "finds out what runs here",
    "adopt": "takes over the QEMU that runs here",
    "standby": "is ready to hold a copy",
    "boot": "starts the VM",
    "solo": "runs the VM alone",
    "invite": "runs the VM alone, and looks for a secondary",
    "sync": "runs the VM alone, and copies it to a secondary",
    "arm": "runs the VM, whose first checkpoints are made",
    "protected": "runs the VM, checkpoint by checkpoint",
    "defend": "holds the output, and asks who may speak",
    "leave": "runs the VM, and opens its output",
    "yielded": "has lost its QEMU; the other node may take over",
    "prepare": "starts a QEMU for the copy",
    "load": "receives the first copy of the VM",
    "follow": "holds a copy of the VM",
    "claim": "asks to take over: the primary is gone",
    "promote": "takes over",
    "kill": "ends the QEMU here",
    "off": "leaves the VM off: its guest shut down",
    "halted": "cannot decide: an operator must",
    "failed": "has failed here, and starts over",
}
"""What this node does in each phase (`coloha.core.phases`)."""

MOVING = frozenset({"adopt", "arm", "defend", "leave", "yielded", "claim", "promote"})
"""Phases in which all is being decided: neither well nor lost."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #59636e; --back: #fff; --card: #f6f8fa;
  --line: #d1d9e0; --good: #1a7f37; --bad: #cf222e; --warn: #9a6700; --bar: #0969da }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --back: #0d1117;
  --card: #161b22; --line: #3d444d; --good: #3fb950; --bad: #f85149; --warn: #d29922;
  --bar: #4493f8 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif }
header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline }
h1, h2, h3 { line-height: 1.25; margin: 0 }
h1 { font-size: 1.25rem } h2 { font-size: 1.5rem } h3 { font-size: 1rem; margin-top: 1.25rem }
header p, .dim, caption, dt { color: var(--dim) }
section { margin: 1rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-left: .4rem solid var(--line); border-radius: .4rem }
section.good { border-left-color: var(--good) } section.bad { border-left-color: var(--bad) }
section.warn { border-left-color: var(--warn) }
.state { font-weight: 700 } .good .state { color: var(--good) } .bad .state { color: var(--bad) }
.warn .state { color: var(--warn) }
.why { margin: .5rem 0; font-size: 1.1rem }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem 1rem;
  margin: 1rem 0 0 }
dt { font-size: .875rem } dd { margin: 0; overflow-wrap: anywhere }
svg { width: 100%; height: 5rem; display: block } svg rect { fill: var(--bar) }
progress { width: 100% }
table { border-collapse: collapse; width: 100% } caption { text-align: left }
td { padding: .15rem .75rem .15rem 0; vertical-align: top; overflow-wrap: anywhere }
td.at { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--dim) }
tr.warning .kind { color: var(--warn) } tr.error .kind { color: var(--bad) }
.kind { white-space: nowrap } td.text { width: 100% }
@media (max-width: 40rem) { tr { display: block; padding: .3rem 0 } td { display: inline }
  td.text { display: block } }
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'sha256-{_HASH}'; base-uri 'none';"
    " frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: its own style, and nothing else."""

Pauses = Callable[[str], Sequence[float]]


def render(
    status: Mapping[str, Any], events: Sequence[Occurrence], pauses: Pauses = lambda _: ()
) -> str:
    """Return the page.

    :param status: as `coloha status --json` has it.
    :param events: those that are kept, the newest last.
    :param pauses: of a pair's last checkpoints, seconds, the newest last.
    """
    return "\n".join(_page(status, events, pauses))


def _page(status: Mapping[str, Any], events: Sequence[Occurrence], pauses: Pauses) -> Iterator[str]:
    node, pairs = escape(status["node"]), status["pairs"]
    lost = sum(not _is_well(pair) for pair in pairs)
    title = f"{lost} of {len(pairs)} not protected" if lost else "all protected"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{node}: {title}'
    yield '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="refresh" content="{REFRESH_S}"><link rel="icon" href="data:,">'
    yield f"<style>{_STYLE}</style></head><body><header><h1>coloha on {node}</h1>"
    yield f"<p>version {escape(status['version'])}, up {_span(status['uptime_s'])}</p></header>"
    if not pairs:
        yield "<section><p>No pair is configured on this host.</p></section>"
    for pair in pairs:
        of_pair = [event for event in events if event.pair == pair["pair"]]
        yield from _pair(pair, of_pair, pauses(pair["pair"]))
    yield from _table("What happened last, newest first", list(reversed(events[-RECENT:])), _at)
    yield "</body></html>"


def _is_well(pair: Mapping[str, Any]) -> bool:
    return bool(pair["protected"]) or pair["phase"] == "off"


def _state(pair: Mapping[str, Any]) -> tuple[str, str]:
    """Return the class and the words for how a pair is."""
    if pair["protected"]:
        return "good", "protected"
    if pair["phase"] == "off":
        return "warn", "off"
    if pair["phase"] in MOVING:
        return "warn", "being decided"
    return "bad", "NOT PROTECTED"


def _pair(
    pair: Mapping[str, Any], events: Sequence[Occurrence], pauses: Sequence[float]
) -> Iterator[str]:
    name, (kind, words) = escape(pair["pair"]), _state(pair)
    yield f'<section class="{kind}" id="{name}"><h2>{name}: <span class="state">{words}</span></h2>'
    doing, since = DOING.get(pair["phase"], pair["phase"]), _span(pair.get("phase_age_s"))
    yield f'<p class="why">This node {escape(doing)} <span class="dim">(for {since})</span>.'
    why_not, waits_for = pair["why_not"], pair.get("waits_for")
    if why_not and why_not != waits_for:
        yield f" Why not protected: {escape(why_not)}."
    if waits_for:
        yield f" It waits for {escape(waits_for)}."
    yield "</p>"
    if pair.get("paused"):
        yield "<p><b>Paused by an operator: nothing fails over by itself (coloha resume).</b></p>"
    yield f"<dl>{''.join(_facts(pair))}</dl>"
    if disks := pair.get("disks"):
        yield "<h3>Copy of the disks</h3>"
        yield f'<progress max="{disks["total_bytes"]}" value="{disks["copied_bytes"]}"></progress>'
        yield f'<p class="dim">{_span(disks["left_s"])} left at least</p>'
    if len(pauses) > 1 and pair.get("role") == "primary":
        yield f"<h3>Pauses of the last {len(pauses)} checkpoints</h3>{_chart(pauses)}"
        yield f'<p class="dim">longest {_span(max(pauses))}, newest {_span(pauses[-1])}</p>'
    if course := _last_move(events):
        start = course[0].at
        yield from _table(
            f"The last failover, from {_at(course[0])} on",
            [replace(event, pair="-") for event in course],
            lambda event: f"+{_span(_seconds(start, event.at))}",
        )
    yield "</section>"


def _facts(pair: Mapping[str, Any]) -> Iterator[str]:
    if "peer" not in pair:
        return
    yield _fact("role", pair["role"])
    yield _fact("generation", f"{pair['generation']}, record {pair['record']}")
    if pair["role"] == "primary":
        yield _fact("checkpoints", f"{pair['epochs']}, every {_span(pair['period_s'])}")
        held = pair["held_age_s"]
        yield _fact("output", "open" if held is None else f"held, oldest for {_span(held)}")
    if pair["loaded"] is not None:
        yield _fact("checkpoints loaded", str(pair["loaded"]))
    age = pair["heartbeat_age_s"]
    heard = "not heard yet" if age is None else f"heard {_span(age)} ago"
    yield _fact(f"other node, {pair['peer']}", heard)
    error = pair["witness_error"]
    yield _fact("witness", f"unreachable: {error}" if error else "answers")
    if pair["disks_torn"]:
        yield _fact("disks", f"not whole on this node: {pair['disks_torn']}")


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _chart(pauses: Sequence[float]) -> str:
    """Return bars, one for each pause; the highest is as high as the picture."""
    top = max(*pauses, 1e-6)
    bars = "".join(
        f'<rect x="{index}" y="{100 - 100 * pause / top:.1f}" width="0.8"'
        f' height="{100 * pause / top:.1f}"><title>{_span(pause)}</title></rect>'
        for index, pause in enumerate(pauses)
    )
    return (
        f'<svg viewBox="0 0 {len(pauses)} 100" preserveAspectRatio="none" role="img"'
        f' aria-label="pauses, at most {_span(top)}">{bars}</svg>'
    )


def _last_move(events: Sequence[Occurrence]) -> Sequence[Occurrence]:
    """Return what happened around the last change of who runs the VM, until it was protected."""
    last = max((i for i, event in enumerate(events) if event.kind in MOVES), default=None)
    if last is None:
        return ()
    at = events[last].at
    course = []
    for index, event in enumerate(events):
        seconds = _seconds(at, event.at)
        if not -BEFORE_S <= seconds <= AFTER_S:
            continue
        course.append(event)
        if index > last and event.kind in ENDS:
            break
    return course


def _table(
    caption: str, events: Sequence[Occurrence], at: Callable[[Occurrence], str]
) -> Iterator[str]:
    yield f"<h3>{escape(caption)}</h3><table>"
    for event in events:
        pair = "" if event.pair == "-" else f"{event.pair} "
        yield f'<tr class="{event.severity.value}"><td class="at">{escape(at(event))}</td>'
        yield f'<td class="kind">{escape(pair + event.kind)}</td>'
        yield f'<td class="text">{escape(event.text)}</td></tr>'
    yield "</table>"


def _at(event: Occurrence) -> str:
    return datetime.fromisoformat(event.at).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _span(seconds: float | None) -> str:
    return "?" if seconds is None else length(seconds)
