"""Strict YAML that remembers where everything was written.

PyYAML reads YAML 1.1, where `mac: 52:54:00:12:34:56` is a number in base sixty, `mode: on` is
true, and the last of two equal keys wins in silence. Here plain scalars follow the core schema of
YAML 1.2 (null, true, false, decimal integers, floats; the rest is text). What makes a file mean
something other than it seems to say is refused: duplicate keys, anchors, aliases, merge keys, tags
and second documents. All but broken syntax is collected, so that a file is judged as a whole.
"""

import codecs
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from yaml.events import AliasEvent, StreamEndEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from coloha.config.units import shown
from coloha.errors import Problem

KeyPath: TypeAlias = tuple[str | int, ...]
Place: TypeAlias = tuple[int, int]
"""A line and a column, both from 1."""

LARGEST_FILE = 2**20
"""Largest file that is read, in bytes."""
DEEPEST = 16
"""Deepest nesting that is followed: the models need six levels."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_REFUSED_TAG = "refused"
_BARE_IPV6 = re.compile(r"(^|[\s:,{])\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]:[0-9]")

_SYNTAX_HINTS = (
    ("'\\t'", "indent with spaces, not with tabs"),
    ("mapping values are not allowed", "check the indentation, or put the text in quotes"),
    ("block end", "check the indentation of this line and of the one above"),
    ("could not find expected ':'", "write the key as 'key: value'"),
    ("quoted scalar", "close the quotes"),
    ("cannot start any token", "put the text in quotes"),
)


class Refused:
    """Stands where a value was refused already, so that no model accepts it by accident."""


def dotted(path: KeyPath) -> str:
    """Return a path as messages show it: `vm.nics[0].mac`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if _PLAIN_KEY.fullmatch(step) else shown(step)
            text += f".{key}" if text else key
    return text


@dataclass(slots=True)
class Source:
    """One configuration file: its data, where each part was written, and what is wrong with it.

    `data` is None when the file holds no mapping that could be validated.
    """

    file: Path
    data: dict[str, object] | None = None
    problems: list[Problem] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)
    """Values that already have a problem, so that a model's complaint about them adds nothing."""
    _values: dict[KeyPath, Place] = field(default_factory=dict)
    _keys: dict[KeyPath, Place] = field(default_factory=dict)
    _unplaced: dict[Place, list[str]] = field(default_factory=dict)

    def place(self, path: KeyPath) -> Place:
        """Return where the value at `path` starts, or the nearest part around it that exists."""
        while path and path not in self._values:
            path = path[:-1]
        return self._values.get(path, (0, 0))

    def key_place(self, path: KeyPath) -> Place:
        """Return where the key at `path` starts, or else its value."""
        return self._keys.get(path) or self.place(path)

    def problem(self, path: KeyPath, message: str, place: Place | None = None) -> Problem:
        """Make a problem of this file; `place` defaults to where the value at `path` starts."""
        line, column = self.place(path) if place is None else place
        return Problem(str(self.file), line, column, dotted(path), message)

    def note(self, path: KeyPath, message: str, place: Place) -> None:
        """Remember a problem of the file's form."""
        self.problems.append(self.problem(path, message, place))

    def note_at(self, place: Place, message: str) -> None:
        """Remember a problem whose path is learned when `found` is called for its place."""
        self._unplaced.setdefault(place, []).append(message)

    def found(self, path: KeyPath, place: Place) -> None:
        """Remember where the value at `path` starts."""
        self._values[path] = place
        for message in self._unplaced.pop(place, ()):
            self.note(path, message, place)

    def found_key(self, path: KeyPath, place: Place) -> None:
        """Remember where the key at `path` starts."""
        self._keys[path] = place

    def note_unplaced(self) -> None:
        """Note what `note_at` was told and no `found` followed."""
        for place, messages in self._unplaced.items():
            for message in messages:
                self.note((), message, place)


def read(file: Path) -> Source:
    """Read one file. Whatever is wrong with it, its `problems` say so; nothing is raised."""
    source = Source(file)
    text = _text(source)
    if text is None:
        return source
    try:
        loader = _Loader(text, source)
        node = loader.only_document()
    except _NestedTooDeeply as error:
        source.note((), f"nested deeper than {DEEPEST} levels: flatten it", error.place)
    except yaml.reader.ReaderError as error:
        message = f"the character {chr(int(error.character))!a} cannot be in YAML: remove it"
        source.note((), message, _place_in(text[: error.position]))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        source.note((), _syntax_message(error, text.splitlines()[place[0] - 1 : place[0]]), place)
    except (ValueError, OverflowError):  # PyYAML makes a character of an escape without a check
        source.note((), "not valid YAML: this escape is no character", _place(loader.get_mark()))
    else:
        _convert_document(source, node)
    source.note_unplaced()
    return source


def _text(source: Source) -> str | None:
    """Return the file's text, or None after noting why there is none."""
    try:
        if not stat.S_ISREG(source.file.stat().st_mode):
            source.note((), "is not a regular file: put a YAML file there", (0, 0))
            return None
        with source.file.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        source.note((), f"cannot be read ({reason}): create it, or correct its permissions", (0, 0))
        return None
    if len(raw) > LARGEST_FILE:
        source.note((), f"is larger than {LARGEST_FILE >> 20}MiB: this is no configuration", (0, 0))
        return None
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        place = _place_in(raw[: error.start].decode())
        source.note((), f"byte 0x{raw[error.start]:02x} is not UTF-8: save it as UTF-8", place)
        return None


def _place_in(before: str) -> Place:
    """Return the place that follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _place(mark: yaml.Mark) -> Place:
    return mark.line + 1, mark.column + 1


def _syntax_message(error: yaml.MarkedYAMLError, line: Iterable[str]) -> str:
    problem = error.problem or error.context or "it cannot be read"
    if any(_BARE_IPV6.search(text) for text in line):
        return (
            f"not valid YAML: put the IPv6 address in quotes, such as '[fd00::1]:7770' ({problem})"
        )
    context = f" ({error.context})" if error.problem and error.context else ""
    words = problem + context
    hint = next((hint for sign, hint in _SYNTAX_HINTS if sign in words), "correct this line")
    return f"not valid YAML: {words}: {hint}"


class _NestedTooDeeply(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses on the way what only the events still show."""

    def __init__(self, text: str, source: Source) -> None:
        super().__init__(text)
        self._source = source
        self._depth = 0

    def only_document(self) -> Node | None:
        """Return the root of the first document, or None if there is none; note any second one."""
        self.get_event()  # type: ignore[no-untyped-call]
        if self.check_event(StreamEndEvent):
            return None
        root = self.compose_document()
        if not self.check_event(StreamEndEvent):
            place = self._next_event()[1]
            self._source.note((), "a second document starts here: keep one, without '---'", place)
        return root

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        """Compose one node, without the anchors, aliases and tags of YAML."""
        event, place = self._next_event()
        if isinstance(event, AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            self._source.note_at(place, f"alias *{event.anchor}: write the value out instead")
            return self._refused_scalar(event)
        tagged = self._undecorate(event, place)
        self._depth += 1
        if self._depth > DEEPEST:
            raise _NestedTooDeeply(place)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._depth -= 1
        return self._refused_scalar(event) if tagged and isinstance(node, ScalarNode) else node

    def _next_event(self) -> tuple[Any, Place]:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        return event, _place(event.start_mark)

    def _undecorate(self, event: Any, place: Place) -> bool:
        """Note and remove the event's anchor and tag. Return whether it had a tag."""
        if event.anchor is not None:
            anchor = f"anchor &{event.anchor}: remove it, aliases are not used here"
            self._source.note_at(place, anchor)
            event.anchor = None
        if event.tag is None:
            return False
        short = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
        self._source.note_at(place, f"tag {short}: remove it, or put the text in quotes")
        event.tag = None
        return True

    @staticmethod
    def _refused_scalar(event: Any) -> ScalarNode:
        return ScalarNode(_REFUSED_TAG, "", event.start_mark, event.end_mark)


def _convert_document(source: Source, root: Node | None) -> None:
    if root is None or (isinstance(root, ScalarNode) and _scalar(root) is None):
        source.note((), "is empty: write the settings, docs/configuration.md lists them", (1, 1))
        return
    if not isinstance(root, MappingNode):
        place = _place(root.start_mark)
        source.note((), "must be settings of the form 'key: value', one below the other", place)
        return
    source.data = _mapping(source, (), root)


def _convert(source: Source, path: KeyPath, node: Node) -> object:
    if isinstance(node, MappingNode):
        return _mapping(source, path, node)
    source.found(path, _place(node.start_mark))
    if isinstance(node, SequenceNode):
        return [_convert(source, (*path, index), item) for index, item in enumerate(node.value)]
    value = _scalar(node)
    if isinstance(value, str) and (bad := _UNUSABLE.search(value)):
        source.note(path, f"holds the character {bad[0]!a}: remove it", source.place(path))
        value = Refused()
    if isinstance(value, Refused):
        source.refused.add(path)
    return value


def _mapping(source: Source, path: KeyPath, node: MappingNode) -> dict[str, object]:
    source.found(path, _place(node.start_mark))
    result: dict[str, object] = {}
    for key_node, value_node in node.value:
        key = _key(source, path, key_node)
        if key is None:
            continue
        inner = (*path, key)
        if key in result:
            line, _ = source.key_place(inner)
            message = f"duplicate key, first used on line {line}: remove one of them"
            source.note(inner, message, _place(key_node.start_mark))
            continue
        source.found_key(inner, _place(key_node.start_mark))
        result[key] = _convert(source, inner, value_node)
    return result


def _key(source: Source, path: KeyPath, node: Node) -> str | None:
    """Return the key, or None after noting why it is none."""
    place = _place(node.start_mark)
    if not isinstance(node, ScalarNode):
        source.note(path, "a key must be text, not a list or a section", place)
        return None
    key = _scalar(node)
    if isinstance(key, Refused):
        return None
    if not isinstance(key, str) or _UNUSABLE.search(key):
        source.note(path, f"a key must be text, not {shown(key)}: put it in quotes", place)
        return None
    if key == "<<" and node.style is None:
        source.note(path, "merge key <<: write the keys out instead", place)
        return None
    return key


def _scalar(node: Node) -> object:
    """Return the value of a scalar by YAML 1.2's core schema; quoted text is always text."""
    text = str(node.value)
    if node.tag == _REFUSED_TAG:
        return Refused()
    if not isinstance(node, ScalarNode) or node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
