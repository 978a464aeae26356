"""The first look of the kernel: what a server would answer comes through, what it would drop unread does not."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
from broker_support import make_identity

from ntcpsock._servers.datagrams import DatagramSocket
from ntcpsock._servers.socket_filter import Unread, enlarge, only_binding_requests, only_frames
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.frame import OVERHEAD, Sealer, encode_key_request
from ntcpsock._traversal.broker.short_keep_alive import ShortKeepAlive, encode_short_keep_alive
from ntcpsock._traversal.stun.message import binding_request, encode_message
from ntcpsock._traversal.stun.usages import ChangeRequest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="classic BPF is Linux's")

REQUEST = encode_message(binding_request(bytes(12)))
LONGER = encode_message(binding_request(bytes(12), ChangeRequest(True, True)))
FRAME = Sealer(make_identity(1)).seal(make_identity(2).public_key, bytes(60))
ASKING = encode_key_request(bytes(24))
KEEP_ALIVE, _ = encode_short_keep_alive(ShortKeepAlive(bytes(8), 1, 1, 0), bytes(32))


class Pair:
    """A socket with a filter, and one that sends to it."""

    def __init__(self, family: socket.AddressFamily, attach: Callable[[socket.socket], None]) -> None:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self.server = socket.socket(family, socket.SOCK_DGRAM)
        attach(self.server)
        self.server.bind((host, 0))
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.client.connect(self.server.getsockname())
        self.unread = Unread(DatagramSocket(self.server))

    def received(self, datagrams: list[bytes]) -> list[bytes]:
        # Over loopback a datagram is in the buffer, or dropped, when send returns.
        for datagram in datagrams:
            self.client.send(datagram)
        found = []
        while True:
            try:
                found.append(self.server.recv(65536))
            except BlockingIOError:
                return found


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def pair(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[socket.socket], None]], Pair]]:
    made: list[Pair] = []

    def make(attach: Callable[[socket.socket], None]) -> Pair:
        made.append(Pair(request.param, attach))
        return made[-1]

    yield make
    for one in made:
        one.server.close()
        one.client.close()


Make = Callable[[Callable[[socket.socket], None]], Pair]


def noise() -> list[bytes]:
    chance = random.Random(1)
    return [chance.randbytes(chance.randrange(1500)) for _ in range(100)]


def test_binding_requests(pair: Make) -> None:
    both = pair(only_binding_requests)
    old = REQUEST[:4] + b"four" + REQUEST[8:]  # RFC 3489 has no cookie
    wanted = [REQUEST, LONGER, old]
    others = [
        b"",
        REQUEST[:-1],
        REQUEST + b"x",
        LONGER[:20],
        b"\1\1" + REQUEST[2:],
        b"\0\x11" + REQUEST[2:],
        FRAME,
    ]
    assert both.received([*others, *wanted, *noise()]) == wanted
    assert both.unread.new() == len(others) + len(noise())
    assert both.unread.new() == 0


@pytest.mark.parametrize("kept", [b"\xc7", b"\xc7\xd0\x81"])
def test_what_begins_with_a_kept_octet(pair: Make, kept: bytes) -> None:
    both = pair(lambda sock: only_binding_requests(sock, kept))
    wanted = [REQUEST, *(bytes((octet,)) + b"order" for octet in kept)]
    assert both.received([b"\xc8order", b"order", REQUEST[:19], *wanted]) == wanted


def test_frames(pair: Make) -> None:
    both = pair(only_frames)
    longest, shortest = b"\1" + bytes(MAX_DATAGRAM - 1), b"\1" + bytes(OVERHEAD - 1)
    wanted = [FRAME, ASKING, longest, shortest, KEEP_ALIVE]
    others = [
        b"",
        b"\1",
        ASKING[:-1],
        ASKING + b"x",
        longest + b"x",
        shortest[:-1],
        b"\3" + FRAME[1:],
        KEEP_ALIVE[:-1],
        KEEP_ALIVE + b"x",
        b"\5" + KEEP_ALIVE[1:],
        REQUEST,
    ]
    assert both.received([*others, *wanted]) == wanted
    assert both.unread.new() == len(others)
    assert all(datagram[0] in (1, 2, 4) for datagram in both.received(noise()))


def test_there_is_more_room() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        enlarge(sock, 2 * before)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= before
