"""The TURN client against coturn, over UDP, TCP and TLS, with all kinds of credentials, and with its faults."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from stun_support import own_endpoint, udp_socket
from test_stun_interop import needs
from turn_support import Coturn, coturn, write_certificate

from ntcpsock._address import Endpoint, TurnAddress, TurnTransport
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer
from ntcpsock._traversal.turn.driver import run_allocation
from ntcpsock._traversal.turn.machine import LIFETIME
from ntcpsock._traversal.turn.path import TurnPath
from ntcpsock._traversal.turn.transport import TurnError

pytestmark = needs("turnserver")

DEADLINE = 60


@pytest.fixture(scope="module")
def turn_certificate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The authority's file, and coturn's options for the server's certificate."""
    authority, certificate, key = write_certificate(tmp_path_factory.mktemp("certificate"))
    return [authority, f"--cert={certificate}", f"--pkey={key}"]


@asynccontextmanager
async def allocation_at(
    server: TurnServer, *, ipv6: bool = False, lifetime: int = LIFETIME
) -> AsyncIterator[TurnAllocation]:
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            run = partial(run_allocation, server, ipv6=ipv6, lifetime=lifetime)
            yield await nursery.start(run)
            nursery.cancel_scope.cancel()


async def try_to_allocate(server: TurnServer) -> TurnError:
    with pytest.raises(ExceptionGroup) as caught:
        async with allocation_at(server):
            pass
    error = caught.value.exceptions[0]
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, TurnError)
    return error


async def receive(sock: trio.socket.SocketType) -> tuple[bytes, Endpoint]:
    data, source = await sock.recvfrom(65_535)
    return data, Endpoint(*source[:2])


async def echo_through(allocation: TurnAllocation, sock: trio.socket.SocketType, sizes: list[int]) -> None:
    """Datagrams of these sizes there and back, over one path."""
    peer = own_endpoint(sock)
    await allocation.permit(peer.host)
    path = allocation.path(peer)
    assert (path.local, path.remote) == (allocation.relayed, peer)
    for size in sizes:
        data = bytes(size % 256 for _ in range(size))
        assert path.try_send([data]) == 1
        got, source = await receive(sock)
        assert (got, source) == (data, allocation.relayed)
        await sock.sendto(got[::-1], tuple(source))
        await path.wait_readable()
        assert path.try_receive() == [data[::-1]]
        assert path.try_receive() == []
    path.close()


# --- transports and credentials ----------------------------------------------------------------


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_datagrams_there_and_back(tmp_path: Path, transport: TurnTransport) -> None:
    with coturn(tmp_path) as server, await udp_socket() as sock:
        await server.ready()
        async with allocation_at(server.server(transport)) as allocation:
            # Before the channel is bound they go as indications, and some need padding over TCP.
            await echo_through(allocation, sock, [1, 2, 3, 4, 5, 1200, 1199, 0, 1198, 1400])
            assert allocation.mapped.host == "127.0.0.1"
            assert not allocation.dropped


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_over_tls(tmp_path: Path, turn_certificate: list[str], host: str) -> None:
    with coturn(tmp_path, *turn_certificate[1:]) as server, await udp_socket() as sock:
        await server.ready()
        tls = server.server("tls", ca_file=turn_certificate[0], host=host)
        async with allocation_at(tls) as allocation:
            await echo_through(allocation, sock, [1, 1200, 3])


async def test_a_tls_server_that_nobody_vouches_for(tmp_path: Path, turn_certificate: list[str]) -> None:
    with coturn(tmp_path, *turn_certificate[1:]) as server:
        await server.ready()
        error = await try_to_allocate(server.server("tls", host="localhost"))
        assert error.errno == errno.ECONNABORTED
        assert "ca_file" in str(error)


async def test_a_tls_server_of_another_name(tmp_path: Path, turn_certificate: list[str]) -> None:
    with coturn(tmp_path, *turn_certificate[1:], host="127.0.0.3") as server:
        await server.ready()
        error = await try_to_allocate(server.server("tls", ca_file=turn_certificate[0]))
        assert "127.0.0.3" in str(error)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_time_limited_credentials(tmp_path: Path, transport: TurnTransport) -> None:
    options = ("--use-auth-secret", "--static-auth-secret=hush")
    with coturn(tmp_path, *options) as server, await udp_socket() as sock:
        await server.ready()
        good = server.server(transport, user="alice", password=None, secret="hush")
        async with allocation_at(good) as allocation:
            await echo_through(allocation, sock, [100])
        error = await try_to_allocate(server.server(transport, user="alice", password=None, secret="other"))
        assert (error.code, error.errno) == (401, errno.EACCES)
        assert "hush" not in repr(good)
        assert "alice" not in repr(good)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_wrong_password(tmp_path: Path, transport: TurnTransport) -> None:
    with coturn(tmp_path) as server:
        await server.ready()
        error = await try_to_allocate(server.server(transport, password="wrong"))
        assert (error.code, error.errno) == (401, errno.EACCES)
        assert "turn_password" in str(error)
        assert "wrong user" in str(error)


async def test_an_ipv6_relayed_address(tmp_path: Path) -> None:
    try:
        sock = await udp_socket("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with sock, coturn(tmp_path, "-L", "::1", "-E", "::1", "-E", "127.0.0.1") as server:
        await server.ready()
        async with allocation_at(server.server("udp"), ipv6=True) as allocation:
            assert allocation.relayed.is_ipv6
            await echo_through(allocation, sock, [10, 1200])
            with pytest.raises(TurnError) as caught:
                await allocation.permit("127.0.0.1")
            assert caught.value.errno == errno.EAFNOSUPPORT


# --- peers -------------------------------------------------------------------------------------


async def test_many_peers_on_one_allocation(tmp_path: Path) -> None:
    with coturn(tmp_path) as server:
        await server.ready()
        async with allocation_at(server.server()) as allocation:
            await allocation.permit("127.0.0.1")
            socks = [await udp_socket() for _ in range(10)]
            paths = [allocation.path(own_endpoint(sock)) for sock in socks]
            for number, path in enumerate(paths):
                assert path.try_send([b"%d" % number] * 3) == 3
            for number, (sock, path) in enumerate(zip(socks, paths, strict=True)):
                for _ in range(3):
                    assert await receive(sock) == (b"%d" % number, allocation.relayed)
                await sock.sendto(b"back %d" % number, tuple(allocation.relayed))
                await path.wait_readable()
                assert path.try_receive() == [b"back %d" % number]
            for sock in socks:
                sock.close()


async def test_two_allocations_meet(tmp_path: Path) -> None:
    """Both sides behind a relay, one of them over TCP, as where UDP is blocked."""
    with coturn(tmp_path) as server:
        await server.ready()
        async with (
            allocation_at(server.server("udp")) as one,
            allocation_at(server.server("tcp")) as other,
        ):
            await one.permit(other.relayed.host)
            await other.permit(one.relayed.host)
            there, back = one.path(other.relayed), other.path(one.relayed)
            there.try_send([b"ping"])
            await back.wait_readable()
            assert back.try_receive() == [b"ping"]
            back.try_send([b"pong"])
            await there.wait_readable()
            assert there.try_receive() == [b"pong"]


async def test_what_belongs_to_no_path_tells_its_source(tmp_path: Path) -> None:
    with coturn(tmp_path) as server, await udp_socket() as sock:
        await server.ready()
        async with allocation_at(server.server()) as allocation:
            await allocation.permit("127.0.0.1")
            await sock.sendto(b"check", tuple(allocation.relayed))
            assert await allocation.receive_from() == (b"check", own_endpoint(sock))
            assert allocation.try_send_to([b"answer"], own_endpoint(sock)) == 1
            assert await receive(sock) == (b"answer", allocation.relayed)


async def test_nobody_else_gets_in(tmp_path: Path) -> None:
    with (
        coturn(tmp_path) as server,
        await udp_socket("127.0.0.1") as peer,
        await udp_socket("127.0.0.5") as foe,
    ):
        await server.ready()
        async with allocation_at(server.server()) as allocation:
            await allocation.permit("127.0.0.1")
            path = allocation.path(own_endpoint(peer))
            await foe.sendto(b"let me in", tuple(allocation.relayed))
            await peer.sendto(b"hello", tuple(allocation.relayed))
            await path.wait_readable()
            assert path.try_receive() == [b"hello"]


async def test_a_peer_that_the_server_does_not_serve(tmp_path: Path) -> None:
    with coturn(tmp_path, "--denied-peer-ip=192.0.2.0-192.0.2.255") as server:
        await server.ready()
        async with allocation_at(server.server()) as allocation:
            with pytest.raises(TurnError) as caught:
                await allocation.permit("192.0.2.9")
            assert caught.value.errno == errno.EACCES
            assert "192.0.2.9" in str(caught.value)
            await allocation.permit("127.0.0.1")


# --- ends --------------------------------------------------------------------------------------


async def allocate_again(server: TurnServer) -> None:
    """coturn takes a moment to free the place of one that was given back, and ten minutes for one that was not."""
    while True:
        try:
            async with allocation_at(server):
                return
        except ExceptionGroup as group:
            if not group.subgroup(lambda error: isinstance(error, OSError) and error.errno == errno.EDQUOT):
                raise
        await trio.sleep(0.1)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_cancelled_allocation_frees_its_place(tmp_path: Path, transport: TurnTransport) -> None:
    with coturn(tmp_path, "--user-quota=1") as server, trio.fail_after(DEADLINE):
        await server.ready()
        async with allocation_at(server.server(transport)):
            error = await try_to_allocate(server.server("udp"))
            assert (error.code, error.errno) == (486, errno.EDQUOT)
        await allocate_again(server.server(transport))


async def test_close_ends_the_task_and_the_paths(tmp_path: Path) -> None:
    with coturn(tmp_path, "--user-quota=1") as server, trio.fail_after(DEADLINE):
        await server.ready()
        async with trio.open_nursery() as nursery:
            allocation: TurnAllocation = await nursery.start(run_allocation, server.server())
            await allocation.permit("127.0.0.1")
            path, other = (allocation.path(Endpoint("127.0.0.1", port)) for port in (9, 10))
            allocation.close_when_unused()
            path.close()
            assert other.try_send([b"x"]) == 1
            with pytest.raises(trio.ClosedResourceError):
                path.try_send([b"x"])
            nursery.start_soon(wait_until_broken, other)
            allocation.close()
        await allocate_again(server.server())


async def wait_until_broken(path: TurnPath) -> None:
    await path.wait_readable()
    with pytest.raises(TurnError) as caught:
        path.try_receive()
    assert caught.value.errno == errno.ECONNABORTED


async def test_the_last_path_closes_the_allocation(tmp_path: Path) -> None:
    with coturn(tmp_path) as server, trio.fail_after(DEADLINE):
        await server.ready()
        async with trio.open_nursery() as nursery:
            allocation: TurnAllocation = await nursery.start(run_allocation, server.server())
            await allocation.permit("127.0.0.1")
            path = allocation.path(Endpoint("127.0.0.1", 9))
            allocation.close_when_unused()
            path.close()


async def test_a_cancelled_allocation_while_it_is_made(tmp_path: Path) -> None:
    # Nobody answers there: the request is under way when its time is over.
    with await udp_socket() as mute, trio.move_on_after(0.3) as scope:
        server = TurnServer(TurnAddress(*own_endpoint(mute), "udp"), "u", "p")
        async with trio.open_nursery() as nursery:
            await nursery.start(run_allocation, server)
    assert scope.cancelled_caught


async def test_no_server_there(tmp_path: Path) -> None:
    with await udp_socket() as sock:
        endpoint = own_endpoint(sock)
    error = await try_to_allocate(TurnServer(TurnAddress(*endpoint, "udp"), "u", "p"))
    assert error.errno == errno.ECONNREFUSED
    assert str(endpoint) in str(error).replace("turn:", "")


# --- faults ------------------------------------------------------------------------------------


async def lost(server: Coturn, transport: TurnTransport) -> tuple[OSError, float]:
    """What a path says of a restarted server, and how many seconds after."""
    with await udp_socket() as sock:
        async with allocation_at(server.server(transport)) as allocation:
            await echo_through(allocation, sock, [10, 10])
            path = allocation.path(own_endpoint(sock))
            server.stop()
            server.start()
            await server.ready()
            begin = trio.current_time()
            while True:
                try:
                    path.try_send([b"anybody there?"])
                    path.try_receive()
                except OSError as error:
                    return error, trio.current_time() - begin
                await trio.sleep(0.2)


@pytest.mark.slow
async def test_a_restarted_server_over_udp(tmp_path: Path) -> None:
    with coturn(tmp_path) as server:
        await server.ready()
        error, seconds = await lost(server, "udp")
        assert isinstance(error, TurnError)
        assert error.errno == errno.ECONNRESET
        assert error.code == 437
        assert "the server was restarted" in str(error)
        assert 4 < seconds < 20


async def test_a_restarted_server_over_tcp(tmp_path: Path) -> None:
    with coturn(tmp_path) as server:
        await server.ready()
        error, _ = await lost(server, "tcp")
        assert error.errno in (errno.ECONNRESET, errno.EPIPE)
        assert "TURN server" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_stale_nonces_and_short_lifetimes(tmp_path: Path, transport: TurnTransport) -> None:
    """Everything that has to be renewed is, several times, and nothing is lost of it."""
    options = ("--stale-nonce=3", "--max-allocate-lifetime=4", "--channel-lifetime=600")
    with coturn(tmp_path, *options) as server, await udp_socket() as sock:
        await server.ready()
        async with allocation_at(server.server(transport)) as allocation:
            for _ in range(6):
                await echo_through(allocation, sock, [10, 10])
                await trio.sleep(3)
            assert not allocation.dropped


async def test_a_stale_nonce(tmp_path: Path) -> None:
    options = ("--stale-nonce=1", "--max-allocate-lifetime=2")
    with coturn(tmp_path, *options) as server, await udp_socket() as sock:
        await server.ready()
        async with allocation_at(server.server()) as allocation:
            for _ in range(2):
                await echo_through(allocation, sock, [10])
                await trio.sleep(1.5)


async def test_the_server_sends_us_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with coturn(tmp_path / "other", host="127.0.0.2") as other:
        to_other = f"--alternate-server={other.host}:{other.port}"
        with coturn(tmp_path / "one", to_other) as one, await udp_socket() as sock:
            await other.ready()
            await one.ready()
            transports: tuple[TurnTransport, ...] = ("udp", "tcp")
            for transport in transports:
                async with allocation_at(one.server(transport)) as allocation:
                    assert allocation.server.port == other.port
                    await echo_through(allocation, sock, [10])


async def test_servers_that_send_us_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with coturn(tmp_path / "other", host="127.0.0.2") as other:
        with coturn(tmp_path / "one", f"--alternate-server={other.host}:{other.port}") as one:
            other.argv.append(f"--alternate-server={one.host}:{one.port}")
            other.stop()
            other.start()
            await other.ready()
            await one.ready()
            error = await try_to_allocate(one.server())
            assert error.errno == errno.ELOOP
