"""A fence agent whose answers a test decides, and which keeps what it was told."""

import json
import sys
from pathlib import Path
from typing import Any

from coloha.config import FenceAgent

SCRIPT = """#!{python} -I
import json, os, pathlib, sys, time
folder = pathlib.Path({folder!r})
text = sys.stdin.read()
told = dict(line.split("=", 1) for line in text.splitlines())
with open(folder / "told", "a") as file:
    file.write(json.dumps([sys.argv[1:], text]) + "\\n")
plan = json.loads((folder / "plan").read_text())
answers = plan[told["action"]]
count = folder / ("count-" + told["action"])
turn = int(count.read_text()) if count.exists() else 0
count.write_text(str(turn + 1))
answer = answers[min(turn, len(answers) - 1)]
(folder / "pid.new").write_text(str(os.getpid()))
(folder / "pid.new").rename(folder / "pid")
exec(answer.get("do", ""))
print(answer.get("says", ""), file=sys.stderr, flush=True)
sys.exit(answer["code"])
"""


def answer(code: int, says: str = "", do: str = "") -> dict[str, Any]:
    """Exit with `code` after having run the Python code `do`, and said something."""
    return {"code": code, "says": says, "do": do}


OK, NO, IS_ON, IS_OFF = answer(0), answer(1, "no way"), answer(0), answer(2)
HANGS = answer(0, do="time.sleep(600)")


class Agent:
    """The agent's program, and what tests see of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "fence_test"
        self.path.write_text(SCRIPT.format(python=sys.executable, folder=str(folder)))
        self.path.chmod(0o755)

    def answers(self, **plan: list[dict[str, Any]]) -> None:
        """Say what it answers to each action, the first time, the second, and so on."""
        (self.folder / "plan").write_text(json.dumps(plan))

    def section(self, **settings: Any) -> FenceAgent:
        """The section of a host file that names it."""
        return FenceAgent.model_validate(
            {"agent": str(self.path), "timeout": "60s", "retries": 0, **settings}
        )

    @property
    def told(self) -> list[tuple[list[str], str]]:
        """With which arguments and which input it was run."""
        file = self.folder / "told"
        lines = file.read_text().splitlines() if file.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    @property
    def actions(self) -> list[str]:
        return [text.rpartition("action=")[2].split("\n")[0] for _, text in self.told]
