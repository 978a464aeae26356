from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import pytest
import trio
import trio.testing

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.attributes import (
    Attribute,
    ErrorCodeAttribute,
    MappedAddress,
    OtherAddress,
    ResponseOrigin,
    Software,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.driver import (
    BindingResult,
    StunError,
    binding_over_tcp,
    binding_over_udp,
    exchange_over_udp,
)
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.machine import Succeeded
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message

SERVER = Endpoint("198.51.100.1", 3478)
MAPPED = Endpoint("192.0.2.1", 40000)


def answer(
    request: bytes, *attributes: Attribute, kind: MessageClass = MessageClass.SUCCESS_RESPONSE
) -> bytes:
    decoded = decode_message(request)
    return encode_message(Message(decoded.method, kind, decoded.transaction_id, attributes))


class SilentSocket:
    """Sends into the void, and remembers when."""

    def __init__(self) -> None:
        self.sent_at: list[float] = []

    async def sendto(self, data: bytes, destination: tuple[str, int]) -> int:
        assert destination == SERVER
        self.sent_at.append(trio.current_time())
        return len(data)

    async def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, data: bytes) -> int:
        return await self.sendto(data, SERVER)

    async def recv(self, size: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError


async def test_schedule_over_udp(autojump_clock: trio.testing.MockClock) -> None:
    sock, start = SilentSocket(), trio.current_time()
    with pytest.raises(TimeoutError) as caught:
        await binding_over_udp(cast(trio.socket.SocketType, sock), SERVER)
    assert caught.value.errno == errno.ETIMEDOUT
    assert [time - start for time in sock.sent_at] == pytest.approx([0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5])
    assert trio.current_time() - start == pytest.approx(39.5)


async def test_schedule_over_tcp(autojump_clock: trio.testing.MockClock) -> None:
    sock, start = SilentSocket(), trio.current_time()
    with pytest.raises(TimeoutError):
        await binding_over_tcp(cast(trio.socket.SocketType, sock))
    assert len(sock.sent_at) == 1
    assert trio.current_time() - start == pytest.approx(39.5)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What is to be closed after the test."""
    with ExitStack() as stack:
        yield stack


async def udp_pair(opened: ExitStack) -> tuple[trio.socket.SocketType, ...]:
    pair = []
    for _ in range(2):
        sock = opened.enter_context(trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM))
        await sock.bind(("127.0.0.1", 0))
        pair.append(sock)
    return tuple(pair)


async def test_noise_and_strangers_are_ignored(nursery: trio.Nursery, opened: ExitStack) -> None:
    client, server = await udp_pair(opened)
    stranger, _ = await udp_pair(opened)
    place = Endpoint(*server.getsockname())

    async def serve() -> None:
        request, source = await server.recvfrom(2048)
        await stranger.sendto(answer(request, XorMappedAddress(Endpoint("6.6.6.6", 666))), source)
        await server.sendto(b"noise", source)
        await server.sendto(answer(encode_message(binding_request(bytes(12))), MappedAddress(MAPPED)), source)
        await server.sendto(
            answer(
                request,
                MappedAddress(Endpoint("10.0.0.1", 1)),
                XorMappedAddress(MAPPED),
                OtherAddress(SERVER),
                ResponseOrigin(place),
            ),
            source,
        )

    nursery.start_soon(serve)
    with trio.fail_after(30):
        result = await binding_over_udp(client, place)
    assert result == BindingResult(MAPPED, SERVER, place, result.rtt)
    assert result.rtt > 0


async def test_an_answer_from_elsewhere_where_it_is_asked_for(
    nursery: trio.Nursery, opened: ExitStack
) -> None:
    client, server = await udp_pair(opened)
    elsewhere, _ = await udp_pair(opened)

    async def serve() -> None:
        request, source = await server.recvfrom(2048)
        await elsewhere.sendto(answer(request, XorMappedAddress(MAPPED)), source)

    nursery.start_soon(serve)
    with trio.fail_after(30):
        event = await exchange_over_udp(
            client, binding_request(b"0123456789ab"), Endpoint(*server.getsockname()), answer_from=None
        )
    assert isinstance(event, Succeeded)


async def test_an_error_response(nursery: trio.Nursery, opened: ExitStack) -> None:
    client, server = await udp_pair(opened)

    async def serve() -> None:
        request, source = await server.recvfrom(2048)
        refusal = answer(request, ErrorCodeAttribute(500, "Server Error"), kind=MessageClass.ERROR_RESPONSE)
        await server.sendto(refusal, source)

    nursery.start_soon(serve)
    with trio.fail_after(30), pytest.raises(StunError, match="500: Server Error") as caught:
        await binding_over_udp(client, Endpoint(*server.getsockname()))
    assert caught.value.code == 500
    assert caught.value.errno == errno.EPROTO
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.code, again.errno, str(again)) == (500, errno.EPROTO, str(caught.value))


async def tcp_pair(opened: ExitStack) -> tuple[trio.socket.SocketType, trio.SocketStream]:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    client = opened.enter_context(trio.socket.socket())
    async with listener:
        await client.connect(listener.socket.getsockname())
        stream = await listener.accept()
    opened.enter_context(stream.socket)
    return client, stream


class TcpServer:
    """Requests in, hand-made answers out."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._splitter = MessageSplitter()

    async def request(self) -> bytes:
        while True:
            for message in self._splitter.receive_data(await self.stream.receive_some(2048)):
                return message


async def test_one_tcp_connection_is_asked_again_and_again(opened: ExitStack) -> None:
    client, stream = await tcp_pair(opened)
    server = TcpServer(stream)

    async def serve() -> None:
        for number in range(3):
            data = answer(await server.request(), XorMappedAddress(Endpoint("192.0.2.1", number)))
            for octet in data:  # in as many segments as there can be
                await stream.send_all(bytes([octet]))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(3):
                assert (await binding_over_tcp(client)).mapped == Endpoint("192.0.2.1", number)


async def test_a_call_given_up_in_the_middle_of_its_answer_spoils_nothing(opened: ExitStack) -> None:
    client, stream = await tcp_pair(opened)
    server = TcpServer(stream)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def give_up() -> None:
                with scope:
                    await binding_over_tcp(client)

            nursery.start_soon(give_up)
            late = answer(await server.request(), XorMappedAddress(SERVER), Software("late"))
            await stream.send_all(late[:30])
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                request = await server.request()
                await stream.send_all(late[30:] + answer(request, XorMappedAddress(MAPPED)))

            nursery.start_soon(serve)
            assert (await binding_over_tcp(client)).mapped == MAPPED


async def test_a_server_that_hangs_up(opened: ExitStack) -> None:
    client, stream = await tcp_pair(opened)
    await stream.send_eof()
    with trio.fail_after(30), pytest.raises(ConnectionResetError) as caught:
        await binding_over_tcp(client)
    assert caught.value.errno == errno.ECONNRESET


async def test_a_server_of_another_protocol(opened: ExitStack) -> None:
    client, stream = await tcp_pair(opened)
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    with trio.fail_after(30), pytest.raises(StunError, match="does not speak STUN"):
        await binding_over_tcp(client)
