"""Draws what an observer sees: a live view for terminals, plain lines for everything else."""

import math
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lab.observer import Happening, Picture

_BARS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"info": "default", "warning": "yellow", "error": "red", "act": "bold magenta"}
_TOLD = 9
SPEAKING = frozenset({"solo", "invite", "sync", "arm", "protected", "leave"})


def spark(values: Iterable[float], width: int) -> str:
    """Draw values as bars, logarithmic, the newest at the right; zero is blank."""
    shown = [math.log1p(max(0.0, value)) for value in values][-width:]
    top = max(shown, default=0.0) or 1.0
    bars = "".join(_BARS[0 if v <= 0 else 1 + round(v / top * 7)] for v in shown)
    return bars.rjust(width)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _host(name: str, status: dict[str, Any]) -> Panel:
    """One host: its daemon and its QEMU."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", justify="right")
    table.add_column(min_width=26)
    if not status:
        table.add_row("daemon", Text("does not answer", style="red"))
        return Panel(table, title=f"host {name}", border_style="red", height=9)
    phase = str(status["phase"])
    speaks = phase in SPEAKING
    colour = "green" if speaks else "cyan" if status["role"] == "secondary" else "yellow"
    table.add_row("phase", Text(phase, style=f"bold {colour}"))
    table.add_row("guest", "speaks" if speaks else "follows" if phase == "follow" else "-")
    table.add_row("qemu", f"pid {status['qemu']['pid']}" if status["qemu"]["pid"] else "none")
    if speaks:
        table.add_row("pause", _ms(status["last_pause_s"]))
        table.add_row("epochs", str(status["epochs"]))
    else:
        table.add_row("loaded", str(status["loaded"] if status["loaded"] is not None else "-"))
        table.add_row("waits for", str(status["waits_for"] or "-")[:26])
    table.add_row("heard", f"{_ms(status['heartbeat_age_s'])} ago")
    witness = Text("unreachable", style="red") if status["witness_error"] else Text("reachable")
    table.add_row("witness", witness)
    return Panel(table, title=f"host {name}", border_style=colour, height=9)


def _vm(picture: Picture) -> Text:
    """The guest, between the hosts."""
    protected = sum(bool(s.get("protected")) for s in picture.statuses.values()) == 2
    generation = max((s.get("generation", 0) for s in picture.statuses.values()), default=0)
    speaker = next((n for n, s in picture.statuses.items() if s.get("phase") in SPEAKING), None)
    text = Text("  the VM  ", style="bold")
    text.append("speaks from ")
    text.append(speaker or "nowhere", style="bold green" if speaker else "bold red")
    text.append(f", generation {generation}, ")
    text.append(
        "protected" if protected else "NOT PROTECTED", style="bold green" if protected else "red"
    )
    return text


def _client(picture: Picture) -> Panel:
    report = picture.report
    if report is None:
        return Panel(Text("connecting", style="dim"), title="client", height=5)
    wrong = sum(report.wrong.values())
    line = Text(f"{report.answers} answers on {report.connections} connection, ")
    line.append(f"{wrong} wrong", style="bold red" if wrong else "green")
    silence = report.current_silence_ms
    line.append(f", longest gap {report.longest_gap_ms:.0f} ms")
    if silence > 150:
        line.append(f"   waiting for {silence:.0f} ms", style="bold yellow")
    answers = Text(spark(picture.answers, 60), style="green")
    pauses = Text(spark(picture.pauses_ms, 60), style="blue")
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("answers", style="dim"), answers, Text("per 0.1 s", style="dim"))
    grid.add_row(Text("pauses", style="dim"), pauses, Text("of the guest", style="dim"))
    return Panel(Group(line, grid), title="client: one TCP connection", height=5)


def _happening(happening: Happening, start_s: float) -> Text:
    style = _COLOURS[happening.severity]
    return Text(line(happening, start_s), style=style, no_wrap=True, overflow="ellipsis")


def line(happening: Happening, start_s: float) -> str:
    """One happening as a line of text."""
    who = happening.node or "demo"
    return f"{happening.at_s - start_s:7.2f} s  {who:6} {happening.kind:19} {happening.text}"


def draw(picture: Picture, act: str, start_s: float) -> RenderableType:
    """Draw everything."""
    hosts = Table.grid(expand=True)
    for _ in picture.statuses:
        hosts.add_column(ratio=1)
    hosts.add_row(*(_host(name, status) for name, status in picture.statuses.items()))
    told = [_happening(each, start_s) for each in picture.happenings[-_TOLD:]]
    story = Panel(Group(*told), title="what happened", height=_TOLD + 2)
    title = Text(f" {act} ", style="bold white on blue")
    return Group(title, Text(), _vm(picture), hosts, _client(picture), story)
