"""The witness's section: a folder or etcd, and what of it both nodes must agree on."""

import re
from pathlib import Path

import pytest

from coloha.config import EtcdWitness, PairConfig, changed_settings

from .support import ETCD, PAIR, edit, load_pair, refuse_pair, write

ENDPOINTS = "[https://10.9.0.1:2379, https://10.9.0.2:2379, https://10.9.0.3:2379]"
SECURITY = ETCD[ETCD.index("  user:") :]


def witness(text: str) -> str:
    return PAIR[: PAIR.index("witness:")] + text


def etcd(text: str) -> str:
    return witness("witness:\n  type: etcd\n" + text)


def section(pair: PairConfig) -> EtcdWitness:
    assert isinstance(pair.witness, EtcdWitness)
    return pair.witness


def test_the_kinds(tmp_path: Path) -> None:
    other = "witness:\n  endpoints: []\n  type: zookeeper\n"
    unknown = ("15:3: witness", "unknown type 'zookeeper': use file, etcd")
    refuse_pair(tmp_path, witness(other), unknown)
    none = "witness:\n  directory: /srv\n"
    refuse_pair(tmp_path, witness(none), ("15:3: witness", "has no type: add the key 'type'"))
    refuse_pair(tmp_path, witness("witness:\n"), ("14:9: witness", "is empty: indent its keys"))


def test_a_broken_folder(tmp_path: Path) -> None:
    refuse_pair(
        tmp_path,
        witness("witness:\n  type: file\n  file: x\n  directory: srv\n  timeout: 31s\n"),
        ("16:3: witness.file", "unknown key 'file': use type, directory, timeout"),
        ("17:14: witness.directory", "'srv' is relative: write an absolute path"),
        ("18:12: witness.timeout", "31s is out of range: write 100ms to 30s"),
    )


def test_etcd_with_everything(tmp_path: Path) -> None:
    found = section(load_pair(tmp_path, ETCD + "  prefix: /ha/\n  timeout: 5s\n"))
    assert found.endpoints == tuple(f"https://10.9.0.{number}:2379" for number in (1, 2, 3))
    assert (found.prefix, found.timeout, found.user) == ("/ha/", 5.0, "coloha")
    key = tmp_path / "pairs.d" / "../key"
    assert found.password_file == found.ca_file == found.cert_file == found.key_file == key


def test_etcd_with_little(tmp_path: Path) -> None:
    found = section(load_pair(tmp_path, etcd("  endpoints: ['http://[fd00::1]:2379']\n")))
    assert found.endpoints == ("http://[fd00::1]:2379",)
    assert (found.prefix, found.timeout, found.user) == ("/coloha/", 3.0, None)


def test_broken_endpoints(tmp_path: Path) -> None:
    endpoints = (
        "  endpoints:\n    - http://etcd1:2379\n    - 10.9.0.1:2379\n    - http://10.9.0.1\n"
        "    - http://10.9.0.1:2379/v3\n    - http://me:secret@10.9.0.1:2379\n"
        "    - ftp://10.9.0.1:2379\n    - http://0.0.0.0:2379\n    - 7\n"
    )
    wanted = "write it like http://10.9.0.3:2379"
    refuse_pair(
        tmp_path,
        etcd(endpoints),
        ("17:7: witness.endpoints[0]", "'etcd1'", "numeric IP address", "DNS"),
        ("18:7: witness.endpoints[1]", "'10.9.0.1:2379' is not a URL of etcd", wanted),
        ("19:7: witness.endpoints[2]", "has no port"),
        ("20:7: witness.endpoints[3]", wanted),
        ("21:7: witness.endpoints[4]", wanted),
        ("22:7: witness.endpoints[5]", wanted),
        ("23:7: witness.endpoints[6]", "is no address to connect to"),
        ("24:7: witness.endpoints[7]", "must be text, not 7"),
    )


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        ("[]", "must have at least 1 entry: add some"),
        ("http://10.9.0.1:2379", "must be a list"),
        ("[http://10.9.0.1:1, http://10.9.0.1:1]", "http://10.9.0.1:1 is there twice"),
        ("[http://10.9.0.1:1, https://10.9.0.2:1]", "http and https are mixed"),
        (f"[{', '.join(f'http://10.9.0.1:{n}' for n in range(1, 11))}]", "at most 9 entries"),
    ],
)
def test_a_broken_list_of_endpoints(tmp_path: Path, endpoints: str, words: str) -> None:
    text = etcd(f"  endpoints: {endpoints}\n")
    refuse_pair(tmp_path, text, ("16:14: witness.endpoints", words))


@pytest.mark.parametrize("prefix", ["''", "coloha", "/colo ha/", "/ä/", f"/{'x' * 127}/"])
def test_a_broken_prefix(tmp_path: Path, prefix: str) -> None:
    text = etcd(f"  endpoints: [http://10.9.0.1:2379]\n  prefix: {prefix}\n")
    refuse_pair(tmp_path, text, ("17:11: witness.prefix", "is not a prefix of keys", "at the end"))


def test_what_belongs_together(tmp_path: Path) -> None:
    secure = f"  endpoints: {ENDPOINTS}\n"
    refuse_pair(
        tmp_path,
        etcd(secure + "  password_file: ../key\n  key_file: ../key\n"),
        ("17:18: witness.password_file", "means nothing without user"),
        ("18:13: witness.key_file", "means nothing without cert_file"),
    )
    refuse_pair(
        tmp_path,
        etcd(secure + "  user: coloha\n  cert_file: ../key\n"),
        ("15:3: witness", "cert_file has no key: add key_file, or remove cert_file"),
        ("15:3: witness", "user has no password: add password_file, or remove user"),
    )
    refuse_pair(
        tmp_path,
        etcd(edit(secure, ENDPOINTS, "[http://10.9.0.1:2379]") + SECURITY),
        ("19:12: witness.ca_file", "means nothing with http"),
        ("20:14: witness.cert_file", "means nothing with http"),
    )


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    """What is wrong with one setting says nothing about those that belong to it."""
    text = edit(edit(ETCD, "user: coloha", "user: ''"), "cert_file: ../key", "cert_file: nowhere")
    refuse_pair(
        tmp_path,
        edit(text, "[https://10.9.0.1:2379", "[https://one:2379"),
        ("16:15: witness.endpoints[0]", "numeric IP address"),
        ("17:9: witness.user", "'' is not a user"),
        ("20:14: witness.cert_file", "No such file or directory"),
    )


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", b"\xff\xfe\x00", b"x" * 1025])
def test_a_broken_password(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"pairs.d/password": content})
    (tmp_path / "pairs.d/password").chmod(0o600)
    text = edit(ETCD, "password_file: ../key", "password_file: password")
    refuse_pair(tmp_path, text, ("18:18: witness.password_file", "password"))


@pytest.mark.parametrize("name", ["password_file", "key_file"])
def test_secrets_are_for_their_owner(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"pairs.d/secret": "secret"})
    (tmp_path / "pairs.d/secret").chmod(0o640)
    text = edit(ETCD, f"{name}: ../key", f"{name}: secret")
    line = 18 if name == "password_file" else 21
    column = len(f"  {name}: ") + 1
    place = f"{line}:{column}: witness.{name}"
    refuse_pair(tmp_path, text, (place, "open to others (mode 0640): run chmod 600"))


@pytest.mark.parametrize(
    ("old", "new", "path", "shared"),
    [
        ("user", "prefix: /ha/\n  user", "witness.prefix", True),
        ("https://10.9.0.2:2379, ", "", "witness.endpoints", False),
        ("user", "timeout: 4s\n  user", "witness.timeout", False),
        ("user: coloha", "user: alpha", "witness.user", False),
        ("password_file: ../key", "password_file: other", "witness.password_file", False),
        ("ca_file: ../key", "ca_file: other", "witness.ca_file", False),
        ("cert_file: ../key", "cert_file: other", "witness.cert_file", False),
        ("key_file: ../key", "key_file: other", "witness.key_file", False),
    ],
)
def test_what_both_nodes_agree_on(
    tmp_path: Path, old: str, new: str, path: str, shared: bool
) -> None:
    write(tmp_path, {"pairs.d/other": "secret"})
    (tmp_path / "pairs.d/other").chmod(0o600)
    before, after = load_pair(tmp_path, ETCD), load_pair(tmp_path, replaced(old, new))
    assert changed_settings(before, after) == [path]
    assert (before.fingerprint() != after.fingerprint()) == shared


def replaced(old: str, new: str) -> str:
    """The pair with `old`, where it begins a line's text or item, replaced once."""
    text, count = re.subn(rf"(?m)(^ *|, )\b{re.escape(old)}", rf"\g<1>{new}", ETCD, count=1)
    assert count == 1
    return text


def test_the_kind_is_agreed_on(tmp_path: Path) -> None:
    folder, cluster = load_pair(tmp_path, PAIR), load_pair(tmp_path, ETCD)
    assert changed_settings(folder, cluster) == ["witness"]
    assert folder.fingerprint() != cluster.fingerprint()
