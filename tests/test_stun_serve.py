"""The STUN server with real sockets on loopback, and its script."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio
from stun_support import own_endpoint, serving, udp_socket

from ntcpsock._address import Endpoint
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers import mmsg
from ntcpsock._servers import stun as stun_server
from ntcpsock._servers.datagrams import DatagramSocket
from ntcpsock._servers.stun import serve_stun
from ntcpsock._traversal.stun.attributes import ChangedAddress, MappedAddress, SourceAddress, XorMappedAddress
from ntcpsock._traversal.stun.driver import binding_over_tcp, binding_over_udp, exchange_over_udp
from ntcpsock._traversal.stun.machine import Failed, Succeeded
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.usages import ChangeRequest

ROOT = Path(__file__).parent.parent
REQUEST = encode_message(binding_request(bytes(range(12))))


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


async def test_udp_and_tcp_on_one_port() -> None:
    async with serving() as addresses:
        with await udp_socket() as sock:
            result = await binding_over_udp(sock, addresses.primary)
            assert result.mapped == own_endpoint(sock)
            assert result.other_address is None
        async with await trio.open_tcp_stream(*addresses.primary) as stream:
            for _ in range(3):
                assert (await binding_over_tcp(stream.socket)).mapped == own_endpoint(stream.socket)
        await eventually(lambda: addresses.counters.tcp_open == 0)
        counters = addresses.counters
        assert (counters.udp_requests, counters.tcp_requests, counters.tcp_accepted) == (1, 3, 1)
        assert addresses.endpoints == (addresses.primary,)
        assert addresses.other is None


@needs_ipv6
async def test_ipv6() -> None:
    async with serving("::1") as addresses:
        with await udp_socket("::1") as sock:
            # In any spelling of the server's address.
            for host in ("::1", "0:0::0001"):
                server = Endpoint(host, addresses.primary.port)
                assert (await binding_over_udp(sock, server)).mapped == own_endpoint(sock)
        async with await trio.open_tcp_stream(*addresses.primary) as stream:
            assert (await binding_over_tcp(stream.socket)).mapped == own_endpoint(stream.socket)


async def test_two_addresses_and_two_ports() -> None:
    async with serving(other_address="127.0.0.2") as addresses:
        assert len(set(addresses.endpoints)) == 4
        assert addresses.other is not None
        assert addresses.other.host == "127.0.0.2"
        assert addresses.other.port != addresses.primary.port
        with await udp_socket() as sock:
            for endpoint in addresses.endpoints:
                result = await binding_over_udp(sock, endpoint)
                assert result.mapped == own_endpoint(sock)
                assert result.response_origin == endpoint
                opposite = result.other_address
                assert opposite is not None
                assert opposite in addresses.endpoints
                assert opposite.host != endpoint.host
                assert opposite.port != endpoint.port
        for endpoint in addresses.endpoints:
            async with await trio.open_tcp_stream(*endpoint) as stream:
                assert (await binding_over_tcp(stream.socket)).response_origin == endpoint


@pytest.mark.parametrize(("change_address", "change_port"), [(True, False), (False, True), (True, True)])
async def test_the_answer_comes_from_where_it_is_asked_for(change_address: bool, change_port: bool) -> None:
    async with serving(other_address="127.0.0.2") as addresses:
        assert addresses.other is not None
        expected = Endpoint(
            (addresses.other if change_address else addresses.primary).host,
            (addresses.other if change_port else addresses.primary).port,
        )
        request = binding_request(b"change it :)", ChangeRequest(change_address, change_port))
        with await udp_socket() as sock:
            await sock.sendto(encode_message(request), addresses.primary)
            data, source = await sock.recvfrom(2048)
            assert Endpoint(*source) == expected
            answer = decode_message(data).get(XorMappedAddress)
            assert answer == XorMappedAddress(own_endpoint(sock))
            event = await exchange_over_udp(sock, request, addresses.primary, answer_from=None)
            assert isinstance(event, Succeeded)


async def test_two_ports_of_one_address() -> None:
    async with serving(other_port=0) as addresses:
        assert [endpoint.host for endpoint in addresses.endpoints] == ["127.0.0.1"] * 2
        with await udp_socket() as sock:
            await sock.sendto(
                encode_message(binding_request(bytes(12), ChangeRequest(False, True))), addresses.primary
            )
            _data, source = await sock.recvfrom(2048)
            assert Endpoint(*source) == addresses.endpoints[1]
            refused = await exchange_over_udp(
                sock,
                binding_request(b"other host !", ChangeRequest(True, False)),
                addresses.primary,
                answer_from=addresses.primary,
            )
            assert isinstance(refused, Failed)
            assert refused.code == 420
        assert addresses.counters.udp_errors == 1


async def test_a_wildcard_answers_from_the_address_that_was_asked() -> None:
    async with serving("0.0.0.0", other_port=0) as addresses:
        with await udp_socket() as sock:
            for host in ("127.0.0.1", "127.0.0.2", "127.1.2.3"):
                await sock.sendto(REQUEST, (host, addresses.primary.port))
                _data, source = await sock.recvfrom(2048)
                assert source == (host, addresses.primary.port)
            change = encode_message(binding_request(bytes(12), ChangeRequest(False, True)))
            await sock.sendto(change, ("127.0.0.2", addresses.primary.port))
            _data, source = await sock.recvfrom(2048)
            assert source == ("127.0.0.2", addresses.endpoints[1].port)


@needs_ipv6
async def test_a_wildcard_of_ipv6() -> None:
    async with serving("::") as addresses:
        with await udp_socket("::1") as sock:
            result = await binding_over_udp(sock, Endpoint("::1", addresses.primary.port))
            assert result.mapped == own_endpoint(sock)


async def test_a_client_of_rfc_3489() -> None:
    async with serving(other_address="127.0.0.2") as addresses:
        with await udp_socket() as sock:
            request = Message(1, binding_request(bytes(12)).message_class, b"twelve bytes", cookie=b"four")
            await sock.sendto(encode_message(request), addresses.primary)
            data, _source = await sock.recvfrom(2048)
            assert data[4:20] == b"fourtwelve bytes"
            answer = decode_message(data, accept_rfc3489=True)
            assert addresses.other is not None
            assert answer.attributes == (
                MappedAddress(own_endpoint(sock)),
                SourceAddress(addresses.primary),
                ChangedAddress(addresses.other),
            )


async def test_noise_is_dropped_and_counted() -> None:
    async with serving() as addresses:
        with await udp_socket() as sock:
            for noise in (b"", b"noise", REQUEST[:-1], bytes(5000), REQUEST + bytes(3000)):
                await sock.sendto(noise, addresses.primary)
            assert (await binding_over_udp(sock, addresses.primary)).mapped == own_endpoint(sock)
            # Some of it by the kernel, where that looks first.
            assert addresses.counters.udp_dropped + addresses.counters.udp_unread == 5


async def test_an_answer_that_cannot_be_sent_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([PermissionError(), BlockingIOError()])
    send = DatagramSocket.send

    def fail_first(*arguments: object) -> None:
        for failure in failures:
            raise failure
        send(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mmsg, "AVAILABLE", False)
    monkeypatch.setattr(DatagramSocket, "send", fail_first)
    async with serving() as addresses:
        with await udp_socket() as sock:
            for _ in range(3):
                await sock.sendto(REQUEST, addresses.primary)
            assert len((await sock.recvfrom(2048))[0]) == 32
        assert addresses.counters.udp_unsent == 2


# --- limits of the TCP side --------------------------------------------------------------------


async def read_to_end(stream: trio.SocketStream) -> bytes:
    received = b""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            received += data
    return received


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as addresses, await trio.open_tcp_stream(*addresses.primary) as stream:
        ids = [number.to_bytes(12) for number in range(300)]
        await stream.send_all(b"".join(encode_message(binding_request(number)) for number in ids))
        await stream.send_eof()
        answers = await read_to_end(stream)
        assert [answers[at + 8 : at + 20] for at in range(0, len(answers), 32)] == ids


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"\0\1\xff\xfc\x21\x12\xa4\x42", id="too long"),
        pytest.param(bytes.fromhex("000100042112a442") + bytes(12) + b"\x80\x22\0\x99", id="overruns"),
    ],
)
async def test_what_is_not_stun_is_hung_up_on(data: bytes) -> None:
    async with serving() as addresses, await trio.open_tcp_stream(*addresses.primary) as stream:
        await stream.send_all(data)
        assert await read_to_end(stream) == b""
        await eventually(lambda: addresses.counters.tcp_open == 0)
        assert addresses.counters.tcp_broken == 1


async def test_an_idle_connection_is_closed() -> None:
    async with serving(idle_timeout=0.05) as addresses:
        async with await trio.open_tcp_stream(*addresses.primary) as stream:
            assert await read_to_end(stream) == b""
        assert addresses.counters.tcp_idle == 1


async def test_single_octets_do_not_keep_a_connection_alive() -> None:
    async with serving(idle_timeout=0.2) as addresses:
        async with await trio.open_tcp_stream(*addresses.primary) as stream:
            async with trio.open_nursery() as nursery:

                async def drip() -> None:
                    with suppress(trio.BrokenResourceError):
                        for octet in REQUEST[:-1]:
                            await stream.send_all(bytes([octet]))
                            await trio.sleep(0.02)

                nursery.start_soon(drip)
                assert await read_to_end(stream) == b""
                nursery.cancel_scope.cancel()
        assert addresses.counters.tcp_idle == 1


async def test_connections_over_the_limit_are_closed_and_the_others_served() -> None:
    async with serving(most_connections=2) as addresses:
        streams = [await trio.open_tcp_stream(*addresses.primary) for _ in range(2)]
        for stream in streams:
            await binding_over_tcp(stream.socket)
        async with await trio.open_tcp_stream(*addresses.primary) as refused:
            assert await read_to_end(refused) == b""
        assert addresses.counters.tcp_refused == 1
        for stream in streams:
            await binding_over_tcp(stream.socket)
            await stream.aclose()
        await eventually(lambda: addresses.counters.tcp_open == 0)
        async with await trio.open_tcp_stream(*addresses.primary) as again:
            await binding_over_tcp(again.socket)


async def test_one_host_cannot_take_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_server, "_MOST_CONNECTIONS_OF_A_HOST", 1)
    async with serving("0.0.0.0") as addresses:
        port = addresses.primary.port
        async with await trio.open_tcp_stream("127.0.0.1", port) as first:
            await binding_over_tcp(first.socket)
            async with await trio.open_tcp_stream("127.0.0.1", port) as second:
                assert await read_to_end(second) == b""
            async with await trio.open_tcp_stream(
                "127.0.0.1", port, local_address="127.0.0.2"
            ) as another_host:
                await binding_over_tcp(another_host.socket)


async def test_a_client_that_leaves_its_answers_unread_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_server, "_SEND_TIMEOUT", 0.1)
    async with serving() as addresses:
        async with await trio.open_tcp_stream(*addresses.primary) as greedy:

            async def ask_and_never_read() -> None:
                while True:
                    await greedy.send_all(REQUEST * 1000)

            with pytest.raises(trio.BrokenResourceError):
                await ask_and_never_read()
        assert addresses.counters.tcp_broken == 1
        with await udp_socket() as sock:
            await binding_over_udp(sock, addresses.primary)


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "port", "other_address", "other_port"),
    [
        ("127.0.0.1", 3478, None, 3478),
        ("127.0.0.1", 0, "127.0.0.1", None),
        ("0.0.0.0", 0, "127.0.0.1", None),
        ("127.0.0.1", 0, "0.0.0.0", None),
        ("127.0.0.1", 0, "::1", None),
    ],
)
async def test_impossible_addresses(
    listen: str, port: int, other_address: str | None, other_port: int | None
) -> None:
    with pytest.raises(ConfigurationError):
        await serve_stun(listen, port, other_address=other_address, other_port=other_port)


async def test_an_address_in_use_is_an_os_error() -> None:
    async with serving() as addresses:
        with pytest.raises(OSError, match="in use"):
            await serve_stun(*addresses.primary)


# --- the script --------------------------------------------------------------------------------


def free_ports() -> tuple[int, int]:
    """Two neighbouring ports that are free now, outside the range from which the kernel takes its own."""
    while True:
        first = random.randrange(10_000, 20_000)
        with suppress(OSError), ExitStack() as stack:
            for port in (first, first + 1):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    for host in ("127.0.0.1", "127.0.0.2"):
                        stack.enter_context(socket.socket(socket.AF_INET, kind)).bind((host, port))
            return first, first + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_script_runs_until_it_is_told_to_stop(number: signal.Signals) -> None:
    port, other_port = free_ports()
    arguments = ["--listen", "127.0.0.1", "--port", str(port)]
    arguments += ["--other-address", "127.0.0.2", "--other-port", str(other_port)]
    process = subprocess.Popen(  # noqa: ASYNC220 - its pipe is read in a thread below
        [sys.executable, ROOT / "servers" / "stun_server.py", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(60):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
            assert line == f"ready 127.0.0.1:{port} other 127.0.0.2:{other_port}\n"
            with await udp_socket() as sock:
                result = await binding_over_udp(sock, Endpoint("127.0.0.2", port))
                assert result.mapped == own_endpoint(sock)
            async with await trio.open_tcp_stream("127.0.0.1", other_port) as stream:
                await binding_over_tcp(stream.socket)
                process.send_signal(number)
                assert await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True) == 0
        assert not [line for line in process.stdout if not line.startswith("admin ")]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_script_says_in_one_line_what_is_wrong() -> None:
    for arguments in (["--listen", "203.0.113.77"], ["--port", "70000"], ["--other-address", "127.0.0.2"]):
        done = subprocess.run(
            [sys.executable, ROOT / "servers" / "stun_server.py", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("stun_server: ")
        assert done.stderr.count("\n") == 1
