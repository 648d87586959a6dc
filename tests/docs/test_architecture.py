"""docs/architecture.md: packages, what they import, threads."""

import ast
from pathlib import Path

import pytest

from lab.namespace import CHECKOUT
from tests.docs.messages import SOURCE
from tests.docs.pages import DOCS, code, rows, section

PAGE = DOCS / "architecture.md"
PACKAGES = {code(row[0]): row for row in rows(section(PAGE, "Packages"))}
COMMON = {"ask", "durable", "errors", "places", "__version__"}
"""Modules that all may import."""


def imported(package: Path) -> set[str]:
    """The other packages of coloha that a package imports from."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "coloha":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coloha."):
                found.add(str(node.module).split(".")[1])
    return found - {package.name} - COMMON


def test_every_package_is_in_the_table() -> None:
    there = {f"coloha/{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert there == PACKAGES.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_what_the_table_says(package: str) -> None:
    said = PACKAGES[package][2]
    allowed = set() if said.startswith("nothing") else set(said.split(", "))
    assert imported(CHECKOUT / package) == allowed


def test_every_thread_is_in_the_table() -> None:
    named: set[str] = set()
    for path in (*SOURCE.glob("runtime/*.py"), *SOURCE.glob("adapters/*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in _MAKING:
                named |= {ast.literal_eval(name) for name in _names(call)}
    said = {row[0] for row in rows(section(PAGE, "Processes and threads")) if len(row) == 2}
    assert said == {f"`{name}`" for name in named} | {"metrics, unnamed"}


_MAKING = ("ThreadPoolExecutor", "threading.Thread", "_Thread")


def _names(call: ast.Call) -> list[ast.Constant]:
    named = [word.value for word in call.keywords if word.arg in ("name", "thread_name_prefix")]
    found = [name for name in (*named, *call.args) if isinstance(name, ast.Constant)]
    return [name for name in found if isinstance(name.value, str)]
