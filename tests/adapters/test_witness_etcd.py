"""The witness in etcd, one real member: what it answers, and what it refuses to answer."""

import asyncio
import contextlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from coloha.adapters.witness import WitnessError
from coloha.adapters.witness_etcd import EtcdWitness
from coloha.adapters.witness_file import FileWitness
from coloha.core.record import Record, first_record
from lab.etcd import EtcdCluster
from tests.adapters.etcd_support import (
    PROTECTED,
    SOLO,
    Proxy,
    failure,
    gateway,
    history_of,
    opened,
    put,
    says,
    text,
    value_of,
)
from tests.adapters.support import PATIENCE_S, Runner


def test_both_nodes_see_one_record(run: Runner, etcd: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with opened(etcd.endpoints) as one, opened(etcd.endpoints) as other:
            assert await one.read(pair) is None
            assert await one.swap(pair, SOLO, PROTECTED, "alpha") is None
            assert await one.swap(pair, None, SOLO, "alpha") == SOLO
            assert await one.read(f"{pair}-2") is None
            assert await other.read(pair) == SOLO
            assert await other.swap(pair, SOLO, PROTECTED, "alpha") == PROTECTED
            taken = PROTECTED.take_over("beta")
            assert await other.swap(pair, PROTECTED, taken, "beta") == taken
            # The loser learns what stands instead; one that has won may ask again.
            lost = PROTECTED.take_over("alpha")
            assert await one.swap(pair, PROTECTED, lost, "alpha") == taken
            assert await other.swap(pair, PROTECTED, taken, "beta") == taken
            assert await one.read(pair) == taken

    run(main())
    assert history_of(etcd.endpoints[0], pair) == [SOLO, PROTECTED, PROTECTED.take_over("beta")]


def test_the_form_is_that_of_the_folder(
    run: Runner, etcd: EtcdCluster, pair: str, tmp_path: Path
) -> None:
    """So a record can be moved from one witness to the other."""

    async def main() -> None:
        folder = FileWitness(tmp_path, PATIENCE_S)
        async with opened(etcd.endpoints, prefix="/else/where/") as witness:
            for kind in (witness, folder):
                await kind.swap(pair, None, SOLO, "alpha")
                await kind.swap(pair, SOLO, PROTECTED, "alpha")
        await folder.close()

    run(main())
    found = value_of(etcd.endpoints[0], f"/else/where/{pair}")
    assert found is not None
    assert found[0] == (tmp_path / f"{pair}.json").read_bytes()
    assert value_of(etcd.endpoints[0], f"/coloha/{pair}") is None


@pytest.mark.parametrize(
    ("current", "new", "by", "why"),
    [
        (None, PROTECTED, "alpha", "first record"),
        (SOLO, SOLO.take_over("beta"), "beta", "R4"),
        (PROTECTED, PROTECTED.take_over("beta"), "gamma", "no part"),
        (PROTECTED, PROTECTED.take_over("alpha"), "beta", "R2"),
        (SOLO, Record("other", 2, "alpha"), "alpha", "lineage"),
    ],
)
def test_what_the_rules_forbid_is_refused(
    etcd: EtcdCluster, pair: str, current: Record | None, new: Record, by: str, why: str
) -> None:
    if current is not None:
        put(etcd.endpoints[0], f"/coloha/{pair}", json.dumps(asdict(current)).encode())

    async def main() -> None:
        async with opened(etcd.endpoints) as witness:
            error = await failure(witness.swap(pair, current, new, by))
            assert why in str(error)
            assert not error.unknown
            assert await witness.read(pair) == current

    asyncio.run(main())


@pytest.mark.parametrize("value", [b"", b"{", b"null", b"\xff", b"[" * 5000, b'{"lineage": "x"}'])
def test_a_damaged_record_is_reported_and_left_alone(
    etcd: EtcdCluster, pair: str, value: bytes
) -> None:
    put(etcd.endpoints[0], f"/coloha/{pair}", value)

    async def main() -> None:
        async with opened(etcd.endpoints) as witness:
            for call in (witness.read(pair), witness.swap(pair, None, SOLO, "alpha")):
                error = await failure(call)
                assert f"/coloha/{pair} in etcd is damaged" in str(error)
                assert not error.unknown

    asyncio.run(main())
    found = value_of(etcd.endpoints[0], f"/coloha/{pair}")
    assert found is not None
    assert found[0] == value


def test_one_of_many_wins_each_generation(run: Runner, etcd: EtcdCluster, pair: str) -> None:
    """Sessions tell the swaps of one node apart, nodes those of a takeover."""

    async def race(witnesses: list[EtcdWitness], expected: Record) -> Record:
        wanted = [expected.protect("beta", number) for number in range(1, 1 + len(witnesses))]
        found = await asyncio.gather(
            *(
                witness.swap(pair, expected, new, "alpha")
                for witness, new in zip(witnesses, wanted, strict=True)
            )
        )
        (won,) = set(found)
        assert won in wanted
        return won

    async def main() -> None:
        async with opened(etcd.endpoints) as one, opened(etcd.endpoints) as other:
            record = await one.swap(pair, None, SOLO, "alpha")
            assert record == SOLO
            for _ in range(5):
                protected = await race([one, other] * 8, record)
                ways = [protected.take_over("alpha"), protected.take_over("beta")]
                ended = await asyncio.gather(
                    one.swap(pair, protected, ways[0], "alpha"),
                    other.swap(pair, protected, ways[1], "beta"),
                )
                (won,) = set(ended)
                assert won in ways
                if won.primary == "beta":  # back to alpha, for the next round
                    again = won.protect("alpha", 1)
                    assert await other.swap(pair, won, again, "beta") == again
                    won = again.take_over("alpha")
                    assert await one.swap(pair, again, won, "alpha") == won
                record = won

    run(main())
    history = history_of(etcd.endpoints[0], pair)
    assert [r.generation for r in history] == sorted(r.generation for r in history)
    assert len(set(history)) == len(history)


def test_one_of_many_makes_the_first_record(run: Runner, etcd: EtcdCluster, pair: str) -> None:
    async def main() -> None:
        async with opened(etcd.endpoints) as one, opened(etcd.endpoints) as other:
            calls = [
                witness.swap(pair, None, first_record(f"life-{node}", node), node)
                for witness, node in ((one, "alpha"), (other, "beta"))
                for _ in range(8)
            ]
            (made,) = set(await asyncio.gather(*calls))
            assert made is not None
            assert made.lineage == f"life-{made.primary}"

    run(main())
    assert len(history_of(etcd.endpoints[0], pair)) == 1


def test_a_probe_finds_nothing_wrong_and_leaves_nothing(
    run: Runner, etcd: EtcdCluster, pair: str
) -> None:
    def everything() -> object:
        return gateway(etcd.endpoints[0], "kv/range", key=text("\0"), range_end=text("\0"))

    async def main() -> None:
        async with opened(etcd.endpoints) as witness:
            before = everything()
            await witness.probe(pair)
            assert await witness.swap(pair, None, SOLO, "alpha") == SOLO
            middle = everything()
            await witness.probe(pair)
            assert everything()["kvs"] == middle["kvs"]  # type: ignore[index]
            assert before != middle

    run(main())
    assert value_of(etcd.endpoints[0], f"/coloha/{pair}.probe") is None


def test_proxies_of_the_environment_are_not_used(
    etcd: EtcdCluster, pair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def main() -> None:
        async with opened(etcd.endpoints) as witness:
            assert await witness.read(pair) is None

    asyncio.run(main())


HEADER = b'{"header": {"cluster_id": "1", "revision": "1"}, '


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            says(200, b"<html>hello</html>", "Content-Type: text/html"),
            "this is no JSON gateway of etcd",
        ),
        (says(200, b'{"kvs": []}'), "this is no JSON gateway of etcd"),
        (says(200, b'{"header": {"cluster_id": 1}}'), "this is no JSON gateway of etcd"),
        (says(200, b"[" * 100_000), "this is no JSON gateway of etcd"),
        (says(200, b"\xff\xfe"), "this is no JSON gateway of etcd"),
        (says(200, b""), "this is no JSON gateway of etcd"),
        (says(404, b"404 page not found\n"), "HTTP status 404, this is no JSON gateway of etcd"),
        (
            says(502, b"<html>bad gateway</html>"),
            "HTTP status 502, this is no JSON gateway of etcd",
        ),
        (says(200, HEADER + b'"x": "' + b"x" * 300_000 + b'"}'), "more than 262144 bytes"),
        (says(200, HEADER + b'"kvs": [{"value": "%%%", "mod_revision": "1"}]}'), "is damaged"),
        (says(200, HEADER + b'"kvs": [7]}'), "is damaged"),
        (says(200, HEADER + b'"kvs": 7}'), "is damaged"),
        (says(200, HEADER + b'"kvs": [{}, {}]}'), "is damaged"),
        (says(503, b'{"error": "etcdserver: no leader", "code": 14}'), "reach each other"),
        (says(429, b'{"error": "etcdserver: too many requests", "code": 8}'), "too many requests"),
        (says(500, b'{"message": "' + b"x" * 10_000 + b'"}'), "it says 'xxx"),
        (says(200, b"x", "Content-Encoding: gzip"), "this is no JSON gateway of etcd"),
    ],
)
def test_what_is_no_answer_of_etcd_is_refused(
    etcd: EtcdCluster, pair: str, answer: object, words: str
) -> None:
    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url]) as witness:
            proxy.otherwise = answer  # type: ignore[assignment]
            error = await failure(witness.read(pair))
            assert words in str(error), error
            assert len(str(error)) < 1000
            assert not error.unknown

    asyncio.run(main())


def test_members_of_two_clusters_are_not_taken_for_one(
    run: Runner, etcd: EtcdCluster, pair: str
) -> None:
    """Two clusters would be two witnesses, and could give a VM two voices."""

    async def main() -> None:
        async with (
            Proxy(etcd.endpoints[0]) as proxy,
            opened([proxy.url, *etcd.endpoints]) as witness,
        ):
            proxy.otherwise = says(200, HEADER[:-2] + b"}")
            for call in (witness.read(pair), witness.probe(pair)):
                with contextlib.suppress(WitnessError):
                    await call
            error = await failure(witness.probe(pair))
            assert "list the members of one cluster" in str(error)
            # The one that answered first is believed on.
            assert await witness.read(pair) is None

    run(main())


def test_redirects_are_not_followed(run: Runner, etcd: EtcdCluster, pair: str) -> None:
    where = f"Location: {etcd.endpoints[0]}/v3/kv/range"

    async def main() -> None:
        async with Proxy(etcd.endpoints[0]) as proxy, opened([proxy.url]) as witness:
            proxy.otherwise = says(307, b"", where)
            assert "HTTP status 307" in str(await failure(witness.read(pair)))

    run(main())
