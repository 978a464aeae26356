"""Answers by the batch are the ones that the pure server gives, octet by octet, in every kind of socket."""

from __future__ import annotations

import math
import os
import random
import socket
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from stun_support import serving
from test_stun_serve import needs_ipv6

from ntcpsock._address import Endpoint
from ntcpsock._servers import mmsg
from ntcpsock._servers.datagrams import DatagramSocket, pack_address, unpack_address
from ntcpsock._servers.stun_batch import Pattern, Rest, StunBatch
from ntcpsock._traversal.stun.message import binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.server import BindingServer
from ntcpsock._traversal.stun.usages import ChangeRequest, Padding

pytestmark = pytest.mark.skipif(not mmsg.AVAILABLE, reason="no recvmmsg here")

COUNT = 16


class Pair:
    """A server's socket with its batch, and a client's."""

    def __init__(
        self, host: str, *, bind: str | None = None, other: str | None = None, rate: float = math.inf
    ) -> None:
        self.ipv6 = ":" in host
        family = socket.AF_INET6 if self.ipv6 else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        bound.bind((bind or host, 0))
        self.server = DatagramSocket(bound)
        self.asked = Endpoint(host, self.server.local.port)
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.client.settimeout(30)
        self.client.bind((host, 0))
        self.source = Endpoint(*self.client.getsockname()[:2])
        self.core = BindingServer(self.server.local, other, None if other is None else 3479)
        pattern = Pattern.of(self.answer, ipv6=self.ipv6)
        assert pattern is not None
        self.batch = StunBatch(
            pattern, count=COUNT, longest=2048, ipv6=self.ipv6, wildcard=self.server.is_wildcard, rate=rate
        )

    def answer(self, request: bytes, source: Endpoint) -> bytes | None:
        reply = self.core.handle_datagram(request, source, self.server.local)
        return None if reply is None else reply.data

    def close(self) -> None:
        self.server.close()
        self.client.close()

    def check(self, datagrams: list[bytes]) -> None:
        """Send them, and compare what comes back and what is left to others with the pure server's."""
        for datagram in datagrams:
            self.client.sendto(datagram, self.asked)
        answered, calls = 0, 0
        rest: list[Rest] = []
        dropped = 0
        while answered + dropped + len(rest) < len(datagrams):
            done = self.batch.exchange(self.server.fileno(), 0.0)
            calls += 1
            assert done is not None
            assert done.refused == 0
            answered += done.answered
            dropped += done.dropped
            rest += done.rest
        assert self.batch.exchange(self.server.fileno(), 0.0) is None
        plain = [d for d in datagrams if len(d) == 20 and d[:8] == b"\0\1\0\0\x21\x12\xa4\x42"]
        assert answered == len(plain)
        for datagram in plain:
            answer, source = self.client.recvfrom(2048)
            assert answer == self.answer(datagram, self.source)
            assert source[:2] == self.asked
        left = [entry.datagram for entry in rest]
        others = [d[:2068] for d in datagrams if d not in plain]
        assert left == [d for d in others if looks_like_a_message(d)]
        for datagram in others:
            assert datagram in left or self.answer(datagram, self.source) is None
        for entry in rest:
            assert unpack_address(entry.source) == self.client.getsockname()
        assert calls <= len(datagrams) // COUNT + 1


@pytest.fixture(
    params=[
        "127.0.0.1",
        "wildcard",
        "two addresses",
        pytest.param("::1", marks=needs_ipv6),
        pytest.param("IPv6 wildcard", marks=needs_ipv6),
        pytest.param("two IPv6 addresses", marks=needs_ipv6),
    ]
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = {
        "wildcard": lambda: Pair("127.0.0.3", bind="0.0.0.0"),
        "two addresses": lambda: Pair("127.0.0.1", other="127.0.0.2"),
        "IPv6 wildcard": lambda: Pair("::1", bind="::"),
        "two IPv6 addresses": lambda: Pair("::1", other="2001:db8::2"),
    }.get(request.param, lambda: Pair(request.param))()
    yield made
    made.close()


def looks_like_a_message(d: bytes) -> bool:
    return len(d) >= 20 and d[0] < 0x40 and int.from_bytes(d[2:4]) == len(d) - 20


def plain_request(transaction: bytes) -> bytes:
    return encode_message(binding_request(transaction))


def test_all_plain(pair: Pair) -> None:
    for count in (1, 2, COUNT - 1, COUNT, COUNT + 3):
        pair.check([plain_request(os.urandom(12)) for _ in range(count)])


def test_plain_ones_among_others(pair: Pair) -> None:
    chance = random.Random(5)
    others = [
        b"",
        b"noise",
        bytes(20),
        os.urandom(20),
        os.urandom(3000),
        plain_request(bytes(12))[:-1],
        b"\0\1\0\0" + os.urandom(16),
        b"\1\1\0\0" + plain_request(bytes(12))[4:],
        encode_message(binding_request(bytes(12), ChangeRequest(True, True))),
        encode_message(binding_request(bytes(12), Padding(bytes(1200)))),
    ]
    for _ in range(20):
        pair.check(
            [
                chance.choice(others) if chance.random() < 0.4 else plain_request(os.urandom(12))
                for _ in range(chance.randrange(1, 3 * COUNT))
            ]
        )


@given(st.lists(st.one_of(st.binary(max_size=80), st.binary(min_size=12, max_size=12).map(plain_request))))
@settings(max_examples=60, deadline=None)
def test_whatever_comes(datagrams: list[bytes]) -> None:
    pair = Pair("127.0.0.1")
    try:
        for start in range(0, len(datagrams), 64):
            pair.check(datagrams[start : start + 64])
    finally:
        pair.close()


def test_a_pattern_is_refused_where_the_answer_is_of_another_form() -> None:
    assert Pattern.of(lambda request, source: None, ipv6=False) is None
    assert Pattern.of(lambda request, source: request, ipv6=False) is None
    core = BindingServer(Endpoint("192.0.2.1", 3478))

    def answer(request: bytes, source: Endpoint) -> bytes | None:
        reply = core.handle_datagram(request, source, core.primary)
        return None if reply is None else reply.data

    assert Pattern.of(answer, ipv6=False) == Pattern(b"", 32)
    assert Pattern.of(answer, ipv6=True) == Pattern(b"", 44)


@pytest.mark.parametrize("available", [True, False])
async def test_the_server_answers_all_kinds_alike(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same datagrams at a server with and without it."""
    monkeypatch.setattr(mmsg, "AVAILABLE", available)
    async with serving("127.0.0.1", other_address="127.0.0.2") as addresses:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            for number in range(40):
                transaction = number.to_bytes(12)
                changed = (ChangeRequest(False, True),) if number % 3 == 0 else ()
                request = binding_request(transaction, *changed)
                await sock.sendto(b"noise" if number % 5 == 0 else encode_message(request), addresses.primary)
            for _ in range(32):
                data, source = await sock.recvfrom(2048)
                message = decode_message(data)
                number = int.from_bytes(message.transaction_id)
                assert number % 5
                assert Endpoint(*source) == (addresses.endpoints[1 if number % 3 == 0 else 0])
        assert addresses.counters.udp_requests == 32
        assert addresses.counters.udp_dropped + addresses.counters.udp_unread == 8


async def test_what_the_kernel_refuses_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    send, refusals = mmsg.Headers.send, iter([2])

    def refuse(headers: mmsg.Headers, descriptor: int, first: int, end: int) -> list[int]:
        for count in refusals:
            return [1] * min(count, end - first) + send(headers, descriptor, first + count, end)
        return send(headers, descriptor, first, end)

    monkeypatch.setattr(mmsg.Headers, "send", refuse)
    async with serving() as addresses:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            while not addresses.counters.udp_unsent:
                await sock.sendto(plain_request(bytes(12)), addresses.primary)
                await trio.sleep(0.01)
            await sock.sendto(plain_request(bytes(12)), addresses.primary)
            assert len((await sock.recvfrom(2048))[0]) == 32


def test_addresses_are_packed_as_the_kernel_has_them() -> None:
    for address in (("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0), ("fe80::1", 80, 0, 3)):
        assert unpack_address(pack_address(address)) == address


def test_ancillary_data_is_packed_as_the_kernel_has_it() -> None:
    entries = [(0, 8, bytes(12)), (41, 50, bytes(20))]
    assert mmsg.unpack_control(mmsg.pack_control(entries[:1])) == entries[:1]
    assert mmsg.unpack_control(mmsg.pack_control(entries[1:])) == entries[1:]
    assert mmsg.unpack_control(b"\1") == []
    assert mmsg.unpack_control(bytes(16)) == []
    with pytest.raises(ValueError, match="too much"):
        mmsg.pack_control(entries * 2)


def test_datagrams_gather_under_load_and_no_sooner() -> None:
    moderation = mmsg.Moderation(close=0.1, pause=1.0)
    assert moderation.pause(10.0, 10.05, full=False) == 0
    # The next one comes long after that.
    assert moderation.pause(11.0, 11.05, full=False) == 0
    # This one comes at once; what follows gathers.
    assert moderation.pause(11.1, 11.2, full=False) == 1.0
    assert moderation.pause(12.21, 12.3, full=False) == 1.0
    # There is more than fits already.
    assert moderation.pause(13.31, 13.4, full=True) == 0
    assert moderation.pause(13.41, 13.5, full=False) == 1.0
    # The load is over.
    assert moderation.pause(15.0, 15.1, full=False) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_of_a_flood_so_much_is_answered(host: str) -> None:
    """While whole batches come: what is beyond is read, and gets nothing."""
    pair = Pair(host, rate=10 * COUNT)
    try:
        for _ in range(4 * COUNT):
            pair.client.sendto(plain_request(bytes(12)), pair.asked)
        done = [pair.batch.exchange(pair.server.fileno(), 5.0) for _ in range(4)]
        assert [(one.answered, one.excessive) for one in done if one is not None] == [
            (COUNT, 0),
            *[(0, COUNT)] * 3,
        ]
        # The next moment, and what does not fill a batch.
        pair.client.sendto(plain_request(bytes(12)), pair.asked)
        later = pair.batch.exchange(pair.server.fileno(), 5.01)
        assert later is not None
        assert (later.answered, later.excessive) == (1, 0)
    finally:
        pair.close()


def test_a_flood_leaves_others_their_answers() -> None:
    pair = Pair("127.0.0.1", rate=30.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        try:
            other.bind(("127.0.0.2", 0))
            other.settimeout(30)
            others = {3: plain_request(b"one of a few"), 9: plain_request(bytes(12))[:-1]}
            for index in range(COUNT):
                if index in others:
                    other.sendto(others[index], pair.asked)
                else:
                    pair.client.sendto(plain_request(bytes(12)), pair.asked)
            done = pair.batch.exchange(pair.server.fileno(), 5.0)
            assert done is not None
            assert (done.answered, done.excessive, done.dropped, done.rest) == (1, COUNT - 2, 1, [])
            assert decode_message(other.recv(2048)).transaction_id == b"one of a few"
        finally:
            pair.close()
