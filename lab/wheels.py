"""Fetches the wheels that `pip install .` wants on Debian's Python: `wheels.py DIR`.

At the versions of requirements.txt, so that tests install what they test.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
"""Of the Debian that `make-root.sh` makes."""


def main() -> int:
    """Fetch; return pip's exit status."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    pins = re.findall(r"^[\w.-]+==\S+", (HERE / "requirements.txt").read_text(), re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(pins))
        constraints.flush()
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        argv += ["--dest", sys.argv[1], "--constraint", constraints.name]
        argv += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
        return subprocess.run([*argv, *wanted], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
