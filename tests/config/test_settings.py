"""How locations that pydantic reports become paths in a file."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from coloha.config.messages import validate
from coloha.config.model import NodeAddresses, PairConfig, Vm
from coloha.config.nic import Nic
from coloha.config.section import Section
from coloha.config.settings import all_sections, locate
from coloha.config.source import KeyPath, dotted, read


class First(Section):
    """One kind."""

    type: Literal["first"]
    size: int


class Second(Section):
    """Another kind."""

    type: Literal["second"]
    place: str


class Holder(Section):
    """Holds either kind."""

    thing: Annotated[First | Second, Field(discriminator="type")]


def problems(folder: Path, text: str) -> list[str]:
    file = folder / "file.yaml"
    file.write_text(text)
    found = validate(Holder, read(file), folder)[1]
    return [str(problem).removeprefix(f"{file}:") for problem in found]


def test_a_union_of_two_takes_the_named_member(tmp_path: Path) -> None:
    first = Holder(thing={"type": "first", "size": 1}).thing
    second = Holder(thing={"type": "second", "place": "x"}).thing
    assert (type(first), type(second)) == (First, Second)
    assert problems(tmp_path, "thing: {type: secnd, place: 1}") == [
        "1:8: thing: unknown type 'secnd', did you mean 'second'?"
    ]
    assert problems(tmp_path, "thing: {type: second, plce: x, second: 1}") == [
        "1:8: thing.place: missing: add this key",
        "1:23: thing.plce: unknown key 'plce', did you mean 'place'?",
        "1:32: thing.second: unknown key 'second': use type, place",
    ]


def test_a_union_of_two_is_described() -> None:
    assert [section for _, section in all_sections(Holder)] == [Holder, First, Second]
    thing = Holder.model_json_schema()["properties"]["thing"]
    assert len(thing["oneOf"]) == 2


@pytest.mark.parametrize(
    ("location", "path", "around"),
    [
        (("vm",), ("vm",), PairConfig),
        (("vm", "memory"), ("vm", "memory"), Vm),
        (("vm", "nics", 0), ("vm", "nics", 0), None),
        (("vm", "nics", 0, "mac"), ("vm", "nics", 0, "mac"), Nic),
        (("nodes", "Bad", "[key]"), ("nodes", "Bad"), None),
        (("nodes", "vm", "vm"), ("nodes", "vm", "vm"), NodeAddresses),
        (("witness", "file", "file"), ("witness", "file"), None),
        (("unknown", "deeper"), ("unknown", "deeper"), None),
    ],
)
def test_locate(location: KeyPath, path: KeyPath, around: type[Section] | None) -> None:
    found, section = locate(PairConfig, location)
    assert found == path
    if location[0] == "witness":
        assert section is not None
        assert "directory" in section.model_fields
    else:
        assert section is around


def test_dotted() -> None:
    assert dotted(("vm", "nics", 0, "mac")) == "vm.nics[0].mac"
    assert dotted(("nodes", "a.b", "")) == "nodes.'a.b'.''"
    assert dotted(()) == ""
