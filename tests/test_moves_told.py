"""Who learns that a connection has moved to another path: trio streams, sockets of both faces, and their reports."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sync_support import listener, pair, wait_until
from world import Servers, open_world

import ntcpsock.trio
from ntcpsock import NTCPSocket, _forwarding, _known, _portal
from ntcpsock._session.stream import NTCPStream

pytestmark = pytest.mark.usefixtures("between_machines")

SILENCE = OSError(errno.ETIMEDOUT, "the path went silent")


async def test_a_stream_tells_its_moves(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob") as bob,
        await alice.open_listener(8000) as arriving,
        await bob.open_stream("alice", 8000) as dialled,
    ):
        accepted = await arriving.accept()
        for number in range(1, 3):
            before = dialled.path
            dialled.lose(SILENCE)
            with trio.fail_after(60):
                assert await dialled.wait_moved() is dialled.path
            assert dialled.path.local != before.local
            assert dialled.report.path is dialled.path
            assert [move.reason for move in dialled.report.moves] == ["its path was lost"] * number
            assert dialled.report.moves[-1].path is dialled.path
            assert "moved to" in str(dialled.report)
            with trio.fail_after(60):
                await dialled.send_all(b"%d" % number)
                assert await accepted.receive_some() == b"%d" % number
            assert accepted.path.remote[1] == dialled.path.local[1]
            assert len(accepted.report.moves) == number
        await accepted.aclose()


async def test_who_waits_for_a_move_is_told_when_none_comes(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice", linger=0.2) as alice,
        world.node("bob", linger=0) as bob,
        await alice.open_listener(8000) as arriving,
        await bob.open_stream("alice", 8000) as dialled,
    ):
        accepted = await arriving.accept()
        with trio.move_on_after(0.01):
            await accepted.wait_moved()  # cancelled, it has changed nothing
        dialled.lose(SILENCE)
        accepted.lose(SILENCE)
        with trio.fail_after(60), pytest.raises(trio.BrokenResourceError) as caught:
            await accepted.wait_moved()
        # Its own patience, or the word of a dialler that does not keep such streams.
        assert isinstance(caught.value.__cause__, TimeoutError | ConnectionResetError)
        assert not accepted.report.moves
        await accepted.aclose()


async def test_who_waits_for_a_move_is_told_every_end(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob") as bob,
        await alice.open_listener(8000) as arriving,
    ):

        async def wait(stream: NTCPStream, error: type[Exception]) -> None:
            with trio.fail_after(60), pytest.raises(error):
                await stream.wait_moved()

        async with trio.open_nursery() as nursery:
            dialled = await bob.open_stream("alice", 8000)
            accepted = await arriving.accept()
            nursery.start_soon(wait, dialled, trio.BrokenResourceError)
            nursery.start_soon(wait, accepted, trio.ClosedResourceError)
            await trio.testing.wait_all_tasks_blocked(0.01)
            accepted.reset()
            with pytest.raises(trio.BrokenResourceError):
                await dialled.receive_some()
        await wait(accepted, trio.ClosedResourceError)
        async with world.node("carol", linger=0) as carol, await carol.open_stream("alice", 8000) as fixed:
            with pytest.raises(OSError, match="does not move"):
                await fixed.wait_moved()


async def test_sockets_for_trio_tell_it_too(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob"):
        arriving = await alice.open_listener(8000)
        client = ntcpsock.trio.socket()
        with pytest.raises(OSError, match="not connected"):
            await client.wait_moved()
        await client.connect(("alice.ntcp", 8000))
        accepted = await arriving.accept()
        before, peer = client.path, client.getpeername()
        assert client._stream is not None
        client._stream.lose(SILENCE)
        with trio.fail_after(60):
            after = await client.wait_moved()
        assert client.path is after is not before
        assert client.report is not None
        assert client.report.moves[-1].path is after
        assert client.getpeername() == peer
        await client.send(b"hello")
        assert await accepted.receive_some() == b"hello"
        client.close()
        await accepted.aclose()
        await arriving.aclose()
        with (
            ntcpsock.trio.socket(type=socket.SOCK_DGRAM) as datagrams,
            pytest.raises(OSError, match="datagrams"),
        ):
            await datagrams.wait_moved()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Servers]:
    started = Servers(tmp_path / "servers")
    monkeypatch.setenv("NTCP_BROKER", started.world.uri)
    monkeypatch.setenv("NTCP_NAME", "alice")
    monkeypatch.setenv("NTCP_STATE", str(tmp_path / "alice"))
    monkeypatch.delenv("NTCP_CONFIG", raising=False)
    _portal.stop()
    yield started
    _portal.stop(2)
    if started.is_alive():
        started.stop()


def stream_of(sock: NTCPSocket) -> NTCPStream:
    ends = _known.ends(socket.socket.getsockname(sock), socket.socket.getpeername(sock))
    wait_until(lambda: ends in _forwarding._ways)
    stream = _forwarding._ways[ends].stream
    assert isinstance(stream, NTCPStream)
    return stream


def cut(dialled: NTCPStream, accepted: NTCPStream) -> None:
    """Both ends lose their path at once: where one of them only saw the other's end of the connection, on loopback,
    it would take the other one for dead."""

    def lose() -> None:
        for stream in (dialled, accepted):
            stream.driver.fail(SILENCE)

    wait_until(lambda: dialled.holder is not None and accepted.holder is not None)
    assert dialled.holder is not None
    assert accepted.holder is not None
    dialled.holder.soon(lose)
    accepted.holder.soon(lambda: None)


@pytest.mark.usefixtures("servers")
def test_the_path_of_a_socket_is_the_current_one() -> None:
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted, client.dup() as copy:
            before, there = client.path, accepted.path
            addresses = client.getpeername(), client.getsockname()
            assert before is not None
            cut(stream_of(client), stream_of(accepted))
            wait_until(lambda: client.path is not before)
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
            assert copy.path is client.path is not None
            assert client.path.local != before.local
            assert accepted.path is not there
            assert accepted.path is not None
            assert accepted.path.remote[1] == client.path.local[1]
            for sock in (client, accepted, copy):
                assert sock.report is not None
                assert sock.report.moves[-1].path is sock.path
            assert (client.getpeername(), client.getsockname()) == addresses
            with socket.create_server(("127.0.0.1", 0)) as plain, NTCPSocket() as ordinary:
                ordinary.connect(plain.getsockname())
                assert ordinary.path is None


def test_a_program_s_own_time_out_bounds_the_wait(servers: Servers) -> None:
    """Nobody introduces the two again: what would be waited for is the setting's minute."""
    with listener() as server:
        client, accepted = pair(server)
        with client, accepted:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 400)
            wait_until(lambda: stream_of(client).linger == 0.4)
            servers.stop()
            cut(stream_of(client), stream_of(accepted))
            with pytest.raises(TimeoutError) as caught:
                client.recv(1)
            assert (
                caught.value.errno == errno.ETIMEDOUT
            )  # the kernel's word, and not the socket's own time-out
