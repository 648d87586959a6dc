"""The Dockerfile: a linter's opinion, what it copies, and that its steps are understood."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.image import DOCKERFILE, Builder, Step, copied, ignored, read
from lab.namespace import CHECKOUT, LabError

TEXT = DOCKERFILE.read_text()
STEPS = list(read(TEXT))
HADOLINT = Path(sys.executable).with_name("hadolint")


def linted(text: str) -> subprocess.CompletedProcess[str]:
    argv = [
        str(HADOLINT),
        "--no-color",
        "--require-label",
        "org.opencontainers.image.title:text",
        "-",
    ]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)


def test_the_linter_finds_nothing() -> None:
    assert linted(TEXT).returncode == 0, linted(TEXT).stdout


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("debian:trixie-slim\n", "debian\n", "DL3006"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ('ENTRYPOINT ["coloha"]', "ENTRYPOINT coloha", "DL3025"),
        ("USER 10001", "USER root", "DL3002"),
    ],
)
def test_the_linter_would_find(good: str, bad: str, rule: str) -> None:
    assert good in TEXT
    found = linted(TEXT.replace(good, bad))
    assert found.returncode != 0
    assert rule in found.stdout


def test_what_is_copied_is_not_ignored() -> None:
    ignore = (CHECKOUT / ".dockerignore").read_text()
    sources = [name for step in STEPS if step.word == "COPY" and not copied(step)[0]
               for name in copied(step)[1]]  # fmt: skip
    assert len(sources) >= 5
    for name in sources:
        assert (CHECKOUT / name).exists()
        assert not ignored(ignore, name), name
    assert ignored(ignore, ".git")
    assert ignored(ignore, ".cache")


def test_every_instruction_is_known_to_the_lab() -> None:
    for step in STEPS:
        assert hasattr(Builder, f"_{step.word.lower()}"), step
    with pytest.raises(LabError, match="line 1: ONBUILD is not known"):
        Builder(Path()).build([Step(1, "ONBUILD", "RUN x")])


def test_lines_are_joined_and_comments_are_not() -> None:
    text = "FROM a\n# no\nRUN one \\\n  # no\n  && two\nUSER 1\n"
    steps = [Step(1, "FROM", "a"), Step(3, "RUN", "one && two"), Step(6, "USER", "1")]
    assert list(read(text)) == steps
    with pytest.raises(LabError, match="continued"):
        list(read("RUN one \\\n"))


def test_it_needs_no_registry_but_the_bases() -> None:
    assert not re.findall(r"https?://", TEXT)
    assert {step.rest.split()[0] for step in STEPS if step.word == "FROM"} == {"debian:trixie-slim"}


def test_it_is_not_root_and_its_commands_have_no_shell() -> None:
    last = {step.word: step.rest for step in STEPS}
    assert last["USER"].isdecimal()
    assert last["USER"] in next(step.rest for step in STEPS if "useradd" in step.rest)
    for word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert last[word].rpartition("[")[1], word
