"""Dataclasses as JSON values and back, by their type hints alone.

A new event, action or field needs nothing here. What a hint cannot express unmistakably is refused
when the codec is made; a value that does not fit its hint is refused both ways.

    None, bool, int, str    themselves
    float                   a number; "inf" and "-inf", since JSON has none
    enum                    its value, a string
    list, tuple, set, ...   a list; a deque's begins with its `maxlen`
    dict                    a list of pairs
    dataclass               an object of all its fields
    one of dataclasses      {"ItsName": {...}}
    object                  null, or one of the dataclasses of the module that says `object`
"""

import dataclasses
import functools
import math
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

_JSON = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number"}
_JSON |= {str: "a string", list: "a list", dict: "an object"}

_CONTAINERS = frozenset({list, tuple, set, frozenset, deque, dict})


class FormError(ValueError):
    """A value does not have the form that its hint asks for; the message says which part of it."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.problem = problem
        self.path = path

    def inside(self, name: object) -> "FormError":
        """Return the same error, seen from one level further out."""
        return FormError(self.problem, f"{name}.{self.path}" if self.path else f"{name}")


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one hint are written.

    `encode` and `decode` raise `FormError` for a value that does not fit. `takes` are the types it
    encodes, `reads` the types of JSON values it decodes: a union chooses by them.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    takes: frozenset[type]
    reads: frozenset[type]


@functools.cache
def codec(hint: Any, module: str = "") -> Codec:
    """Return the codec of a type hint that stands in `module`.

    :raises TypeError: if values of this hint cannot be told apart once they are JSON.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), module)
    if origin in _CONTAINERS:
        return _container(origin, get_args(hint), module)
    if hint in (None, type(None)):
        return _scalar(type(None))
    if hint in (bool, int, str):
        return _scalar(hint)
    if hint is float:
        return Codec(_encode_float, _decode_float, frozenset({float, int}), frozenset({float, str}))
    if hint is object:
        return _anything(module)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    raise TypeError(f"{module or 'a value'}: no rule for {hint}: add one to {__name__}")


def _misfit(value: object, expected: str) -> FormError:
    shown = repr(value)
    return FormError(f"{shown[:60]}{'...' * (len(shown) > 60)} is not {expected}")


def _scalar(kind: type) -> Codec:
    def same(value: Any) -> Any:
        if type(value) is not kind:
            raise _misfit(value, _JSON[kind])
        return value

    return Codec(same, same, frozenset({kind}), frozenset({kind}))


def _encode_float(value: Any) -> Any:
    if type(value) not in (float, int) or math.isnan(value):
        raise _misfit(value, "a number")
    return float(value) if math.isfinite(value) else str(value)


def _decode_float(plain: Any) -> float:
    if plain in ("inf", "-inf"):
        return float(plain)
    if type(plain) is not float or not math.isfinite(plain):
        raise _misfit(plain, "a number with a fraction, 'inf' or '-inf'")
    return plain


def _enum(kind: type[Enum]) -> Codec:
    values = {member.value: member for member in kind}
    if not all(type(value) is str for value in values):
        raise TypeError(f"{kind.__qualname__}: only enums of strings have a rule")

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            raise _misfit(value, f"a {kind.__name__}")
        return value.value

    def decode(plain: Any) -> Any:
        if type(plain) is not str or plain not in values:
            raise _misfit(plain, f"a {kind.__name__}")
        return values[plain]

    return Codec(encode, decode, frozenset({kind}), frozenset({str}))


def _dataclass(kind: type) -> Codec:
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    parts = [(field.name, codec(hints[field.name], kind.__module__)) for field in fields]
    late = [field.name for field in fields if not field.init]
    names = {field.name for field in fields}

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            raise _misfit(value, f"a {kind.__name__}")
        made = {}
        for name, part in parts:
            try:
                made[name] = part.encode(getattr(value, name))
            except FormError as error:
                raise error.inside(name) from None
        return made

    def decode(plain: Any) -> Any:
        if type(plain) is not dict:
            raise _misfit(plain, f"an object of {kind.__name__}")
        if plain.keys() != names:
            raise FormError(_difference(kind, plain.keys(), names))
        values = {}
        for name, part in parts:
            try:
                values[name] = part.decode(plain[name])
            except FormError as error:
                raise error.inside(name) from None
        later = [(name, values.pop(name)) for name in late]
        made = kind(**values)
        for name, value in later:
            object.__setattr__(made, name, value)
        return made

    return Codec(encode, decode, frozenset({kind}), frozenset({dict}))


def _difference(kind: type, found: Iterable[str], expected: Iterable[str]) -> str:
    unknown, missing = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    said = [f"no such field: {', '.join(unknown)}"] if unknown else []
    said += [f"missing: {', '.join(missing)}"] if missing else []
    return f"{kind.__name__}: {'; '.join(said)}"


def _tagged(find: Callable[[str], Codec | None], what: str) -> Codec:
    """Write dataclasses along with their names; `find` knows the codec of each name."""

    def encode(value: Any) -> Any:
        name = type(value).__name__
        found = find(name)
        if found is None:
            raise _misfit(value, what)
        return {name: found.encode(value)}

    def decode(plain: Any) -> Any:
        if type(plain) is not dict or len(plain) != 1:
            raise _misfit(plain, f"an object with the name of {what}")
        ((name, fields),) = plain.items()
        found = find(name)
        if found is None:
            raise _misfit(name, what)
        try:
            return found.decode(fields)
        except FormError as error:
            raise error.inside(name) from None

    return Codec(encode, decode, frozenset(), frozenset({dict}))


def _anything(module: str) -> Codec:
    def find(name: str) -> Codec | None:
        kind = vars(sys.modules[module]).get(name)
        known = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        return codec(kind) if known else None

    tagged = _tagged(find, f"a dataclass of {module}")

    def encode(value: Any) -> Any:
        return None if value is None else tagged.encode(value)

    def decode(plain: Any) -> Any:
        return None if plain is None else tagged.decode(plain)

    return Codec(encode, decode, frozenset({object}), frozenset({type(None), dict}))


def _union(hints: Sequence[Any], module: str) -> Codec:
    kinds: list[Any] = [hint for hint in hints if dataclasses.is_dataclass(hint)]
    members = [codec(hint, module) for hint in hints if hint not in kinds]
    if len(kinds) == 1:
        members.append(codec(kinds[0]))
    elif kinds:
        named = {kind.__name__: codec(kind) for kind in kinds}
        if len(named) != len(kinds):
            raise TypeError(f"{module}: two of {hints} have one name")
        tagged = _tagged(named.get, f"one of {', '.join(named)}")
        members.append(dataclasses.replace(tagged, takes=frozenset(kinds)))
    by_type = {kind: member for member in members for kind in member.takes}
    by_plain = {kind: member for member in members for kind in member.reads}
    if len(by_plain) != sum(len(member.reads) for member in members):
        raise TypeError(f"{module}: once they are JSON, values of {hints} cannot be told apart")
    expected = f"of {' | '.join(getattr(hint, '__name__', str(hint)) for hint in hints)}"

    def encode(value: Any) -> Any:
        member = by_type.get(type(value))
        if member is None:
            raise _misfit(value, expected)
        return member.encode(value)

    def decode(plain: Any) -> Any:
        member = by_plain.get(type(plain))
        if member is None:
            raise _misfit(plain, expected)
        return member.decode(plain)

    return Codec(encode, decode, frozenset(by_type), frozenset(by_plain))


def _container(kind: type, hints: Sequence[Any], module: str) -> Codec:
    takes, reads = frozenset({kind}), frozenset({list})
    if kind is dict:
        pairs = _container(list, [tuple[hints[0], hints[1]]], module)  # type: ignore[valid-type]
        return Codec(
            lambda value: pairs.encode(list(_fitting(value, dict).items())),
            lambda plain: dict(pairs.decode(plain)),
            takes,
            reads,
        )
    if kind is tuple and hints[-1] is not Ellipsis:
        return _fixed([codec(hint, module) for hint in hints])
    item = codec(hints[0], module)

    def encode(value: Any) -> Any:
        items = _all(item.encode, _fitting(value, kind))
        if kind in (set, frozenset):
            items.sort(key=repr)
        return [value.maxlen, *items] if kind is deque else items

    def decode(plain: Any) -> Any:
        items = _fitting(plain, list)
        if kind is not deque:
            return kind(_all(item.decode, items))
        if not items or not (items[0] is None or type(items[0]) is int):
            raise _misfit(plain, "a list that begins with the greatest length, or null")
        return deque(_all(item.decode, items[1:]), items[0])

    return Codec(encode, decode, takes, reads)


def _fixed(parts: list[Codec]) -> Codec:
    def each(value: Any, kind: type, ways: list[Callable[[Any], Any]]) -> list[Any]:
        if len(_fitting(value, kind)) != len(ways):
            raise _misfit(value, f"a list of {len(ways)}")
        made = []
        for index, (part, way) in enumerate(zip(value, ways, strict=True)):
            try:
                made.append(way(part))
            except FormError as error:
                raise error.inside(index) from None
        return made

    encoders, decoders = [part.encode for part in parts], [part.decode for part in parts]
    return Codec(
        lambda value: each(value, tuple, encoders),
        lambda plain: tuple(each(plain, list, decoders)),
        frozenset({tuple}),
        frozenset({list}),
    )


def _fitting(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _misfit(value, _JSON.get(kind, f"a {kind.__name__}"))
    return value


def _all(way: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    made = []
    for index, value in enumerate(values):
        try:
            made.append(way(value))
        except FormError as error:
            raise error.inside(index) from None
    return made
