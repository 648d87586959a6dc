"""The examples, the schemas and the reference say what the models say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from coloha.config import (
    Checkpoint,
    FenceAgent,
    Heartbeat,
    Hook,
    HostConfig,
    Mqtt,
    PairConfig,
    Recovery,
    Watchdog,
    load,
    reference,
    schema,
)
from coloha.config.section import Section, type_of
from coloha.config.settings import all_sections

from .support import KEY, edit, write

ROOT = Path(__file__).parents[2]
EXAMPLES: dict[type[Section], Path] = {
    HostConfig: ROOT / "etc/coloha.yaml",
    PairConfig: ROOT / "etc/pairs.d/example.yaml",
}


_PAIR_EXAMPLE = EXAMPLES[PairConfig].read_text()
FOLDER = _PAIR_EXAMPLE[
    _PAIR_EXAMPLE.index("\n  type: file") : _PAIR_EXAMPLE.index("\n\n  # Or an etcd")
]
_COMMENTED = _PAIR_EXAMPLE[
    _PAIR_EXAMPLE.index("  # type: etcd") : _PAIR_EXAMPLE.index("\n  # Or none")
]
CLUSTER = "\n" + re.sub(r"(?m)^  # ([a-z_]+:|  - )", r"  \1", _COMMENTED)
"""The example's two witnesses: the one that it has, and the one in its comments."""


_HOST_EXAMPLE = EXAMPLES[HostConfig].read_text()
_AGENT = _HOST_EXAMPLE[_HOST_EXAMPLE.index("# fencing:") : _HOST_EXAMPLE.index("\n# An MQTT")]
AGENT = re.sub(r"(?m)^( *)# ([a-z_]+:)", r"\1\2", _AGENT)
"""What the host example says of fencing, in its comments and out of them."""


_TELLERS = _HOST_EXAMPLE[_HOST_EXAMPLE.index("# mqtt:") : _HOST_EXAMPLE.index("\n# What resets")]
TELLERS = re.sub(r"(?m)^( *)# ([a-z_]+:)", r"\1\2", _TELLERS)
"""What it says of MQTT and hooks, likewise."""


def example(folder: Path, replace: tuple[str, str] | None = None) -> Path:
    """Copy the examples, with a key and stand-ins for the files that they name."""
    pair = EXAMPLES[PairConfig].read_text()
    files = {
        "coloha.yaml": EXAMPLES[HostConfig].read_text(),
        "pairs.d/example.yaml": edit(pair, *replace) if replace else pair,
        "key": KEY,
        "ipmi-password": "secret",
        "mqtt-password": "secret",
        "mqtt-ca.pem": "",
        "mqtt-node.pem": "",
        "mqtt-node.key": "",
        "pairs.d/vmlinuz": "",
        "pairs.d/initrd.img": "",
        "pairs.d/OVMF.fd": "",
        "pairs.d/disk.qcow2": "",
        "pairs.d/etcd-password": "secret",
        "pairs.d/etcd-ca.pem": "",
        "pairs.d/etcd-node.pem": "",
        "pairs.d/etcd-node.key": "",
    }
    host_file = write(folder, files)
    secrets = ["ipmi-password", "mqtt-password", "mqtt-node.key"]
    for name in (*secrets, "pairs.d/etcd-password", "pairs.d/etcd-node.key"):
        (folder / name).chmod(0o600)
    (folder / "pairs.d/web.yaml").unlink()
    return host_file


def test_examples_load_with_defaults(tmp_path: Path) -> None:
    config = load(example(tmp_path))
    (pair,) = config.pairs
    assert pair.checkpoint == Checkpoint()
    assert pair.heartbeat == Heartbeat()
    assert pair.recovery == Recovery()
    assert config.host.watchdog == Watchdog()
    changed = {"node", "listen", "key_file", "pairs_directory", "watchdog"}
    fields = HostConfig.model_fields.items()
    defaults = {name: info.default for name, info in fields if name not in changed}
    assert {name: getattr(config.host, name) for name in defaults} == defaults
    changed = {"memory", "kernel", "initrd", "append", "nics", "disks", "extra_arguments"}
    defaults = {n: i.default for n, i in type(pair.vm).model_fields.items() if n not in changed}
    assert {name: getattr(pair.vm, name) for name in defaults} == defaults


@pytest.mark.parametrize(
    "replace",
    [
        ("  # cpu: ", "  cpu: "),
        ("      bridge: br0", "      tap: tap-example"),
        (
            "  kernel: vmlinuz\n  initrd: initrd.img\n  append: console=ttyS0",
            "  firmware: OVMF.fd",
        ),
        (FOLDER, CLUSTER),
        (FOLDER, "\n  type: none\n  on_silence: hold"),
    ],
)
def test_alternatives_in_the_example_load(tmp_path: Path, replace: tuple[str, str]) -> None:
    assert load(example(tmp_path, replace)).pairs


def test_the_agent_in_the_example_loads(tmp_path: Path) -> None:
    host_file = example(tmp_path, ("fencing: none", "fencing: required"))
    host_file.write_text(edit(host_file.read_text(), _AGENT, AGENT))
    agent = load(host_file).host.fencing["beta"]
    assert agent.parameters == {"ip": "10.8.0.2", "username": "coloha", "lanplus": "1"}
    assert agent.model_dump(exclude={"parameters", "password_file"}) == FenceAgent(
        agent="fence_ipmilan"
    ).model_dump(exclude={"parameters", "password_file"})


def test_the_tellers_in_the_example_load(tmp_path: Path) -> None:
    host_file = example(tmp_path)
    host_file.write_text(edit(host_file.read_text(), _TELLERS, TELLERS))
    host = load(host_file).host
    assert host.mqtt is not None
    assert host.mqtt.client_id == f"coloha-{host.node}"
    defaults = Mqtt(broker="mqtts://broker.example.org")
    kept = {"broker", "topic", "keepalive", "queue"}
    assert host.mqtt.model_dump(include=kept) == defaults.model_dump(include=kept)
    assert host.hooks["page"].on == ("failover", "unprotected", "error")
    assert host.hooks["page"].timeout == Hook(on=("any",), program="page").timeout


@pytest.mark.parametrize("root", EXAMPLES)
def test_examples_have_every_key(root: type[Section]) -> None:
    text = EXAMPLES[root].read_text()
    for path, section in all_sections(root):
        for name in section.model_fields:
            found = re.search(rf"^ *(?:# |- )?{name}:(?: |$)", text, re.MULTILINE)
            assert found, f"{path}.{name} is not in {EXAMPLES[root].name}"


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=lambda path: path.name)
def test_examples_name_their_schema(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = json.loads((path.parent / first.split("=")[1]).read_text())
    assert named == (schema.host_schema() if path.name == "coloha.yaml" else schema.pair_schema())


def test_generated_files_are_current() -> None:
    stale = [str(path) for path, text in reference.files(ROOT) if path.read_text() != text]
    assert not stale, "run python -m coloha.config.reference --write"


def test_write_makes_what_check_wants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert reference.main(root) == 1
    assert "configuration.md is out of date: run with --write" in capsys.readouterr().err
    assert reference.main([*root, "--write"]) == 0
    assert reference.main(root) == 0
    (tmp_path / "etc/schema/pair.schema.json").write_text("{}")
    assert reference.main(root) == 1
    assert "pair.schema.json" in capsys.readouterr().err


def properties(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for holder in (part, *part.get("$defs", {}).values()):
        assert holder["additionalProperties"] is False
        yield from holder["properties"].items()


@pytest.mark.parametrize("make", [schema.host_schema, schema.pair_schema])
def test_schema_describes_every_key(make: Any) -> None:
    made = make()
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for name, field in properties(made):
        assert len(field["description"]) > 15, name
        assert field["description"].endswith("."), name
        for pattern in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(field)):
            assert json.loads(pattern).startswith("^")
        if "pattern" in field:
            for value in (*field.get("examples", ()), field.get("default")):
                assert value is None or re.search(field["pattern"], value), (name, value)


def test_schema_has_defaults_ranges_and_live() -> None:
    made = schema.pair_schema()["$defs"]
    period = made["Checkpoint"]["properties"]["period"]
    assert period["type"] == "string"
    assert period["default"] == "50ms"
    assert period["live"] is True
    assert "From 5ms to 2s." in period["description"]
    assert "reload" in period["description"]
    assert made["Vm"]["properties"]["memory"]["type"] == "string"
    assert (made["Vm"]["properties"]["cpus"]["maximum"]) == 255
    assert made["Nic"]["properties"]["model"]["default"] == "virtio-net-pci"
    assert sum("live" in field for _, field in properties(schema.pair_schema())) == 1


def test_reference_has_every_key_default_and_range() -> None:
    text = reference.render()
    for root in EXAMPLES:
        for path, section in all_sections(root):
            title = "## Host file" if root is HostConfig else "## Pair file"
            kind = f" of `type: {type_of(section)}`" if "type" in section.model_fields else ""
            part = text[text.index(f"\n### `{path}`{kind}\n" if path else f"\n{title}") :]
            for name, info in section.model_fields.items():
                row = next(line for line in part.splitlines() if line.startswith(f"| `{name}` |"))
                assert len(re.findall(r"(?<!\\)\|", row)) == 7, row
                assert (info.description or "?").replace("|", "\\|") in row
    assert "| `period` | duration | `50ms` | 5ms to 2s | live |" in text
    assert "| `misses` | whole number | `5` | 3 to 100 | restart |" in text
    assert "| `memory` | size | required | 16MiB to 16TiB | restart |" in text
    assert "| `nodes` | sections | required | exactly 2 |" in text
    assert text.count("| live |") == 1


def test_every_model_is_strict_and_frozen() -> None:
    for root in EXAMPLES:
        for _, section in all_sections(root):
            assert issubclass(section, BaseModel)
            assert section.model_config["frozen"]
            assert section.model_config["extra"] == "forbid"
