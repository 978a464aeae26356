"""`encryption="off"` from end to end on loopback: plain TCP after an authenticated beginning, or a clear error."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from world import World, open_world

from ntcpsock._errors import EncryptionMismatch, PeerRefused, TraversalTimeout
from ntcpsock._node import Node
from ntcpsock._session import hello
from ntcpsock._session.plain import PlainStream
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.punch.message import Offer, decode_sealed_payload_untrusted


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


@asynccontextmanager
async def two_nodes(
    tmp_path: Path, alice: str = "off", bob: str = "off"
) -> AsyncIterator[tuple[World, Node, Node]]:
    async with open_world(tmp_path) as world:
        async with (
            world.node("alice", encryption=alice) as first,
            world.node("bob", encryption=bob) as second,
        ):
            yield world, first, second


async def connected(alice: Node, bob: Node, descriptor: int | None = None) -> tuple[PlainStream, PlainStream]:
    async with await alice.open_listener(8000) as listener:
        dialled = await bob.open_stream("alice", 8000, descriptor=descriptor)
        accepted = await listener.accept()
    assert isinstance(dialled, PlainStream)
    assert isinstance(accepted, PlainStream)
    return dialled, accepted


async def read_all(stream: NTCPStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


async def test_the_stream_is_the_kernel_socket(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            ends = [stream.kernel_socket for stream in (dialled, accepted)]
            assert ends[0].getsockname() == ends[1].getpeername()
            assert ends[1].getsockname() == ends[0].getpeername()
            # Nothing of ours is between the application's bytes and the wire.
            await dialled.send_all(b"there")
            assert await accepted.receive_some() == b"there"
            os.write(ends[1].fileno(), b"and back")
            assert await dialled.receive_some() == b"and back"
            assert (dialled.peer.node_id, dialled.peer.port) == (alice.node_id, 8000)
            assert (accepted.peer.name, accepted.peer.node_id) == ("bob", bob.node_id)
            assert dialled.path.kind == accepted.path.kind == "lan"
            assert dialled.path.local == accepted.path.remote
            assert dialled.report.failed_stage is None
            assert "open to alice" in repr(dialled)


@pytest.mark.parametrize("private", [False, True])
async def test_bytes_that_are_sent_at_once_arrive_whole(tmp_path: Path, private: bool) -> None:
    """Whoever speaks first, and both at once: not one byte of the greeting, none missing."""
    async with open_world(tmp_path) as world:
        allow = ("bob",) if private else None
        async with (
            world.node("alice", encryption="off", allow=allow) as alice,
            world.node("bob", encryption="off") as bob,
            await alice.open_listener(8000) as listener,
        ):

            async def serve() -> None:
                for number in range(10):
                    stream = await listener.accept()
                    async with stream:
                        await stream.send_all(b"server %d" % number)
                        await stream.send_eof()
                        assert await read_all(stream) == b"client %d" % number

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                for number in range(10):
                    async with await bob.open_stream("alice", 8000) as stream:
                        await stream.send_all(b"client %d" % number)
                        await stream.send_eof()
                        assert await read_all(stream) == b"server %d" % number


async def test_half_close_and_reset_are_tcps_own(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        dialled, accepted = await connected(alice, bob)
        await dialled.send_all(b"question")
        await dialled.send_eof()
        assert await read_all(accepted) == b"question"
        await accepted.send_all(b"answer")
        assert await dialled.receive_some() == b"answer"
        accepted.reset()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await dialled.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await dialled.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await dialled.send_all(b"x")


async def test_it_is_a_half_closeable_stream(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):

        async def make_pair() -> tuple[NTCPStream, NTCPStream]:
            return await connected(alice, bob)

        await trio.testing.check_half_closeable_stream(make_pair, None)


async def test_receive_into(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        dialled, accepted = await connected(alice, bob)
        async with accepted:
            async with dialled:
                await dialled.send_all(b"abc")
            buffer = bytearray(10)
            assert await accepted.receive_into(buffer) == 3
            assert buffer[:3] == b"abc"
            assert await accepted.receive_into(buffer) == 0
            with pytest.raises(ValueError, match="room"):
                await accepted.receive_into(bytearray())


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(
    ("alice", "bob", "change"),
    [
        ("off", "tls", 'alice.ntcp listens with encryption="off", and this end encrypts'),
        ("tls", "off", 'alice.ntcp encrypts its connections, and this end says encryption="off"'),
    ],
)
async def test_a_mismatch_is_a_clear_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, alice: str, bob: str, change: str, private: bool
) -> None:
    async with open_world(tmp_path) as world:
        allow = ("bob",) if private else None
        async with (
            world.node("alice", encryption=alice, allow=allow) as listening,
            world.node("bob", encryption=bob) as dialling,
            await listening.open_listener(8000) as listener,
        ):
            with caplog.at_level(logging.WARNING, "ntcpsock"):
                for _ in range(2):
                    with pytest.raises(EncryptionMismatch) as caught:
                        await dialling.open_stream("alice", 8000)
                while listening._acceptor.refused.get("encryption mismatch", 0) < 2:
                    await trio.sleep(0.01)
            assert isinstance(caught.value, ConnectionError)
            assert caught.value.errno == errno.EPROTO
            assert change in str(caught.value)
            assert caught.value.report is not None
            assert caught.value.report.attempts == []
            assert listener._receiver.statistics().current_buffer_used == 0
            # Said once; who repeats it is counted.
            warnings = [record.getMessage() for record in caplog.records if record.name == "ntcpsock"]
            assert len(warnings) == 1
            assert f'bob: it wants encryption="{bob}"' in warnings[0]


async def test_a_card_that_is_out_of_date_does_not_mislead(tmp_path: Path) -> None:
    """What the listener answers counts, and no attempt that its old card caused gets through."""
    async with two_nodes(tmp_path) as (_, alice, bob):
        async with await alice.open_listener(8000):
            object.__setattr__(alice.config, "encryption", "tls")
            with pytest.raises(EncryptionMismatch, match="alice"):
                await bob.open_stream("alice", 8000)


async def test_a_port_nobody_listens_on_is_refused_as_ever(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        async with await alice.open_listener(8000):
            with pytest.raises(PeerRefused):
                await bob.open_stream("alice", 8001)


def spy_on_offers(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[Offer]:
    offers: list[Offer] = []
    introduce = node.introductions.introduce

    async def spying(dial: Dial, payload: bytes) -> object:
        offer = decode_sealed_payload_untrusted(payload)
        assert isinstance(offer, Offer)
        offers.append(offer)
        return await introduce(dial, payload)

    monkeypatch.setattr(node.introductions, "introduce", spying)
    return offers


async def test_strangers_at_the_listening_port_get_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not without the token, not with that of another dial, and not with one that is used up."""
    async with two_nodes(tmp_path) as (_, alice, bob):
        offers = spy_on_offers(bob, monkeypatch)
        async with await alice.open_listener(8000) as listener:
            assert alice.listening_port is not None
            endpoint = alice.listening_port.candidates[0].endpoint

            async def knock(words: bytes) -> bytes:
                async with await trio.open_tcp_stream(*endpoint) as stream:
                    await stream.send_all(words)
                    try:
                        return bytes(await stream.receive_some())
                    except trio.BrokenResourceError:
                        return b""

            assert await knock(b"GET / HTTP/1.1\r\n\r\n" + bytes(100)) == b""
            dialled = await bob.open_stream("alice", 8000)
            accepted = await listener.accept()
            used = offers[0]
            assert await knock(hello.Dialer(used.dial_id, used.token).hello()) == b""
            assert await knock(hello.Dialer(used.dial_id, bytes(32)).hello()) == b""
            assert alice._acceptor.refused["authentication: BadMessage"] >= 1
            assert listener._receiver.statistics().current_buffer_used == 0
            for stream in (dialled, accepted):
                stream.reset()


async def test_strangers_at_the_dialers_port_get_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is there first, and answers with what it heard, is found out; the peer still comes through."""
    async with two_nodes(tmp_path) as (_, alice, bob):
        heard: list[bytes] = []
        introduce = bob.introductions.introduce

        async def meddled(dial: Dial, payload: bytes) -> object:
            offer = decode_sealed_payload_untrusted(payload)
            assert isinstance(offer, Offer)
            stream = await trio.open_tcp_stream(*offer.candidates[0].endpoint)
            nursery.start_soon(pretend, stream)
            return await introduce(dial, payload)

        async def pretend(stream: trio.SocketStream) -> None:
            async with stream:
                data = bytes(await stream.receive_some(hello.HELLO_LENGTH))
                if data:
                    await stream.send_all(data[-hello.WELCOME_LENGTH :])
                heard.append(data)
                try:
                    heard.append(bytes(await stream.receive_some()))
                except trio.BrokenResourceError:
                    heard.append(b"")

        monkeypatch.setattr(bob.introductions, "introduce", meddled)
        async with await alice.open_listener(8000) as listener, trio.open_nursery() as nursery:
            dialled = await bob.open_stream("alice", 8000)
            accepted = await listener.accept()
            await dialled.send_all(b"for alice only")
            assert await accepted.receive_some() == b"for alice only"
            for stream in (dialled, accepted):
                stream.reset()
        assert b"for alice only" not in b"".join(heard)


# The application's own socket.


async def never(_: object) -> None:
    await trio.sleep_forever()


async def test_a_given_socket_becomes_the_connection(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            size = own.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            dialled, accepted = await connected(alice, bob, os.dup(own.fileno()))
            assert dialled.is_given
            dialled.keep_given()
            own.setblocking(True)
            own.sendall(b"from the application")
            assert await accepted.receive_some() == b"from the application"
            await accepted.send_all(b"to it")
            assert own.recv(100) == b"to it"
            assert own.getpeername() == accepted.kernel_socket.getsockname()
            assert own.getsockname() == accepted.kernel_socket.getpeername()
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
            await accepted.aclose()
            assert own.recv(100) == b""


async def check_unused(own: socket.socket) -> None:
    """The socket is as good as new: it connects elsewhere."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        own.settimeout(10)
        own.connect(listener.getsockname())
        own.sendall(b"x")
        with listener.accept()[0] as other:
            assert other.recv(1) == b"x"


@pytest.mark.parametrize("name", ["alice", "nobody"])
async def test_a_given_socket_comes_back_after_a_failure(tmp_path: Path, name: str) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        async with await alice.open_listener(8000):
            with socket.socket() as own:
                with pytest.raises(OSError, match=r"nothing listens|nobody"):
                    await bob.open_stream(name, 8001, descriptor=os.dup(own.fileno()))
                await check_unused(own)


async def test_a_given_socket_comes_back_after_a_timeout_and_a_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(tmp_path) as (_, alice, bob):
        async with await alice.open_listener(8000):
            # The listener hears of nothing and lets nobody in.
            monkeypatch.setattr(alice._acceptor.dials, "token", never)
            with socket.socket() as own, socket.socket() as other:
                with pytest.raises(TraversalTimeout):
                    await bob.open_stream("alice", 8000, timeout=0.3, descriptor=os.dup(own.fileno()))
                await check_unused(own)
                with trio.move_on_after(0.3) as scope:
                    await bob.open_stream("alice", 8000, descriptor=os.dup(other.fileno()))
                assert scope.cancelled_caught
                await check_unused(other)


async def test_another_path_wins_and_the_given_socket_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the listener's connection is in before ours is tried."""
    async with two_nodes(tmp_path) as (_, alice, bob):
        monkeypatch.setattr("ntcpsock._traversal.race.STRATEGIES", {"lan": never})
        with socket.socket() as own:
            dialled, accepted = await connected(alice, bob, os.dup(own.fileno()))
            async with dialled, accepted:
                assert not dialled.is_given
                await dialled.send_all(b"by another way")
                assert await accepted.receive_some() == b"by another way"
                await check_unused(own)


async def test_a_given_socket_is_of_no_use_to_tls(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, "tls", "tls") as (_, alice, bob):
        with socket.socket() as own:
            async with await alice.open_listener(8000) as listener:
                dialled = await bob.open_stream("alice", 8000, descriptor=os.dup(own.fileno()))
                accepted = await listener.accept()
            async with dialled, accepted:
                assert not isinstance(dialled, PlainStream)
                await check_unused(own)
