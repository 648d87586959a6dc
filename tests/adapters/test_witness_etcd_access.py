"""etcd that lets not everybody in: users and passwords, certificates and those that signed them."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coloha.adapters.witness_etcd import EtcdWitness
from lab.etcd import EtcdCluster
from tests.adapters.authority import Authority
from tests.adapters.etcd_support import (
    PROTECTED,
    SOLO,
    Proxy,
    dropped,
    failure,
    gateway,
    loopback,
    opened,
    passes,
    says,
    text,
)
from tests.adapters.support import PATIENCE_S, Runner

SHORT_S = 3.0
PASSWORDS = {"root": "top", "coloha": "sesame", "reader": "look", "stranger": "hello"}


def grant(endpoint: str, token: str, role: str, kind: str) -> None:
    permission = {"permType": kind, "key": text("/coloha/"), "range_end": text("/coloha0")}
    ask(endpoint, token, "role/grant", name=role, perm=permission)


def ask(endpoint: str, token: str, path: str, **body: Any) -> dict[str, Any]:
    return gateway(endpoint, f"auth/{path}", token=token, **body)


def token_of(endpoint: str, user: str) -> str:
    reply = gateway(endpoint, "auth/authenticate", name=user, password=PASSWORDS[user])
    return str(reply["token"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member with authentication, a role that may write and one that may read."""
    folder = tmp_path_factory.mktemp("guarded")
    with loopback(folder, arguments=["--auth-token-ttl", "300"]) as cluster:
        endpoint = cluster.endpoints[0]
        for user, password in PASSWORDS.items():
            ask(endpoint, "", "user/add", name=user, password=password)
        for role, kind in (("writer", "READWRITE"), ("looker", "READ")):
            ask(endpoint, "", "role/add", name=role)
            grant(endpoint, "", role, kind)
        ask(endpoint, "", "role/add", name="root")
        for user, role in (("root", "root"), ("coloha", "writer"), ("reader", "looker")):
            ask(endpoint, "", "user/grant", user=user, role=role)
        ask(endpoint, "", "enable")
        yield cluster


@pytest.fixture
def passwords(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Settings of each user."""
    for user, password in PASSWORDS.items():
        (tmp_path / user).write_text(f"{password}\n")
        (tmp_path / user).chmod(0o600)
    return {user: {"user": user, "password_file": tmp_path / user} for user in PASSWORDS}


Users = dict[str, dict[str, Any]]


def test_with_the_right_password_all_is_well(
    run: Runner, guarded: EtcdCluster, pair: str, passwords: Users
) -> None:
    async def main() -> None:
        async with opened(guarded.endpoints, **passwords["coloha"]) as witness:
            # All at once, and none of them has a token.
            await asyncio.gather(*(witness.read(f"{pair}-{number}") for number in range(10)))
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            assert await witness.read(pair) == SOLO
            await witness.probe(pair)

    run(main())


def test_a_wrong_password_is_told_and_not_shown(
    run: Runner, guarded: EtcdCluster, pair: str, passwords: Users
) -> None:
    file: Path = passwords["coloha"]["password_file"]

    async def main() -> None:
        async with opened(guarded.endpoints, **passwords["coloha"]) as witness:
            file.write_text("open-up")
            for call in (
                witness.read(pair),
                witness.swap(pair, None, SOLO, "alpha"),
                witness.probe(pair),
            ):
                error = await failure(call)
                assert str(error).startswith(f"{guarded.endpoints[0]}: it says 'etcdserver: ")
                assert "correct witness.user or the password file" in str(error)
                assert "open-up" not in str(error)
                assert not error.unknown
            file.write_text(PASSWORDS["coloha"])  # it is read again: no restart is needed
            assert await witness.read(pair) is None
            file.unlink()
            assert await witness.read(pair) is None  # the token will do

    run(main())


def test_a_password_file_that_is_gone_is_told(
    guarded: EtcdCluster, pair: str, passwords: Users
) -> None:
    passwords["coloha"]["password_file"].unlink()

    async def main() -> None:
        async with opened(guarded.endpoints, **passwords["coloha"]) as witness:
            error = await failure(witness.read(pair))
            assert "cannot be used (No such file or directory): create it" in str(error)

    asyncio.run(main())


def test_without_a_user_one_is_asked_for(guarded: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with opened(guarded.endpoints) as witness:
            for call in (witness.read(pair), witness.swap(pair, None, SOLO, "alpha")):
                error = await failure(call)
                assert "set witness.user and witness.password_file" in str(error)
                assert not error.unknown

    asyncio.run(main())


def test_a_user_who_may_not_write_is_told_before_it_matters(
    guarded: EtcdCluster, pair: str, passwords: Users
) -> None:
    async def main() -> None:
        async with opened(guarded.endpoints, **passwords["reader"]) as witness:
            assert await witness.read(pair) is None
            for call in (witness.probe(pair), witness.swap(pair, None, SOLO, "alpha")):
                error = await failure(call)
                assert "grant witness.user readwrite on the prefix" in str(error)
                assert not error.unknown
        async with opened(guarded.endpoints, **passwords["stranger"]) as witness:
            assert "permission denied" in str(await failure(witness.read(pair)))

    asyncio.run(main())


def test_a_token_that_etcd_forgot_is_renewed(
    run: Runner, guarded: EtcdCluster, pair: str, passwords: Users
) -> None:
    endpoint = guarded.endpoints[0]

    def forget() -> None:
        """Set the same password: the user's tokens are void."""
        token = token_of(endpoint, "root")
        ask(endpoint, token, "user/changepw", name="coloha", password=PASSWORDS["coloha"])

    async def main() -> None:
        async with opened(guarded.endpoints, **passwords["coloha"]) as witness:
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            await asyncio.to_thread(forget)
            assert await witness.read(pair) == SOLO
            await asyncio.to_thread(forget)
            assert await witness.swap(pair, SOLO, PROTECTED, "alpha") == PROTECTED
            await asyncio.to_thread(grant, endpoint, token_of(endpoint, "root"), "looker", "READ")
            await witness.probe(pair)

    run(main())


def test_a_swap_under_an_old_token_is_no_doubt(
    guarded: EtcdCluster, pair: str, passwords: Users
) -> None:
    """etcd did not make it, and a new token is not to be had."""
    old = says(401, b'{"error": "etcdserver: invalid auth token", "code": 16}')

    async def main() -> None:
        settings = passwords["coloha"]
        async with (
            Proxy(guarded.endpoints[0]) as proxy,
            opened([proxy.url], SHORT_S, **settings) as witness,
        ):
            proxy.expect("txn", old, passes)
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            proxy.expect("txn", old, old)
            proxy.expect("authenticate", dropped, dropped)
            error = await failure(witness.swap(pair, SOLO, PROTECTED, "alpha"))
            assert not error.unknown

    asyncio.run(main())


def test_a_user_where_there_are_none_is_told(
    etcd: EtcdCluster, pair: str, passwords: Users
) -> None:
    async def main() -> None:
        async with opened(etcd.endpoints, **passwords["coloha"]) as witness:
            error = await failure(witness.read(pair))
            assert "run `etcdctl auth enable`, or remove witness.user" in str(error)

    asyncio.run(main())


# Certificates


class Secured:
    """One member that speaks TLS and wants certificates, and those that it accepts."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        server, key = ours.sign("server")
        self.ca, self.other_ca = ours.file, theirs.file
        self.node, self.stranger = ours.sign("node"), theirs.sign("stranger")
        self.arguments = [
            *("--cert-file", str(server), "--key-file", str(key)),
            *("--client-cert-auth", "--trusted-ca-file", str(ours.file)),
        ]

    def settings(self) -> dict[str, Any]:
        """What the witness needs to be let in."""
        certificate, key = self.node
        return {"ca_file": self.ca, "cert_file": certificate, "key_file": key}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return Secured(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    folder = tmp_path_factory.mktemp("tls")
    cluster = loopback(folder, scheme="https", arguments=secured.arguments)
    port = cluster.members[0].client
    # A second address, which its certificate does not name.
    both = f"https://127.0.0.1:{port},https://127.0.0.2:{port}"
    cluster.arguments += ["--listen-client-urls", both]
    with cluster:
        yield cluster


async def refused(witness: EtcdWitness, pair: str) -> str:
    """Why nothing can be asked."""
    read = await failure(witness.read(pair))
    swap = await failure(witness.swap(pair, None, SOLO, "alpha"))
    assert not read.unknown
    assert not swap.unknown
    return str(read)


def test_with_the_right_certificates_all_is_well(
    run: Runner, tls: EtcdCluster, secured: Secured, pair: str
) -> None:
    async def main() -> None:
        async with opened(tls.endpoints, **secured.settings()) as witness:
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            assert await witness.read(pair) == SOLO
            await witness.probe(pair)

    run(main())


def test_a_member_that_others_signed_is_not_believed(
    run: Runner, tls: EtcdCluster, secured: Secured, pair: str
) -> None:
    settings = secured.settings()

    async def main() -> None:
        for other in ({"ca_file": secured.other_ca}, {"ca_file": None}):
            async with opened(tls.endpoints, **{**settings, **other}) as witness:
                why = await refused(witness, pair)
                assert "its certificate is not accepted" in why
                assert "see that witness.ca_file signed it" in why

    run(main())


def test_a_member_of_another_name_is_not_believed(
    run: Runner, tls: EtcdCluster, secured: Secured, pair: str
) -> None:
    elsewhere = [tls.endpoints[0].replace("127.0.0.1", "127.0.0.2")]

    async def main() -> None:
        async with opened(elsewhere, **secured.settings()) as witness:
            assert "IP address mismatch" in await refused(witness, pair)

    run(main())


def test_who_shows_no_certificate_is_not_let_in(
    run: Runner, tls: EtcdCluster, secured: Secured, pair: str
) -> None:
    certificate, key = secured.stranger

    async def main() -> None:
        async with opened(tls.endpoints, SHORT_S, ca_file=secured.ca) as witness:
            assert "witness.cert_file" in await refused(witness, pair)
        strange = {"ca_file": secured.ca, "cert_file": certificate, "key_file": key}
        async with opened(tls.endpoints, SHORT_S, **strange) as witness:
            assert "witness.cert_file" in await refused(witness, pair)

    run(main())


def test_the_wrong_scheme_is_told(
    run: Runner, tls: EtcdCluster, etcd: EtcdCluster, secured: Secured, pair: str
) -> None:
    plain = [tls.endpoints[0].replace("https", "http")]
    secure = [etcd.endpoints[0].replace("http", "https")]

    async def main() -> None:
        async with opened(plain, SHORT_S) as witness:
            assert "https" in await refused(witness, pair)
        async with opened(secure, SHORT_S, **secured.settings()) as witness:
            assert "see that this endpoint speaks https" in await refused(witness, pair)

    run(main())


def test_renewed_certificates_need_no_restart(
    run: Runner, tls: EtcdCluster, secured: Secured, pair: str, tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in secured.settings()}

    def install(certificate: Path, key: Path) -> None:
        paths["ca_file"].write_bytes(secured.ca.read_bytes())
        paths["cert_file"].write_bytes(certificate.read_bytes())
        paths["key_file"].write_bytes(key.read_bytes())

    async def main() -> None:
        install(*secured.stranger)
        async with opened(tls.endpoints, PATIENCE_S, **paths) as witness:
            await refused(witness, pair)
            install(secured.node[0], secured.stranger[1])
            why = await refused(witness, pair)
            assert str(paths["key_file"]) in why
            assert "key values mismatch" in why
            install(*secured.node)
            assert await witness.read(pair) is None

    run(main())


@pytest.mark.parametrize("harm", ["nonsense", "gone", "encrypted"])
def test_broken_files_are_named(
    tls: EtcdCluster, secured: Secured, pair: str, tmp_path: Path, harm: str
) -> None:
    key = tmp_path / "key"
    if harm == "nonsense":
        key.write_text("this is no key\n")
    elif harm == "encrypted":
        words = ["ec", "-in", str(secured.node[1]), "-aes256", "-passout", "pass:secret"]
        subprocess.run(
            ["openssl", *words, "-out", str(key)], check=True, capture_output=True, timeout=60
        )

    async def main() -> None:
        async with opened(tls.endpoints, **{**secured.settings(), "key_file": key}) as witness:
            async with asyncio.timeout(PATIENCE_S):
                why = await refused(witness, pair)
            assert str(key) in why
            assert "correct the PEM files" in why

    asyncio.run(main())
