"""The core stays pure: what it imports, and that it never looks at a clock or a die."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "coloha"
SCRIPTS = [ROOT / "qemu" / f"{name}.py" for name in ("scripts", "steps", "disks", "compare")]
PURE = [*sorted((ROOT / "core").glob("*.py")), *SCRIPTS]
ALLOWED = {
    "collections",
    "dataclasses",
    "enum",
    "hashlib",
    "hmac",
    "struct",
    "typing",
    "coloha.core",
    "coloha.errors",
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only: this test reads them"
            module = node.module or ""
            whole = module == "coloha.qemu"
            found |= {f"{module}.{alias.name}" for alias in node.names} if whole else {module}
    return found


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_imports(path: Path) -> None:
    for name in imports(path):
        parents = {".".join(name.split(".")[:count]) for count in (1, 2)}
        scripts = {f"coloha.qemu.{path.stem}" for path in SCRIPTS}
        assert parents & ALLOWED or name in scripts, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_no_way_out(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "eval", "exec", "__import__"}
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global)


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=str)
def test_a_reader_can_hold_it_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
    for function in functions(path):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{path.name}: {function.name} has {length} lines"
