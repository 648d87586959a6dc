"""What coloha tells operators, read off its source: kinds of events, texts of errors."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from lab.namespace import CHECKOUT

SOURCE = CHECKOUT / "coloha"
APART = ("sim", "config", "core")
"""Folders whose errors are not an operator's: the simulator's; files are refused with their place
and what to write; the core raises nothing but bugs."""
GAP = "..."
"""Stands for what is filled in."""
TELLING = {"tell": 0, "_tell": 0, "_say": 0, "add": 1, "_tell_watchdog": 0}
"""Calls that tell an event, and which argument is its kind: the second, if the first is a pair."""
_KIND = re.compile(r"[a-z]+(-[a-z]+)*")


class UnreadableError(Exception):
    """The source tells an event in a way that this module does not understand."""


def files(apart: tuple[str, ...] = ()) -> Iterator[Path]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] not in apart:
            yield path


@functools.cache
def kinds() -> dict[str, set[str]]:
    """Every kind of event, and the files that tell it."""
    found: dict[str, set[str]] = {}
    for path in files(("sim", "flight")):
        for kind in kinds_in(ast.parse(path.read_text())):
            found.setdefault(kind, set()).add(path.relative_to(SOURCE).as_posix())
    return found


def kinds_in(tree: ast.Module) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call):
                    yield from _told(call, function)


def _told(call: ast.Call, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in TELLING:
        return
    if len(call.args) < 2:
        return  # a set's `add`
    place = TELLING[call.func.attr]
    if isinstance(call.args[0], ast.Attribute):  # the pair, or its name
        place = 1
    yield from _values(call.args[place], function)


def _values(value: ast.expr, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(kind)) if _KIND.fullmatch(kind):
            yield kind
        case ast.IfExp(body=one, orelse=other):
            yield from _values(one, function)
            yield from _values(other, function)
        case ast.Name(id=name):
            if name in {argument.arg for argument in function.args.args}:
                return  # passed on: told where it comes from
            assigned = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
            ]
            if not assigned and name != "kind":
                raise UnreadableError(f"{function.name}: {ast.unparse(value)}")
            for each in assigned:
                yield from _values(each, function)
        case ast.JoinedStr() if ast.unparse(value) == "f'{script}-failed'":
            yield from (f"{script}-failed" for script in insisted())
        case _:
            raise UnreadableError(f"{function.name}: {ast.unparse(value)}")


def insisted() -> Iterator[str]:
    """The scripts that are run until they succeed, by name."""
    for path in files(("sim", "flight")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "insist":
                yield ast.unparse(call.args[1]).removeprefix("Script.").lower().replace("_", "-")


def templates() -> dict[str, str]:
    """The texts of errors that operators are told, and of what `coloha check` finds wrong; with
    gaps, and where each is."""
    found: dict[str, str] = {}
    for path in files(APART):
        for node in ast.walk(ast.parse(path.read_text())):
            for text in map(template, _told_texts(node)):
                if re.search(r"\w{2}", text.replace(GAP, "")):
                    place = f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
                    found.setdefault(text, place)
    return found


NOT_TOLD = {"ValueError", "TypeError", "FormError", "OSError", "ConnectionResetError", "KeyError"}
NOT_TOLD |= {"argparse.ArgumentTypeError"}
"""They become a part of another error's text."""


def _told_texts(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        name = ast.unparse(node.exc.func)
        return node.exc.args if name.endswith("Error") and name not in NOT_TOLD else []
    if isinstance(node, ast.Yield | ast.Return) and isinstance(node.value, ast.Tuple):
        match node.value.elts:
            case [ast.Constant(value=True), _]:
                return []
            case [ast.Constant(value=False) | ast.Name(), text]:
                return [text]
    return []


def waits() -> set[str]:
    """What phases say that they wait for."""
    found = set()
    for path in files(("sim", "flight")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "c.wait":
                found.add(template(call.args[0]))
    return {text for text in found if text != GAP}


def strings() -> set[str]:
    """Every text in the source, whole, with gaps."""
    found = set()
    for path in files(("sim",)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.expr):
                found.add(template(node))
    return found - {"", GAP}


def template(value: ast.expr) -> str:
    text = re.sub(r"\s+", " ", _filled(value).replace("`", "")).strip()
    return re.sub(r"(\.\.\.)+", GAP, text)


def _filled(value: ast.expr) -> str:
    match value:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_filled, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _filled(left) + _filled(right)
        case ast.FormattedValue() | ast.Call() | ast.IfExp():
            return GAP
        case _:
            return ""


def pattern(message: str) -> re.Pattern[str]:
    """What a message of the page stands for: a gap may be anything."""
    return re.compile(".*".join(map(re.escape, message.split(GAP))), re.DOTALL)


def fits(message: str, text: str) -> bool:
    """Whether a text may be what a message of the page stands for."""
    longest = max(message.split(GAP), key=len)
    return longest in text and pattern(message).fullmatch(text) is not None
