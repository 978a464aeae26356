"""A great many nodes in one process, for `benchmarks.broker`: real keys and real boxes, as little else as possible."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nacl import bindings

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._identity import Identity
from ntcpsock._servers.datagrams import pack_address
from ntcpsock._servers.mmsg import Batch, Headers, Outbox
from ntcpsock._servers.random_pool import RandomPool
from ntcpsock._traversal.broker.boxes import Boxes
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM, NO_SESSION
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, directed_nonce
from ntcpsock._traversal.broker.message import (
    BrokerEnvelope,
    Challenge,
    FromNode,
    Hello,
    Introduce,
    Register,
    Registered,
    Welcome,
    decode_from_broker,
    encode_from_node,
)
from ntcpsock._traversal.broker.short_keep_alive import ShortKeepAlive, encode_short_keep_alive
from ntcpsock._traversal.punch.message import Candidate, Card, NATProfile, encode_card

_TOGETHER = 64
# Seconds between two looks at what has come, under load: a socket has room for a thousand answers.
_DRAINED_EVERY = 0.02
# Seconds that the load may be behind its time.
_MOST_BEHIND = 0.01
# An ack has 21 octets, an Introduced and a Deliver twenty times as many.
_LONGEST_ACK = 150
# Frames between two looks at what has come.
_MOST_AT_ONCE = 256
_PATIENCE = 0.5  # seconds until a frame of a registration is sent again
#: An offer with four candidates, sealed.
SEALED_LENGTH = 350


def example_card(number: int, identity: Identity) -> bytes:
    """As a listener behind a common home router has it: two local and two reflexive candidates, TCP and UDP."""
    host, port = f"192.168.1.{number % 250 + 2}", 40000 + number % 20000
    public = f"203.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    candidates = (
        Candidate("host", "tcp", host, port),
        Candidate("srflx", "tcp", public, port),
        Candidate("host", "udp", host, port + 1),
        Candidate("srflx", "udp", public, port + 1),
    )
    profile = NATProfile(True, "endpoint-independent", "address-and-port-dependent", "drop", False)
    card = Card(os.urandom(32), candidates, (80,), profile, 0.031, udp_profile=profile)
    return encode_card(card, identity)


class MadeUp(NamedTuple):
    """A node that has registered, with secrets that follow from its number."""

    key: bytes
    shared: bytes
    session: bytes
    card: bytes


def made_up(number: int) -> MadeUp:
    """Number `number` of a broker that has no others: its record's place is in its session."""
    octets = hashlib.blake2b(number.to_bytes(8)).digest()
    session = number.to_bytes(3, "little") + hashlib.blake2b(octets, digest_size=5).digest()
    return MadeUp(octets[:32], octets[32:], session, (octets * 6)[: len(_CARD)])


@dataclass
class Heard:
    """What came back."""

    acks: int = 0
    introductions: int = 0  # Introduced and Deliver, each


_CARD = example_card(1, Identity.generate())


class Train:
    """Frames that wait for their time, in the order of each socket: one after the other has its turn."""

    def __init__(
        self, sockets: Sequence[socket.socket], frames: Sequence[list[bytes]], address: bytes
    ) -> None:
        self.sent = 0
        self._descriptors = [sock.fileno() for sock in sockets]
        self._total = sum(map(len, frames))
        self._cars: list[tuple[int, Headers, int]] = []
        names = bytearray(address.ljust(32, b"\0"))
        rows = [
            [row[at : at + _TOGETHER] for at in range(0, len(row), _TOGETHER)] for row in map(list, frames)
        ]
        for number in range(max(map(len, rows), default=0)):
            for descriptor, row in zip(self._descriptors, rows, strict=True):
                if number < len(row):
                    self._cars.append((descriptor, _headers(row[number], names), len(row[number])))
        self._next = 0
        self._at = 0

    def advance(self, fraction: float) -> None:
        """Send as many as are due by now."""
        due = int(fraction * self._total) - self._at
        while due > 0 and self._next < len(self._cars):
            descriptor, headers, count = self._cars[self._next]
            headers.send(descriptor, 0, count)
            self._next += 1
            self._at += count
            self.sent += count
            due -= count


def _headers(frames: Sequence[bytes], names: bytearray) -> Headers:
    stride = max(map(len, frames))
    octets = bytearray(b"".join(frame.ljust(stride, b"\0") for frame in frames))
    headers = Headers(len(frames), [(octets, stride, stride)], (names, 0, 16), None)
    for index, frame in enumerate(frames):
        headers.sizes[index] = len(frame)
    return headers


@dataclass
class Prepared:
    """A load that is ready to go."""

    seconds: float
    keep_alives: Train
    introductions: Train


@dataclass
class Fleet:
    """Nodes number 0 to `len(self) - 1`, over a few sockets at 127.1.0.0/16."""

    broker: Endpoint
    broker_key: bytes
    sockets: Sequence[socket.socket]
    heard: Heard = field(default_factory=Heard)
    keys: list[bytes] = field(default_factory=list)
    sent_keep_alives: int = 0
    sent_introductions: int = 0

    def __post_init__(self) -> None:
        self._boxes = Boxes(4096)
        self._peer = bindings.crypto_sign_ed25519_pk_to_curve25519(self.broker_key)
        self._address = pack_address((self.broker.host, self.broker.port))
        self._outboxes = [Outbox(_TOGETHER, MAX_DATAGRAM, ipv6=False) for _ in self.sockets]
        self._batch = Batch(256, MAX_DATAGRAM, ipv6=False)
        self._shared: list[bytes] = []
        self._sessions: list[bytes] = []
        self._counters: list[int] = []
        self._random_bytes = RandomPool()
        self._poll = select.epoll()
        self._where = {}
        for where, sock in enumerate(self.sockets):
            self._poll.register(sock.fileno(), select.EPOLLIN)
            self._where[sock.fileno()] = where
        self._turn = 0
        self._offer = os.urandom(SEALED_LENGTH)
        self._random = random.Random(1)

    def __len__(self) -> int:
        return len(self.keys)

    def invent(self, count: int) -> None:
        """Have more nodes, until there are `count`, of those that `made_up` knows."""
        for number in range(len(self), count):
            node = made_up(number)
            self.keys.append(node.key)
            self._shared.append(node.shared)
            self._sessions.append(node.session)
            self._counters.append(0)

    def close(self) -> None:
        """Its sockets."""
        self._poll.close()
        for sock in self.sockets:
            sock.close()

    def grow(self, count: int, *, names: bool = True) -> None:
        """Register more nodes, until there are `count`: hello, challenge, hello, welcome, register, registered."""
        while len(self) < count:
            self._bring_in(min(len(self.sockets), count - len(self)), names)

    def _bring_in(self, count: int, names: bool) -> None:
        """Each has a socket for itself meanwhile: a broker's frame does not say to whom it is."""
        first = len(self)
        registrations = []
        for number in range(first, first + count):
            identity = Identity.generate()
            self.keys.append(identity.public_key)
            self._shared.append(bindings.crypto_box_beforenm(self._peer, bytes(identity.box_key)))
            self._sessions.append(NO_SESSION)
            self._counters.append(0)
            name = (f"node-{number}",) if names else ()
            registrations.append(Register(name, (80,), 60, example_card(number, identity)))
        instance = os.urandom(8)
        words: dict[int, FromNode] = dict.fromkeys(range(first, first + count), Hello(instance))
        said: dict[int, float] = {}
        while words:
            now = time.monotonic()
            for number, word in words.items():
                if said.get(number, 0.0) < now - _PATIENCE:
                    said[number] = now
                    self.say(number, word)
            self.flush()
            for where, frame in self._frames(_PATIENCE / 2):
                number = first + (where - first) % len(self.sockets)
                if number not in words:
                    continue
                try:
                    envelope = self.open(number, frame)
                except BadMessage:  # late, and another's
                    continue
                body = envelope.body
                if isinstance(body, Challenge) and isinstance(words[number], Hello):
                    words[number] = Hello(instance, body.cookie)
                elif isinstance(body, Welcome):
                    self._sessions[number] = body.session
                    words[number] = registrations[number - first]
                elif isinstance(body, Registered):
                    del words[number]
                else:
                    continue
                said.pop(number, None)

    def frame(self, number: int, word: FromNode) -> bytes:
        """The next one of a node."""
        self._counters[number] += 1
        payload = encode_from_node(self._sessions[number], self._counters[number], 1, word)
        key = self.keys[number]
        nonce = directed_nonce(self._random_bytes(24), key, self.broker_key)
        box = self._boxes.seal(payload, nonce, self._shared[number])
        return b"".join((b"\x01", key, nonce, box))

    def keep_alive_frame(self, number: int) -> bytes:
        """The next one of a node, short as nodes say it."""
        self._counters[number] += 1
        request = ShortKeepAlive(self._sessions[number], self._counters[number], 1, 0)
        return encode_short_keep_alive(request, self._shared[number])[0]

    def say(self, number: int, word: FromNode) -> None:
        """Queue a frame of a node."""
        where = number % len(self.sockets)
        self._outboxes[where].queue(
            self.sockets[where].fileno(), self.frame(number, word), self._address, b""
        )

    def flush(self) -> None:
        """Send what is queued."""
        for sock, outbox in zip(self.sockets, self._outboxes, strict=True):
            outbox.flush(sock.fileno())

    def open(self, number: int, frame: bytes) -> BrokerEnvelope:
        """What the broker says to a node. Raises BadMessage."""
        box, nonce = frame[HEADER_LENGTH:], frame[HEADER_LENGTH - 24 : HEADER_LENGTH]
        return decode_from_broker(self._boxes.open_untrusted(box, nonce, self._shared[number]))

    def drain(self) -> None:
        """Count what has come."""
        for descriptor, _ in self._poll.poll(0):
            while count := self._batch.receive(descriptor):
                for length in self._batch.lengths[:count].tolist():
                    if length < _LONGEST_ACK:
                        self.heard.acks += 1
                    else:
                        self.heard.introductions += 1
                if count < self._batch.count:
                    break

    def keep_alive(self, count: int) -> None:
        """The next so many nodes, at once."""
        for number in range(count):
            where = self._turn % len(self.sockets)
            frame, to = self.keep_alive_frame(self._turn), self.sockets[where].fileno()
            self._outboxes[where].queue(to, frame, self._address, b"")
            self._turn = (self._turn + 1) % len(self)
            if number % _MOST_AT_ONCE == 0:
                self.flush()
                self.drain()
        self.flush()

    def prepare(self, seconds: float, keep_alives: float, introductions: float) -> Prepared:
        """Frames for so many seconds with so many of each: every node keeps itself alive in its turn, pairs are drawn
        at random. Made and laid out before the load begins, so that sending them costs next to nothing."""
        alive: list[list[bytes]] = [[] for _ in self.sockets]
        for _ in range(int(seconds * keep_alives)):
            alive[self._turn % len(self.sockets)].append(self.keep_alive_frame(self._turn))
            self._turn = (self._turn + 1) % len(self)
        dialling: list[list[bytes]] = [[] for _ in self.sockets]
        for _ in range(int(seconds * introductions)):
            dialer, listener = self._random.randrange(len(self)), self._random.randrange(len(self))
            word = Introduce(self.keys[listener], 80, self._offer)
            dialling[dialer % len(self.sockets)].append(self.frame(dialer, word))
        return Prepared(
            seconds, *(Train(self.sockets, frames, self._address) for frames in (alive, dialling))
        )

    def load(self, prepared: Prepared) -> None:
        """Send them, evenly over their time; while others have the processor that stands still, so that what was missed
        does not come all at once."""
        start = last = time.monotonic()
        trains = prepared.keep_alives, prepared.introductions
        drained = start
        while (now := time.monotonic()) - start < prepared.seconds:
            start += max(0.0, now - last - _MOST_BEHIND)
            last = now
            fraction = (now - start) / prepared.seconds
            for train in trains:
                train.advance(fraction)
            if now - drained > _DRAINED_EVERY:
                drained = now
                self.drain()
            time.sleep(0.0003)
        self.drain()
        self.sent_keep_alives += trains[0].sent
        self.sent_introductions += trains[1].sent

    def _frames(self, timeout: float) -> list[tuple[int, bytes]]:
        """What has come, or comes within `timeout` seconds, and to which socket."""
        frames = []
        for descriptor, _ in self._poll.poll(timeout):
            count = self._batch.receive(descriptor)
            for index, length in enumerate(self._batch.lengths[:count].tolist()):
                at = index * MAX_DATAGRAM
                frames.append((self._where[descriptor], self._batch.octets[at : at + length]))
        return frames


def open_sockets(count: int) -> list[socket.socket]:
    """At loopback addresses of their own, because a broker limits each address."""
    sockets = []
    for number in range(count):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((f"127.1.{number // 250}.{number % 250 + 1}", 0))
        sockets.append(sock)
    return sockets
