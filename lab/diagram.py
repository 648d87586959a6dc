"""Writes docs/phases.md from the table of phases: `python -m lab.diagram [--write]`.

Without --write: exit status 1 if the file is not what the table says.
"""

import ast
import inspect
import itertools
import sys
from collections.abc import Iterator

from coloha.core import phases
from coloha.core.phases import HOLDING, SPEAKING, TRANSITIONS, Phase
from lab.namespace import CHECKOUT

FILE = CHECKOUT / "docs" / "phases.md"

_SIDES = {
    "Finding out": (Phase.INIT, Phase.ADOPT),
    "Primary": (
        *(Phase.BOOT, Phase.SOLO, Phase.INVITE, Phase.SYNC, Phase.ARM),
        *(Phase.PROTECTED, Phase.DEFEND, Phase.LEAVE, Phase.YIELDED, Phase.OFF),
    ),
    "Secondary": (
        *(Phase.STANDBY, Phase.PREPARE, Phase.LOAD, Phase.FOLLOW, Phase.CLAIM, Phase.PROMOTE),
    ),
    "Apart": (Phase.KILL, Phase.HALTED),
}


def meanings() -> dict[str, str]:
    """Return what stands below each member of `Phase`."""
    tree = ast.parse(inspect.getsource(phases))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Phase").body
    found = {}
    for member, doc in itertools.pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(doc, ast.Expr):
            name, text = member.targets[0], doc.value
            assert isinstance(name, ast.Name)
            assert isinstance(text, ast.Constant)
            found[Phase[name.id].value] = str(text.value)
    return found


def render() -> str:
    """Return the file as the table says it should be."""
    return "\n".join(_lines()) + "\n"


def _output(phase: Phase) -> str:
    if phase in HOLDING:
        return "held, released commit by commit" if phase in SPEAKING else "held"
    if phase in SPEAKING:
        return "open"
    side = next(name for name, members in _SIDES.items() if phase in members)
    return "sunk or none" if side in ("Primary", "Secondary") else "as it was"


def _lines() -> Iterator[str]:
    yield "# The phases of a pair on one node"
    yield ""
    yield "Made from the table in `coloha/core/phases.py` by `make docs`."
    said = meanings()
    for side, members in _SIDES.items():
        yield f"\n## {side}\n"
        yield "| phase | what it does | output | next |"
        yield "|---|---|---|---|"
        for phase in members:
            after = ", ".join(sorted(TRANSITIONS[phase]))
            yield f"| **{phase}** | {said[phase]} | {_output(phase)} | {after} |"
    yield "\n## The picture\n"
    yield "Every move to `kill` and `off` is left out: they are possible almost everywhere."
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "  [*] --> init"
    for phase, successors in TRANSITIONS.items():
        for successor in sorted(successors - {Phase.KILL, Phase.OFF}):
            yield f"  {phase} --> {successor}"
    yield "```"


def main() -> int:
    """Write the file, or say whether it is current."""
    if "--write" in sys.argv[1:]:
        FILE.write_text(render())
        return 0
    return 0 if FILE.exists() and FILE.read_text() == render() else 1


if __name__ == "__main__":
    raise SystemExit(main())
