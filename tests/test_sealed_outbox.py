"""Frames that are sealed in the memory they leave from are the frames that everybody else makes and opens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from broker_support import make_identity

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._servers import mmsg
from ntcpsock._servers.datagrams import DatagramSocket, pack_address
from ntcpsock._servers.random_pool import NoncePool, RandomPool
from ntcpsock._servers.sealed_outbox import SealedOutbox
from ntcpsock._servers.sources import pack_source, sources_by
from ntcpsock._traversal.broker.boxes import PlacedBoxes
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, OVERHEAD, Sealer, directed_nonce

BROKER = make_identity(999)
COUNT = 4


class Post:
    """An outbox, and whoever hears what leaves it."""

    def __init__(self) -> None:
        bound, self.there = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (bound, self.there):
            sock.bind(("127.0.0.1", 0))
        self.there.setblocking(False)
        self.sock = DatagramSocket(bound)
        self.outbox = SealedOutbox(self.sock.fileno(), COUNT, BROKER.public_key, ipv6=False)
        self.destination = pack_source(sources_by((self.sock, []))(*Endpoint(*self.there.getsockname())))

    def seal(self, number: int, payload: bytes) -> list[int]:
        node = make_identity(number)
        shared = Sealer(BROKER).shared_key(node.public_key)
        return self.outbox.seal_all([(payload, node.public_key, shared, self.destination)], b"")

    def queue(self, datagram: bytes) -> list[int]:
        address = pack_address(self.there.getsockname())
        return self.outbox.queue(self.sock.fileno(), datagram, address, b"")

    def heard(self) -> list[bytes]:
        assert self.outbox.flush(self.sock.fileno()) == []
        found = []
        while True:
            try:
                found.append(self.there.recv(2048))
            except BlockingIOError:
                return found


@pytest.fixture
def post() -> Iterator[Post]:
    if not mmsg.AVAILABLE:
        pytest.skip("no sendmmsg here")
    made = Post()
    yield made
    made.sock.close()
    made.there.close()


def test_receivers_open_them(post: Post) -> None:
    """On both sides of the broker's key, where the nonce has another bit."""
    payloads = [bytes([number]) * (20 * number) for number in range(1, 12)]
    for number, payload in enumerate(payloads, 1):
        assert not post.seal(number, payload)
    heard = post.heard()
    assert len(heard) == len(payloads)
    for number, (frame, payload) in enumerate(zip(heard, payloads, strict=True), 1):
        assert Sealer(make_identity(number)).open_untrusted(frame) == (BROKER.public_key, payload)
        with pytest.raises(BadMessage):
            Sealer(make_identity(number + 1)).open_untrusted(frame)
    assert len({make_identity(number).public_key > BROKER.public_key for number in range(1, 12)}) == 2
    assert len({frame[:HEADER_LENGTH] for frame in heard}) == len(heard)


def test_other_datagrams_between_them(post: Post) -> None:
    """They write over what is the same in all frames."""
    for _ in range(3):
        for number in range(COUNT):
            if number % 2:
                assert not post.seal(1, b"sealed")
            else:
                assert not post.queue(b"\xff" * 100)
        assert not post.seal(1, b"sealed")
    heard = post.heard()
    opened = [Sealer(make_identity(1)).open_untrusted(frame)[1] for frame in heard if frame != b"\xff" * 100]
    assert opened == [b"sealed"] * 9
    assert len(heard) == 15


def test_the_longest_fits_and_a_longer_one_is_refused(post: Post) -> None:
    longest = bytes(MAX_DATAGRAM - OVERHEAD)
    for _ in range(COUNT):
        post.seal(1, longest)
    assert [len(frame) for frame in post.heard()] == [MAX_DATAGRAM] * COUNT
    with pytest.raises(BadMessage):
        post.seal(1, longest + b"x")
    assert not post.seal(1, b"short")
    assert [len(frame) for frame in post.heard()] == [OVERHEAD + 5]


@pytest.mark.parametrize("direct", [True, False])
def test_boxes_in_their_places(direct: bool) -> None:
    buffer = bytearray(400)
    boxes = PlacedBoxes(buffer, [0, 200], 200)
    if not direct:  # as with a PyNaCl that keeps its functions to itself
        boxes._pointers = []
    shared, nonce = bytes(range(32)), bytes(24)
    assert boxes.seal(1, b"word", nonce, shared) == 20
    assert buffer[:200] == bytes(200)
    assert buffer[220:] == bytes(180)
    for bad in ((bytes(185), nonce, shared), (b"", nonce[1:], shared), (b"", nonce, shared[1:])):
        with pytest.raises(BadMessage):
            boxes.seal(1, *bad)


def test_nonces_are_given_once_and_have_their_bit() -> None:
    pool = NoncePool(RandomPool())
    for bit in (False, True):
        taken = [pool.take(bit) for _ in range(1000)]
        assert len(set(taken)) == 1000
        small, large = bytes(32), b"\xff" * 32
        sender, recipient = (large, small) if bit else (small, large)
        assert all(nonce == directed_nonce(nonce, sender, recipient) for nonce in taken)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_draws_others() -> None:
    pool = NoncePool(RandomPool())
    pool.take(True)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, pool.take(True))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 24)
    os.close(reading)
    os.close(writing)
    assert theirs not in {pool.take(True) for _ in range(300)}
