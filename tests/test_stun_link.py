"""RFC 5780 with the second address on another host: two servers that share a key, each the other's second address."""

from __future__ import annotations

import ipaddress
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from stun_support import own_endpoint, serving, udp_socket
from test_stun_interop import needs, run

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage, ConfigurationError
from ntcpsock._servers.stun import StunAddresses, serve_stun
from ntcpsock._traversal.stun.attributes import (
    OtherAddress,
    ResponseOrigin,
    UnknownAttributes,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import AttributeType
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.link import LIFETIME, MAX_RESPONSE, OVERHEAD, Link, Order
from ntcpsock._traversal.stun.message import binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.server import BindingServer, ConnectBackOrder
from ntcpsock._traversal.stun.usages import ChangeRequest

KEY = bytes(range(32))
HERE, THERE = "127.0.0.1", "127.0.0.2"
NOW = 1_700_000_000.0
CLIENT = Endpoint("192.0.2.9", 40000)


def free_ports() -> int:
    """A port that is free together with the next one, on both hosts, for UDP and TCP: below those that the system gives
    to whoever asks for any."""
    while True:
        port = random.randrange(10_000, 20_000, 2)
        with ExitStack() as stack:
            try:
                for host in (HERE, THERE):
                    for number in (port, port + 1):
                        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                            stack.enter_context(socket.socket(socket.AF_INET, kind)).bind((host, number))
            except OSError:
                continue
            return port


@asynccontextmanager
async def two_hosts(key_there: bytes = KEY) -> AsyncIterator[tuple[StunAddresses, StunAddresses]]:
    port = free_ports()
    async with serving(HERE, port, other_address=THERE, other_port=port + 1, link_key=KEY) as here:
        async with serving(THERE, port, other_address=HERE, other_port=port + 1, link_key=key_there) as there:
            yield here, there


@pytest.mark.parametrize("change_address", [True, False])
@pytest.mark.parametrize("change_port", [True, False])
async def test_it_answers_from_each_of_the_four_endpoints(change_address: bool, change_port: bool) -> None:
    async with two_hosts() as (here, there):
        with await udp_socket() as sock:
            request = binding_request(bytes(range(12)), ChangeRequest(change_address, change_port))
            await sock.sendto(encode_message(request), tuple(here.primary))
            data, source = await sock.recvfrom(2048)
            port = here.primary.port + change_port
            assert source == (THERE if change_address else HERE, port)
            answer = decode_message(data)
            assert answer.transaction_id == request.transaction_id
            assert answer.get(XorMappedAddress) == XorMappedAddress(own_endpoint(sock))
            assert answer.get(ResponseOrigin) == ResponseOrigin(Endpoint(*source))
            assert answer.get(OtherAddress) == OtherAddress(Endpoint(THERE, here.primary.port + 1))
            # The other way round as well.
            await sock.sendto(encode_message(request), tuple(there.primary))
            _, source = await sock.recvfrom(2048)
            assert source == (HERE if change_address else THERE, port)
        assert here.counters.link_sent == there.counters.link_carried_out == change_address
        assert there.counters.link_sent == here.counters.link_carried_out == change_address


@needs("turnutils_natdiscovery")
async def test_turnutils_natdiscovery_is_content() -> None:
    async with two_hosts() as (here, _):
        output = await run(
            "turnutils_natdiscovery", "-m", "-f", "-L", HERE, "-p", str(here.primary.port), HERE
        )
        assert "Endpoint Independent Filtering" in output, output
        assert "Endpoint Independent Mapping" in output or "No NAT" in output, output
        assert "timeout" not in output, output


async def test_orders_of_strangers_are_dropped() -> None:
    """Nobody without the key has a server send anything anywhere, and no order is carried out twice."""
    async with two_hosts() as (_, there):
        with await udp_socket() as sock, await udp_socket() as victim:
            order = Order(there.primary.port, own_endpoint(victim), b"hello")
            wrong = Link(bytes(32)).seal(order, time.time())
            good = Link(KEY).seal(order, time.time())
            old = Link(KEY).seal(order, time.time() - 2 * LIFETIME)
            other_port = Link(KEY).seal(Order(9, own_endpoint(victim), b"hello"), time.time())
            for datagram in (wrong, good[:-1], old, other_port, b"\xc5", good, good):
                await sock.sendto(datagram, tuple(there.primary))
            assert await victim.recvfrom(100) == (b"hello", tuple(there.primary))
            while there.counters.link_dropped < 6:
                await trio.sleep(0.01)
            assert there.counters.link_carried_out == 1


async def test_a_client_gets_only_so_many_answers_from_the_other_host() -> None:
    async with two_hosts() as (here, _):
        with await udp_socket() as sock:
            request = encode_message(binding_request(bytes(range(12)), ChangeRequest(True, True)))
            for _ in range(200):
                await sock.sendto(request, tuple(here.primary))
            while here.counters.link_sent + here.counters.link_refused < 200:
                await trio.sleep(0.01)
        assert here.counters.link_sent < 100
        assert here.counters.link_refused > 50


async def test_two_keys_are_no_link() -> None:
    async with two_hosts(bytes(32)) as (here, there):
        with await udp_socket() as sock:
            request = encode_message(binding_request(bytes(range(12)), ChangeRequest(True, True)))
            await sock.sendto(request, tuple(here.primary))
            while not there.counters.link_dropped:
                await trio.sleep(0.01)
            with pytest.raises(BlockingIOError):
                sock._sock.recv(100, socket.MSG_DONTWAIT)  # type: ignore[attr-defined]


async def test_over_tcp_the_other_host_connects_to_nobody() -> None:
    async with two_hosts() as (here, _):
        stream = await trio.open_tcp_stream(*here.primary)
        async with stream:
            await stream.send_all(
                encode_message(binding_request(bytes(range(12)), ChangeRequest(True, False)))
            )
            splitter = MessageSplitter(2048)
            messages: list[bytes] = []
            while not messages:
                messages = splitter.receive_data(bytes(await stream.receive_some(2048)))
            refused = decode_message(messages[0]).get(UnknownAttributes)
            assert refused == UnknownAttributes((AttributeType.CHANGE_REQUEST,))
    core = BindingServer(Endpoint(HERE, 1), THERE, 2, connects_back=True, other_is_remote=True)
    request = encode_message(binding_request(bytes(range(12)), ChangeRequest(False, True)))
    assert isinstance(core.handle_stream_message(request, CLIENT, Endpoint(HERE, 1)), ConnectBackOrder)


@pytest.mark.parametrize("settings", [{"other_port": 0}, {"port": 0}, {"other_address": None}])
async def test_a_link_needs_what_both_know(settings: dict[str, object]) -> None:
    wanted = {"port": 20001, "other_address": THERE, "other_port": 20002, **settings}
    with pytest.raises(ConfigurationError, match="a link needs"):
        await serve_stun(HERE, link_key=KEY, **wanted)  # type: ignore[arg-type]


@given(
    st.integers(1, 65535),
    st.ip_addresses(),
    st.integers(1, 65535),
    st.binary(min_size=1, max_size=MAX_RESPONSE),
)
def test_orders_arrive_as_they_were_given(port: int, host: object, to: int, response: bytes) -> None:
    address = ipaddress.ip_address(str(host))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return
    order = Order(port, Endpoint(str(address), to), response)
    datagram = Link(KEY).seal(order, NOW)
    assert len(datagram) == len(response) + OVERHEAD
    assert Link(KEY).open_untrusted(datagram, NOW + LIFETIME / 2) == order


@given(st.binary(max_size=200), st.integers(0, 199), st.integers(1, 255))
def test_whatever_is_changed_in_an_order_is_found(junk: bytes, place: int, change: int) -> None:
    link = Link(KEY)
    with pytest.raises(BadMessage):
        link.open_untrusted(junk, NOW)
    datagram = bytearray(link.seal(Order(3478, CLIENT, b"x" * 100), NOW))
    datagram[place % len(datagram)] ^= change
    with pytest.raises(BadMessage):
        link.open_untrusted(bytes(datagram), NOW)


def test_no_order_is_taken_twice_however_many_come() -> None:
    sender, receiver = Link(KEY), Link(KEY)
    first = sender.seal(Order(3478, CLIENT, b"x"), NOW)
    receiver.open_untrusted(first, NOW)
    for now in (NOW, NOW + LIFETIME - 1):
        with pytest.raises(BadMessage, match="twice"):
            receiver.open_untrusted(first, now)
    # When it is forgotten it is too old.
    receiver.open_untrusted(sender.seal(Order(3478, CLIENT, b"x"), NOW + 20), NOW + 20)
    assert len(receiver._seen) == 1
    with pytest.raises(BadMessage, match="too old"):
        receiver.open_untrusted(first, NOW + 20)
    with pytest.raises(ValueError, match="32 bytes"):
        Link(b"short")


def test_the_memory_of_orders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntcpsock._traversal.stun.link._MOST_REMEMBERED", 3)
    link = Link(KEY)
    for _ in range(3):
        link.open_untrusted(link.seal(Order(1, CLIENT, b"x"), NOW), NOW)
    with pytest.raises(BadMessage, match="too many"):
        link.open_untrusted(link.seal(Order(1, CLIENT, b"x"), NOW), NOW)
