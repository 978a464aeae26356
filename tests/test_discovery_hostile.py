"""Servers that lie, talk nonsense or say nothing: a discovery ends in unknowns, in time, and leaves nothing open."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from stun_support import serving

from ntcpsock._address import Endpoint
from ntcpsock._diagnosis import Discovery
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.discover import discover
from ntcpsock._traversal.discovery.driver import run_discovery
from ntcpsock._traversal.discovery.evidence import Outcome
from ntcpsock._traversal.discovery.machine import DiscoveryMachine
from ntcpsock._traversal.discovery.prospects import advice, headline, prospects, unknowns
from ntcpsock._traversal.punch.driver import choose_port
from ntcpsock._traversal.stun.attributes import Attribute, OtherAddress, XorMappedAddress
from ntcpsock._traversal.stun.connect_back import ConnectBack, ConnectBackOutcome
from ntcpsock._traversal.stun.constants import MessageClass, Method
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.message import Message, decode_message, encode_message, error_response

Answer = Callable[[Message, Endpoint], bytes | None]


@asynccontextmanager
async def hostile_server(answer: Answer) -> AsyncIterator[Endpoint]:
    """A server on UDP and TCP that answers each request with the bytes that `answer` gives; None: nothing."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        # A port that choose_port has found to be free for TCP; UDP has no other users here.
        place = Endpoint("127.0.0.1", choose_port())
        await datagrams.bind(tuple(place))
        listeners = await trio.open_tcp_listeners(place.port, host=place.host)

        async def serve_datagrams() -> None:
            while True:
                data, source = await datagrams.recvfrom(4096)
                reply = answer(decode_message(data), Endpoint(*source))
                if reply is not None:
                    await datagrams.sendto(reply[:1400], source)

        async def serve_stream(stream: trio.SocketStream) -> None:
            splitter = MessageSplitter()
            try:
                source = Endpoint(*stream.socket.getpeername())
                async for data in stream:
                    for message in splitter.receive_data(bytes(data)):
                        reply = answer(decode_message(message), source)
                        if reply is not None:
                            await stream.send_all(reply)
            except (OSError, trio.BrokenResourceError, BadMessage):
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_datagrams)
            nursery.start_soon(trio.serve_listeners, serve_stream, listeners)
            yield place
            nursery.cancel_scope.cancel()


def says(*attributes: Attribute) -> Answer:
    def answer(request: Message, source: Endpoint) -> bytes:
        return encode_message(
            Message(Method.BINDING, MessageClass.SUCCESS_RESPONSE, request.transaction_id, attributes)
        )

    return answer


def truth_and(*attributes: Attribute) -> Answer:
    def answer(request: Message, source: Endpoint) -> bytes:
        return says(XorMappedAddress(source), *attributes)(request, source)  # type: ignore[return-value]

    return answer


def check(found: Discovery) -> None:
    """All that a command would do with it."""
    headline(found)
    advice(found)
    prospects(found)
    assert all(why for _, why in unknowns(found))
    for transport in (found.udp, found.tcp):
        assert not transport.filtering.is_known
        assert not transport.stray.is_known


NOWHERE = (
    Endpoint("0.0.0.0", 0),
    Endpoint("127.0.0.1", 0),
    Endpoint("224.0.0.1", 5),
    Endpoint("2001:db8::1", 5),
)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            lambda request, source: b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n", id="portal"
        ),
        pytest.param(lambda request, source: b"", id="empty"),
        pytest.param(lambda request, source: encode_message(request), id="echo"),
        pytest.param(says(), id="no mapped address"),
        *(pytest.param(says(XorMappedAddress(place)), id=f"you are {place}") for place in NOWHERE),
        pytest.param(truth_and(OtherAddress(Endpoint("192.0.2.66", 53))), id="a victim as its other address"),
        pytest.param(truth_and(ConnectBack(ConnectBackOutcome.CONNECTED)), id="connected, it says"),
        pytest.param(truth_and(ConnectBack(251)), id="an outcome that nobody knows"),
    ],
)
async def test_a_hostile_server(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(60):
        async with hostile_server(answer) as server:
            found = await discover([server], deadline=1.0)
    check(found)
    assert not any("192.0.2.66" in line for line in found.evidence)


async def test_a_reason_phrase_reaches_no_terminal() -> None:
    def answer(request: Message, source: Endpoint) -> bytes:
        return encode_message(error_response(request, 599, reason="\x1b]0;owned\x07" + 400 * "x"))

    with trio.fail_after(60):
        async with hostile_server(answer) as server:
            found = await discover([server], deadline=1.0)
    check(found)
    said = [line for line in found.evidence if "599" in line]
    assert said
    assert all(line.isprintable() and len(line) < 200 for line in said)


async def test_a_portal_is_named() -> None:
    with trio.fail_after(60):
        async with hostile_server(lambda request, source: b"HTTP/1.1 302 Found\r\n\r\n") as server:
            found = await discover([server], deadline=1.0)
    assert found.captive_portal.truth is True
    assert "log in" in advice(found)[0]


async def test_an_address_that_changes_each_time_is_no_crash() -> None:
    count = 0

    def answer(request: Message, source: Endpoint) -> bytes | None:
        nonlocal count
        count += 1
        place = Endpoint(f"127.0.{count % 256}.{count % 256}", 1024 + count)
        return says(XorMappedAddress(place))(request, source)

    with trio.fail_after(60):
        async with hostile_server(answer) as server:
            found = await discover([server], deadline=1.5)
    check(found)
    assert found.tcp.allocation.value != "preserving"


async def test_silence_takes_no_longer_than_allowed() -> None:
    with trio.fail_after(60):
        async with hostile_server(lambda request, source: None) as server:
            started = trio.current_time()
            found = await discover([server], deadline=0.3)
            assert found.seconds >= 0.3
            assert trio.current_time() - started < 50
    check(found)
    assert any("unfinished" in line for line in found.evidence)


async def test_nobody_there() -> None:
    found = await discover([Endpoint("127.0.0.1", 9)], deadline=1.0)
    assert found.tcp.reachable.truth is False
    assert "refused" in found.tcp.reachable.why


async def test_cancelled_it_leaves_no_socket_open() -> None:
    """Warnings are errors: what is not closed is reported when it is collected."""
    async with serving(other_address="127.0.0.2") as addresses:
        for moment in (0.0, 0.01, 0.03, 0.1):
            with trio.move_on_after(moment):
                await discover([addresses.primary])


async def test_an_honest_server_over_loopback() -> None:
    async with serving(other_address="127.0.0.2") as addresses:
        outcomes = await run_discovery(DiscoveryMachine([addresses.primary]))
        found = await discover([addresses.primary])
    assert all(isinstance(item, Outcome) for item in outcomes)
    for transport in (found.udp, found.tcp):
        assert transport.translated.truth is False
        assert transport.mapping.value == "endpoint-independent"
        assert transport.filtering.value == "endpoint-independent"
    assert found.udp.fragments.truth is True
    assert found.double_nat.truth is False
