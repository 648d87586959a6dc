"""Channels between nodes that hold the same key."""

import asyncio
import contextlib
import json
import resource
import socket

import pytest

from coloha.adapters import channel
from coloha.adapters.channel import ChannelServer, Offer, Request, invite, tune
from coloha.errors import ChannelError
from tests.adapters.channel_support import (
    NONCE,
    REQUEST,
    Raw,
    connected,
    framed,
    impostor,
    invitation,
    listening,
    mac,
)
from tests.adapters.support import KEY, PATIENCE_S, Runner, eventually, ticking

DATA = bytes(range(256)) * 400


async def begin(address: tuple[str, int], timeout_s: float = PATIENCE_S) -> socket.socket:
    return await invite(address, KEY, "alpha", "beta", REQUEST, timeout_s)


async def exchange(one: socket.socket, other: socket.socket) -> None:
    """Bytes go both ways, none missing and none added."""
    ends = Raw(one), Raw(other)
    for sender, receiver in (ends, ends[::-1]):
        sending = asyncio.create_task(sender.send(DATA))
        assert await receiver.receive(len(DATA)) == DATA
        await sending


def test_an_invitation_is_accepted(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            inviting = asyncio.create_task(begin(node.address))
            offer = await node.offer()
            assert (offer.sender, offer.request) == ("alpha", REQUEST)
            assert not inviting.done()
            # What QEMU gets is a duplicate: the daemon's own copy is closed by `admit`.
            with offer.connection.dup() as accepted:
                await offer.admit()
                assert offer.connection.fileno() == -1
                with await inviting as invited:
                    await exchange(invited, accepted)
            assert node.server.rejected == 0

    run(main())


def test_ipv6(run: Runner) -> None:
    async def main() -> None:
        async with listening(host="::1") as node:
            inviting = asyncio.create_task(begin(node.address))
            with (offer := await node.offer()).connection.dup() as accepted:
                await offer.admit()
                with await inviting as invited:
                    await exchange(invited, accepted)

    run(main())


def test_several_at_once(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            requests = [Request("vm", session, 3, "f", (11, 1, 3)) for session in range(1, 11)]
            inviting = [
                asyncio.create_task(invite(node.address, KEY, "alpha", "beta", request, PATIENCE_S))
                for request in requests
            ]
            offers = [await node.offer() for _ in requests]
            for offer in offers:
                await offer.refuse(f"not {offer.request.session}")
            reasons = await asyncio.gather(*inviting, return_exceptions=True)
            assert [str(reason) for reason in reasons] == [f"not {k}" for k in range(1, 11)]

    run(main())


def test_a_refusal_says_why(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            inviting = asyncio.create_task(begin(node.address))
            offer = await node.offer()
            await offer.refuse("beta has 3 MiB of memory, it needs 256 MiB: \N{SNOWMAN}")
            assert offer.connection.fileno() == -1
            with pytest.raises(
                ChannelError, match="3 MiB of memory, it needs 256 MiB: \N{SNOWMAN}"
            ):
                await inviting

    run(main())


def test_what_follows_the_answer_at_once_is_left_to_qemu(run: Runner) -> None:
    """`ok` and the first bytes of the stream come in one segment."""

    async def accept(raw: Raw) -> None:
        challenge = b"c" * 32
        await raw.send_frame(json.dumps({"nonce": challenge.hex()}).encode())
        frame = await raw.receive_frame()
        nonce = bytes.fromhex(json.loads(frame[:-32])["nonce"])
        body = json.dumps({"ok": True}).encode()
        answer = body + mac(KEY, "accepting", challenge, nonce, body)
        await raw.send(framed(answer) + DATA)

    async def main() -> None:
        async with impostor(accept) as address:
            with await begin(address) as invited:
                assert await Raw(invited).receive(len(DATA) + 1) == DATA

    run(main())


def test_what_follows_the_invitation_at_once_is_left_to_qemu(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node, connected(node.address) as raw:
            frame = invitation(await raw.challenge())
            sending = asyncio.create_task(raw.send(framed(frame) + DATA))
            offer = await node.offer()
            assert await Raw(offer.connection).receive(len(DATA)) == DATA
            await sending
            await offer.refuse("done")

    run(main())


def test_an_invitation_nobody_answers_ends_in_time(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_S", PATIENCE_S)

    async def main() -> None:
        async with listening() as node, ticking():
            with pytest.raises(ChannelError, match=r"no answer from 127\.0\.0\.1:\d+ in time"):
                await begin(node.address, timeout_s=0.5)
            # It hung up: the invited node can tell.
            offer = await node.offer()
            assert await Raw(offer.connection).ended()
            offer.connection.close()

    run(main())


def test_an_answer_may_take_longer_than_the_handshake(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secondary takes seconds to start."""
    monkeypatch.setattr(channel, "HANDSHAKE_S", 1.0)

    async def main() -> None:
        async with listening() as node:
            inviting = asyncio.create_task(begin(node.address))
            offer = await node.offer()
            await asyncio.sleep(1.3)
            await offer.admit()
            (await inviting).close()

    run(main())


def test_nobody_listens(run: Runner) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            address = gone.getsockname()
        with pytest.raises(ChannelError, match=rf"127\.0\.0\.1:{address[1]}: .*(refused|failed)"):
            await begin(address)

    run(main())


def test_a_node_that_accepts_and_says_nothing(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its daemon hangs; its kernel accepts connections all the same."""
    monkeypatch.setattr(channel, "HANDSHAKE_S", 0.3)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with ticking():
                with pytest.raises(ChannelError, match="no answer"):
                    await begin(silent.getsockname())

    run(main())


def test_an_invitation_that_is_cancelled_hangs_up(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            inviting = asyncio.create_task(begin(node.address))
            offer = await node.offer()
            inviting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await inviting
            assert await Raw(offer.connection).ended()
            offer.connection.close()

    run(main())


@pytest.mark.parametrize("answer", ["admit", "refuse"])
@pytest.mark.parametrize("how", ["reset", "closed"])
def test_the_inviting_node_is_gone_before_the_answer(run: Runner, how: str, answer: str) -> None:
    async def gone(offer: Offer) -> None:
        await (offer.admit() if answer == "admit" else offer.refuse("too late"))

    async def main() -> None:
        async with listening() as node, connected(node.address) as raw:
            await raw.send_frame(invitation(await raw.challenge()))
            offer = await node.offer()
            if how == "reset":
                raw.abort()
                with pytest.raises(ChannelError, match="the inviting node is gone"):
                    await gone(offer)
            else:
                raw.connection.close()
                # TCP says that it arrived at a kernel, no more; either outcome is an honest one.
                with contextlib.suppress(ChannelError):
                    await gone(offer)
            assert offer.connection.fileno() == -1

    run(main())


def test_an_answer_that_does_not_get_through_ends_in_time(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_S", 0.3)

    async def main() -> None:
        async with listening() as node, connected(node.address) as raw:
            await raw.send_frame(invitation(await raw.challenge()))
            offer = await node.offer()
            with contextlib.suppress(BlockingIOError):
                while True:  # until the way is full
                    offer.connection.send(DATA)
            async with ticking():
                with pytest.raises(ChannelError, match="the inviting node is gone"):
                    await offer.admit()
            assert offer.connection.fileno() == -1

    run(main())


def test_a_tuned_connection_is_prompt_and_notices_a_death() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        tune(client, 2.5)
        tcp = socket.IPPROTO_TCP
        assert client.getsockopt(tcp, socket.TCP_NODELAY) == 1
        assert client.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 2500
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert client.getsockopt(tcp, socket.TCP_KEEPIDLE) == 1
        assert client.getsockopt(tcp, socket.TCP_KEEPINTVL) == 1
        assert client.getsockopt(tcp, socket.TCP_KEEPCNT) == 2


@pytest.mark.parametrize("timeout_s", [0.02, 1.0, 99.5, 100.5, 127.0, 128.0, 600.0])
def test_any_stall_timeout_can_be_set(timeout_s: float) -> None:
    """20 ms to 10 minutes: the range of checkpoint.stall_timeout."""
    tcp = socket.IPPROTO_TCP
    with socket.socket() as connection:
        tune(connection, timeout_s)
        assert connection.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == round(timeout_s * 1000)
        probes = connection.getsockopt(tcp, socket.TCP_KEEPCNT)
        every_s = connection.getsockopt(tcp, socket.TCP_KEEPINTVL)
        assert probes * every_s == pytest.approx(max(1.0, timeout_s), rel=0.1)


def test_a_connection_that_was_reset_can_still_be_tuned() -> None:
    """The offer of a node that died at once must not raise where nobody expects it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        raw = Raw(socket.create_connection(server.getsockname()))
        accepted, _ = server.accept()
        with accepted:
            raw.abort()
            tune(accepted, 3.0)
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
            tune(accepted, 3.0)


def test_an_address_in_use_is_an_error(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            second = ChannelServer("beta", KEY, lambda offer: offer.connection.close())
            with pytest.raises(OSError, match="in use"):
                second.start(node.address)
            second.stop()

    run(main())


def test_a_stopped_server_hangs_up_and_frees_the_port(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node, connected(node.address) as raw:
            await raw.challenge()
            node.server.stop()
            assert await raw.ended()
            with socket.create_server(node.address):
                pass

    run(main())


def test_it_goes_on_when_descriptors_were_used_up(run: Runner) -> None:
    async def main() -> None:
        async with listening() as node:
            client = socket.socket()
            client.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            try:
                await asyncio.get_running_loop().sock_connect(client, node.address)
                await asyncio.sleep(0.3)
                async with ticking(0):
                    pass
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            raw = Raw(client)
            await raw.send_frame(invitation(await raw.challenge()))
            offer = await node.offer()
            await offer.refuse("descriptors are back")
            assert b"descriptors are back" in await raw.receive_frame()
            client.close()

    run(main())


def test_the_nonce_of_an_invitation_is_fresh(run: Runner) -> None:
    """Or the answer to an earlier one could be played again."""
    nonces: list[str] = []

    async def listen(raw: Raw) -> None:
        await raw.send_frame(json.dumps({"nonce": NONCE.hex()}).encode())
        nonces.append(json.loads((await raw.receive_frame())[:-32])["nonce"])

    async def main() -> None:
        async with impostor(listen) as address:
            for _ in range(3):
                with pytest.raises(ChannelError):
                    await begin(address)
            await eventually(lambda: len(nonces) == 3, "three invitations")
            assert len(set(nonces)) == 3
            assert {len(nonce) for nonce in nonces} == {64}

    run(main())
