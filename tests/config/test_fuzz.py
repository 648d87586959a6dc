"""No file, however strange, makes anything but a configuration or a ConfigError."""

import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coloha.config import Config, load
from coloha.errors import ConfigError, Problem

from .support import ETCD, HOST, PAIR, write

RELAXED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = st.sampled_from(
    [
        *("node", "listen", "channel", "heartbeat", "key_file", "metrics", "event_loop", "pair"),
        *("pairs_directory", "runtime_directory", "state_directory", "nodes", "alpha", "beta"),
        *("first_primary", "vm", "qemu", "machine", "memory", "kernel", "initrd", "append", "cpu"),
        *("firmware", "nics", "mac", "bridge", "tap", "model", "extra_arguments", "checkpoint"),
        *("period", "stall_timeout", "interval", "misses", "witness", "type", "directory", "file"),
        *("timeout", "recovery", "retry_max", "cold_start_after", "[key]", "<<", "", "etcd"),
        *("endpoints", "prefix", "user", "password_file", "ca_file", "cert_file", "key_file"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            *("alpha", "beta", "web", "10.9.0.1:7770", "10.9.0.2:7771", "[::]:1", "50ms", "1h"),
            *(
                "http://10.9.0.3:2379",
                "128MiB",
                "key",
                "/srv",
                "file",
                "etcd",
                "kvm",
                "tap0",
                "52:54:00:12:34:56",
                "-m",
            ),
            *(".", "..", "/dev/null", "a/b", "\0", "\ud800", "9" * 5000, "1" + "0" * 30 + "s"),
        ]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=15,
)
SECTIONS = st.dictionaries(KEYS, TREES, max_size=8)


def load_or_refuse(host: str | bytes, pair: str | bytes) -> Config | list[Problem]:
    with tempfile.TemporaryDirectory() as folder:
        host_file = write(Path(folder), {"coloha.yaml": host, "pairs.d/web.yaml": pair})
        try:
            return load(host_file)
        except ConfigError as error:
            problems = error.problems
    assert problems
    for problem in problems:
        assert problem.message
        assert problem.line >= 0
        assert "\n" not in str(problem)
    return problems


@RELAXED
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes(host: bytes, pair: bytes) -> None:
    load_or_refuse(host, pair)


@RELAXED
@given(st.text(max_size=200))
@example('pair: "\\UFFFFFFFF"')
@example('pair: "\\ud800"')
@example("pair: !<%ff> x")
@example("%TAG ! tag:x,2000:\n---\npair: !x y")
@example("- - - ? - a")
@example("? ? ?")
@example("a: 1e999")
@example("a: " + "9" * 5000)
def test_any_text(text: str) -> None:
    load_or_refuse(text.encode("utf-8", "surrogatepass"), PAIR)
    load_or_refuse(HOST, text.encode("utf-8", "surrogatepass"))


@RELAXED
@given(st.text(alphabet="a:-?[]{}&*!|>'\"%@`#, \n\t~<\\x0", max_size=80))
def test_any_punctuation(text: str) -> None:
    load_or_refuse(text, text)


@RELAXED
@given(SECTIONS, SECTIONS)
def test_any_tree(host: dict[str, object], pair: dict[str, object]) -> None:
    load_or_refuse(yaml.safe_dump(host), yaml.safe_dump(pair))


@RELAXED
@given(st.data())
def test_any_value_in_a_good_file(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([HOST, PAIR, ETCD]))
    tree = yaml.load(text, yaml.BaseLoader)
    part = tree
    while True:
        keys = sorted(part) if isinstance(part, dict) else range(len(part))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(part[key], dict | list) or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = data.draw(TREES)
    changed = yaml.safe_dump(tree, sort_keys=False)
    load_or_refuse(*((changed, PAIR) if text == HOST else (HOST, changed)))


@RELAXED
@given(st.sampled_from([HOST, PAIR, ETCD]), st.data())
def test_a_damaged_file(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 20)))
    changed = raw[:start] + data.draw(st.binary(max_size=8)) + raw[end:]
    load_or_refuse(*((changed, PAIR) if text == HOST else (HOST, changed)))
