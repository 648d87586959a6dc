"""Files whose YAML is broken, or uses what is refused."""

from pathlib import Path

import pytest

from .support import HOST, PAIR, edit, problems_of, refuse_pair, write


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "1:1", ("is empty", "docs/configuration.md")),
        ("# only a comment\n---\n", "1:1", ("is empty",)),
        ("null\n", "1:1", ("is empty",)),
        ("- a\n", "1:1", ("'key: value'",)),
        ("just text\n", "1:1", ("'key: value'",)),
        ("pair: web\n\tvm: x\n", "2:1", ("not valid YAML", "spaces, not with tabs")),
        ("pair: web\nvm: a: b\n", "2:6", ("not valid YAML", "check the indentation")),
        ("pair: 'web\n", "2:1", ("not valid YAML", "close the quotes")),
        ("pair: web\nvm: [1, 2\n", "3:1", ("not valid YAML", "expected ',' or ']'")),
        ("pair: web\nvm\n", "3:1", ("not valid YAML", "'key: value'")),
        ("a:\n  b: 1\n c: 2\n", "3:2", ("not valid YAML", "indentation")),
        ("pair: @web\n", "1:7", ("not valid YAML", "quotes")),
        ("a: [fd00::1]:7770\n", "1:13", ("IPv6 address in quotes", "'[fd00::1]:7770'")),
        ("a: {b: [::]:1}\n", "1:9", ("IPv6 address in quotes",)),
        ('a: "\\UFFFFFFFF"\n', "1:7", ("not valid YAML", "escape")),
        ("pair: web\na: \x07\n", "2:4", ("'\\x07' cannot be in YAML",)),
        (b"pair: web\nvm: \xc3\xa9\xff\n", "2:6", ("byte 0xff is not UTF-8", "save it")),
        (b"\xef\xbb\xbfpair: \xff\n", "1:7", ("byte 0xff is not UTF-8",)),
        ("pair: web\n".encode("utf-16"), "1:1", ("is not UTF-8",)),
        ("[" * 5000, "1:17", ("deeper than 16 levels",)),
        ("a: " + "{b: " * 5000, "1:61", ("deeper than 16 levels",)),
        ("- " * 5000, "1:33", ("deeper than 16 levels",)),
        ("%YAML 2.0\n---\na: b\n", "1:1", ("not valid YAML",)),
    ],
)
def test_broken_form(tmp_path: Path, text: str | bytes, place: str, words: tuple[str]) -> None:
    problems = problems_of(write(tmp_path, {"pairs.d/web.yaml": text}))
    assert len(problems) == 1
    start = f"pairs.d/web.yaml:{place}: "
    assert problems[0].startswith(start), problems
    assert all(word in problems[0] for word in words), problems


def test_two_documents(tmp_path: Path) -> None:
    text = PAIR.replace("memory: 128MiB", "memory: 1") + "---\npair: app\n"
    refuse_pair(
        tmp_path,
        text,
        ("10:11: vm.memory", "1 has no unit"),
        ("17:1", "a second document starts here"),
    )


def test_aliases_anchors_tags_merges(tmp_path: Path) -> None:
    text = edit(PAIR, "pair: web", "pair: !name web")
    text = edit(text, "memory: 128MiB", "memory: &size 128MiB\n  cpus: *size\n  <<: *size")
    text = edit(text, "    - mac", "    - *nic\n    - &nic\n      mac")
    text = edit(text, "type: file", "type: !!str file")
    refuse_pair(
        tmp_path,
        text,
        ("1:7: pair", "tag '!name': remove it"),
        ("10:11: vm.memory", "anchor &size: remove it"),
        ("11:9: vm.cpus", "alias *size: write the value out"),
        ("12:3: vm", "merge key <<: write the keys out"),
        ("12:7", "alias *size"),
        ("14:7: vm.nics[0]", "alias *nic"),
        ("15:7: vm.nics[1]", "anchor &nic"),
        ("19:9: witness.type", "tag '!!str'"),
    )


def test_alias_bomb(tmp_path: Path) -> None:
    bomb = ["a0: &a0 [x, x]\n"]
    bomb += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)]
    problems = problems_of(write(tmp_path, {"coloha.yaml": HOST + "".join(bomb)}))
    assert len(problems) == 40 + 2 * 39 + 40
    assert problems[0].startswith("coloha.yaml:6:1: a0: unknown key 'a0'")
    assert problems[-1].startswith("coloha.yaml:45:18: a39[1]: alias *a38: write the value out")


def test_keys_that_are_no_text(tmp_path: Path) -> None:
    text = PAIR + "1: a\ntrue: b\n? [x]\n: c\n? \n: d\n!x y: z\n"
    refuse_pair(
        tmp_path,
        text,
        ("17:1", "a key must be text, not 1: put it in quotes"),
        ("18:1", "a key must be text, not true"),
        ("19:3", "a key must be text, not a list"),
        ("21:2", "a key must be text, not nothing"),
        ("23:1", "tag '!x'"),
    )


def test_characters_that_no_path_can_have(tmp_path: Path) -> None:
    refuse_pair(
        tmp_path,
        edit(PAIR, "/srv/witness", '"/srv/\\ud800"') + '"\\0": 1\n',
        ("16:14: witness.directory", "holds the character '\\ud800': remove it"),
        ("17:1", "a key must be text, not '\\x00'"),
    )


def test_byte_order_mark_takes_no_column(tmp_path: Path) -> None:
    refuse_pair(
        tmp_path,
        "\ufeff" + edit(PAIR, "pair: web", "pair: Web"),
        ("1:7: pair", "'Web' is not a name"),
    )
