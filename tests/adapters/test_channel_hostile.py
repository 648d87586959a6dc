"""Whoever speaks to a channel's ends without the key, or out of turn, gets nowhere."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from coloha.adapters import channel
from coloha.adapters.channel import MAX_HANDSHAKES, Offer, invite
from coloha.errors import AuthenticationError, ChannelError
from tests.adapters.channel_support import (
    NONCE,
    REQUEST,
    Node,
    Raw,
    connected,
    framed,
    impostor,
    invitation,
    listening,
    mac,
)
from tests.adapters.support import KEY, OTHER_KEY, PATIENCE_S, Runner, eventually, ticking

CHALLENGE = b"c" * 32


async def begin(address: tuple[str, int], key: bytes = KEY) -> None:
    (await invite(address, key, "alpha", "beta", REQUEST, PATIENCE_S)).close()


async def still_works(node: Node) -> None:
    """An honest invitation goes through."""
    inviting = asyncio.create_task(begin(node.address))
    await (await node.offer()).admit()
    await inviting


async def is_rejected(node: Node, answer: Callable[[bytes], bytes]) -> None:
    """The server hangs up on whoever answers its challenge so, counts it, and offers nothing."""
    before = node.server.rejected
    async with connected(node.address) as raw:
        await raw.send(answer(await raw.challenge()))
        assert await raw.ended()
    assert node.server.rejected == before + 1
    assert node.offers.empty()


@pytest.mark.parametrize("wrong", ["inviting", "accepting"])
def test_nodes_with_different_keys_do_not_meet(run: Runner, wrong: str) -> None:
    keys = (OTHER_KEY, KEY) if wrong == "inviting" else (KEY, OTHER_KEY)

    async def main() -> None:
        async with listening(key=keys[1]) as node:
            offered: list[Offer] = []

            async def believe() -> None:
                offered.append(await node.offer())
                await offered[0].admit()

            believing = asyncio.create_task(believe())
            with pytest.raises(ChannelError):
                await begin(node.address, keys[0])
            believing.cancel()
            assert not offered
            assert node.server.rejected == 1
            assert node.offers.empty()

    run(main())


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_while_keys_are_changed_either_is_accepted(run: Runner, key: bytes) -> None:
    """The answer is under the key of the one who asked, who may have no other."""

    async def main() -> None:
        async with listening(key=OTHER_KEY, others=(b"unused" * 6, KEY)) as node:
            inviting = asyncio.create_task(begin(node.address, key))
            await (await node.offer()).admit()
            await inviting
            with pytest.raises(ChannelError):
                await begin(node.address, b"stranger" * 5)

    run(main())


@pytest.mark.parametrize("content", [{"ok": True}, {"error": "go away"}])
def test_an_answer_under_another_key_is_not_believed(
    run: Runner, content: dict[str, object]
) -> None:
    async def answer(raw: Raw) -> None:
        await raw.send_frame(json.dumps({"nonce": CHALLENGE.hex()}).encode())
        frame = await raw.receive_frame()
        nonce = bytes.fromhex(json.loads(frame[:-32])["nonce"])
        body = json.dumps(content).encode()
        await raw.send_frame(body + mac(OTHER_KEY, "accepting", CHALLENGE, nonce, body))

    async def main() -> None:
        async with impostor(answer) as address:
            with pytest.raises(AuthenticationError, match="does not hold the same key"):
                await begin(address)

    run(main())


def test_a_frame_sent_back_to_its_sender_is_not_believed(run: Runner) -> None:
    async def reflect(raw: Raw) -> None:
        await raw.send_frame(json.dumps({"nonce": CHALLENGE.hex()}).encode())
        await raw.send_frame(await raw.receive_frame())

    async def main() -> None:
        async with impostor(reflect) as address:
            with pytest.raises(AuthenticationError):
                await begin(address)

    run(main())


def test_an_invitation_made_over_for_the_other_direction_is_not_believed(run: Runner) -> None:
    def wrong_direction(challenge: bytes) -> bytes:
        body = invitation(challenge)[:-32]
        return framed(body + mac(KEY, "accepting", challenge, NONCE, body))

    async def main() -> None:
        async with listening() as node:
            await is_rejected(node, wrong_direction)
            await still_works(node)

    run(main())


def test_every_byte_of_an_invitation_counts(run: Runner) -> None:
    size = len(invitation(CHALLENGE))

    async def main() -> None:
        async with listening() as node:
            for position in range(size):

                def tampered(challenge: bytes, position: int = position) -> bytes:
                    frame = bytearray(invitation(challenge))
                    frame[position] ^= 1
                    return framed(bytes(frame))

                await is_rejected(node, tampered)
            await still_works(node)
            assert node.server.rejected == size

    run(main())


def test_every_byte_of_an_answer_counts(run: Runner) -> None:
    """A man in the middle of an honest exchange changes one byte of the answer."""
    size = len(b'{"ok": true}') + 32

    async def main() -> None:
        positions = iter(range(size))
        async with listening() as node:

            async def relay(raw: Raw) -> None:
                async with connected(node.address) as honest:
                    await raw.send_frame(await honest.receive_frame())
                    await honest.send_frame(await raw.receive_frame())
                    await (await node.offer()).admit()
                    frame = bytearray(await honest.receive_frame())
                    assert len(frame) == size
                    frame[next(positions)] ^= 1
                    await raw.send_frame(bytes(frame))

            async with impostor(relay) as address:
                for _ in range(size):
                    with pytest.raises(AuthenticationError):
                        await begin(address)

    run(main())


def test_a_captured_invitation_is_worth_nothing_on_another_connection(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            async with connected(node.address) as raw:
                captured = invitation(await raw.challenge())
                await raw.send_frame(captured)
                await (await node.offer()).admit()

            for _ in range(3):
                await is_rejected(node, lambda _: framed(captured))
            await still_works(node)

    run(main())


def test_an_invitation_is_taken_once_on_its_own_connection(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node, connected(node.address) as raw:
            frame = invitation(await raw.challenge())
            await raw.send_frame(frame)
            await raw.send_frame(frame)
            offer = await node.offer()
            await asyncio.sleep(0.05)
            assert node.offers.empty()
            await offer.refuse("once is enough")

    run(main())


def test_a_captured_answer_is_worth_nothing_on_another_connection(run: Runner) -> None:
    captured: list[bytes] = []

    async def main() -> None:
        async with listening() as node:

            async def replay(raw: Raw) -> None:
                async with connected(node.address) as honest:
                    await raw.send_frame(await honest.receive_frame())
                    await honest.send_frame(await raw.receive_frame())
                    await (await node.offer()).admit()
                    captured.append(await honest.receive_frame())
                    await raw.send_frame(captured[0])

            async with impostor(replay) as address:
                await begin(address)
                for _ in range(3):
                    with pytest.raises(AuthenticationError):
                        await begin(address)

    run(main())


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "gamma"},
        {"to": None},
        {"request": None},
        {"request": []},
        {"request": {}},
        {"request": {"pair": "vm", "session": 1, "generation": 1}},
        {"request": {**asdict(REQUEST), "more": 1}},
        {"request": {**asdict(REQUEST), "qemu": "11.1.3"}},
        {"request": {**asdict(REQUEST), "qemu": [11, 1]}},
        {"request": {**asdict(REQUEST), "qemu": None}},
        {"nonce": "not hex"},
        {"nonce": None},
        {"nonce": ""},
    ],
)
def test_an_invitation_for_another_or_without_sense_is_refused(
    run: Runner, changes: dict[str, Any]
) -> None:
    async def main() -> None:
        async with listening() as node:
            await is_rejected(node, lambda challenge: framed(invitation(challenge, **changes)))
            await still_works(node)

    run(main())


FRAMES = {
    "nothing": b"",
    "less than a MAC": b"x" * 31,
    "only a MAC": b"x" * 32,
    "no JSON": b"GET / HTTP/1.1\r\n\r\n" + b"x" * 32,
    "no object": b"[]" + b"x" * 32,
    "no text": b"\xff" * 64,
    "deep": b"[" * 10_000 + b"x" * 32,
    "large number": b'{"nonce": ' + b"9" * 10_000 + b"}" + b"x" * 32,
    "no MAC": b'{"nonce": "00"}',
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_garbage_for_an_invitation_is_refused(run: Runner, frame: bytes) -> None:
    async def main() -> None:
        async with listening() as node:
            await is_rejected(node, lambda _: framed(frame))
            await still_works(node)

    run(main())


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("instead_of", ["challenge", "answer"])
def test_garbage_from_the_invited_node_is_an_error(
    run: Runner, frame: bytes, instead_of: str
) -> None:
    async def garbage(raw: Raw) -> None:
        if instead_of == "answer":
            await raw.send_frame(json.dumps({"nonce": CHALLENGE.hex()}).encode())
            await raw.receive_frame()
        await raw.send_frame(frame)

    async def main() -> None:
        async with impostor(garbage) as address:
            with pytest.raises((ChannelError, AuthenticationError)):
                await begin(address)

    run(main())


@pytest.mark.parametrize("size", [16 * 1024 + 1, 2**31, 2**32 - 1])
def test_a_giant_frame_is_refused_unread(run: Runner, size: int) -> None:
    async def giant(raw: Raw) -> None:
        await raw.send(size.to_bytes(4, "big"))

    async def main() -> None:
        async with listening() as node:
            await is_rejected(node, lambda _: size.to_bytes(4, "big"))
            await still_works(node)
        async with impostor(giant) as address:
            with pytest.raises(ChannelError, match="this is no coloha node"):
                await begin(address)

    run(main())


def test_a_connection_that_ends_in_the_middle_is_counted(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            frame = invitation(CHALLENGE)
            whole = framed(frame)
            for sent in (0, 1, 4, 5, len(whole) - 1):
                async with connected(node.address) as raw:
                    await raw.challenge()
                    await raw.send(whole[:sent])
            await eventually(lambda: node.server.rejected == 5, "five counted")
            async with connected(node.address) as raw:
                raw.abort()
            await eventually(lambda: node.server.rejected == 6, "the reset one counted")
            await still_works(node)

    run(main())


def test_whoever_takes_all_day_is_hung_up_on(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_S", 1.0)

    async def main() -> None:
        async with listening() as node, connected(node.address) as raw:
            frame = invitation(await raw.challenge())

            async def drip() -> None:
                for byte in framed(frame):
                    await raw.send(bytes([byte]))
                    await asyncio.sleep(0.01)

            dripping = asyncio.create_task(drip())
            async with ticking():
                await still_works(node)  # nobody else waits for it
                assert await raw.ended()
            await asyncio.gather(dripping, return_exceptions=True)
            await eventually(lambda: node.server.rejected == 1, "the slow one counted")

    run(main())


def test_more_strangers_than_handshakes_are_turned_away(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_S", PATIENCE_S)

    async def main() -> None:
        async with listening() as node:
            strangers = [await Raw.connect(node.address) for _ in range(MAX_HANDSHAKES)]
            for stranger in strangers:
                await stranger.challenge()
            for _ in range(3):
                async with connected(node.address) as one_more:
                    assert await one_more.ended()  # not even a challenge
            assert node.server.rejected == 3
            for stranger in strangers:
                stranger.connection.close()
            await eventually(lambda: node.server.rejected == 3 + MAX_HANDSHAKES, "all gone")
            await still_works(node)

    run(main())


def test_strangers_cannot_keep_a_node_out_for_long(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_S", 1.0)

    async def main() -> None:
        async with listening() as node:
            strangers = [await Raw.connect(node.address) for _ in range(MAX_HANDSHAKES)]
            for stranger in strangers:
                await stranger.challenge()
            for stranger in strangers:
                assert await stranger.ended()
                stranger.connection.close()
            await still_works(node)

    run(main())


def test_what_was_offered_no_longer_counts_as_a_handshake(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            inviting: list[asyncio.Task[None]] = []
            offers: list[Offer] = []
            for _ in range(MAX_HANDSHAKES + 4):
                inviting.append(asyncio.create_task(begin(node.address)))
                offers.append(await node.offer())
                await asyncio.sleep(0)
            await asyncio.gather(*(offer.refuse("no") for offer in offers))
            reasons = await asyncio.gather(*inviting, return_exceptions=True)
            assert {str(reason) for reason in reasons} == {"no"}

    run(main())
