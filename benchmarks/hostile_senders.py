"""What does not mean well, for `benchmarks.hostile`: datagrams and connections, as fast as they can be made."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ntcpsock._address import Endpoint
from ntcpsock._servers.datagrams import pack_address
from ntcpsock._servers.mmsg import Headers

_BATCH = 128
_SIZE = 1504
_SOCKETS = 16
# Connections that are under way together.
_TOGETHER = 200
_LINGER_NOT = struct.pack("ii", 1, 0)
# Seconds until a connection that the server leaves open is reset.
_LONGEST_LIFE = 0.5


def garbage(valid: Sequence[bytes], count: int = 2048, seed: int = 1) -> list[bytes]:
    """Datagrams of no use: noise of all lengths, and what is valid cut, lengthened, with wrong bits and wrong keys."""
    chance = random.Random(seed)
    found = [b"", bytes(1500), b"\xff" * 1500]
    while len(found) < count:
        base = bytearray(chance.choice(valid))
        match chance.randrange(7):
            case 0:
                found.append(chance.randbytes(chance.randrange(1500)))
            case 1:
                found.append(bytes(base[: chance.randrange(len(base))]))
            case 2:
                found.append(bytes(base) + chance.randbytes(chance.randrange(1, 400)))
            case 3:
                base[chance.randrange(len(base))] ^= 1 << chance.randrange(8)
                found.append(bytes(base))
            case 4:  # the right beginning, and noise
                found.append(bytes(base[:8]) + chance.randbytes(len(base) - 8))
            case 5:  # a sender who was invented
                found.append(bytes(base[:1]) + chance.randbytes(32) + bytes(base[33:]))
            case _:  # a STUN message of attributes that overrun
                body = chance.randbytes(4 * chance.randrange(1, 60))
                found.append(b"\0\1" + len(body).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + body)
    return [datagram[:1500] for datagram in found]


def flood_datagrams(server: Endpoint, kinds: Sequence[bytes], count: int) -> int:
    """Send `count` datagrams of these kinds in turns, from some addresses, as fast as possible; answers are dropped."""
    sockets, batches = [], []
    chance = random.Random(2)
    for number in range(_SOCKETS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((f"127.3.0.{number + 1}", 0))
        sock.setblocking(False)
        # Answers fill it and are lost there, as they are at a forged address.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sockets.append(sock)
    names = bytearray(pack_address(server).ljust(32, b"\0") * _BATCH)
    for _ in range(max(1, min(32, len(kinds) // 16))):
        octets = bytearray(_BATCH * _SIZE)
        headers = Headers(_BATCH, [(octets, _SIZE, _SIZE)], (names, 32, 16), None)
        for index in range(_BATCH):
            datagram = chance.choice(kinds)
            octets[index * _SIZE : index * _SIZE + len(datagram)] = datagram
            headers.sizes[index] = len(datagram)
        batches.append(headers)
    sent = turn = 0
    try:
        while sent < count:
            some = min(_BATCH, count - sent)
            batches[turn % len(batches)].send(sockets[turn % _SOCKETS].fileno(), 0, some)
            sent += some
            turn += 1
    finally:
        for sock in sockets:
            sock.close()
    return sent


_UPGRADE = (
    b"GET /signal HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_BINDING = b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12)


def hostile_texts(count: int = 500, seed: int = 3) -> list[bytes]:
    """What hostile connections say, first word to last."""
    chance = random.Random(seed)
    texts = [
        b"",  # nothing at all
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 60_000,
        b"POST /signal HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + bytes(4000),
        b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: ntcp-relay/1\r\nntcp-ticket: AAAA\r\n\r\n",
        b"GET /relay HTTP/1.1\r\nHost: x\r\nntcp-ticket: " + b"A" * 3000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01" + bytes(500),
        _UPGRADE + b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(2000),  # a message of 2^63 octets
        _UPGRADE
        + b"\x82\x80"
        + bytes(4)
        + b"\x88\x80"
        + bytes(4)
        + b"\x82\x80"
        + bytes(4),  # after the goodbye
        _UPGRADE + b"\x82\xfe\x04\x00" + bytes(4) + bytes(1024),
        _UPGRADE + b"\x01\x80" + bytes(4) + b"\x02\x80" + bytes(4),  # out of order
        _UPGRADE + (b"\x89\x80" + bytes(4)) * 500,  # pings
        _BINDING * 100,
        _BINDING[:10],
        b"\0\1\xff\xfc\x21\x12\xa4\x42" + bytes(60_000),
        b"\x01\x01" + _BINDING[2:],
    ]
    while len(texts) < count:
        base = chance.choice(texts[:17])
        match chance.randrange(3):
            case 0:
                texts.append(chance.randbytes(chance.randrange(1, 3000)))
            case 1:
                texts.append(base[: chance.randrange(len(base) + 1)])
            case _:
                changed = bytearray(base or b"x")
                for _ in range(chance.randrange(1, 8)):
                    changed[chance.randrange(len(changed))] = chance.randrange(256)
                texts.append(bytes(changed))
    return texts


def hostile_connections(server: Endpoint, count: int) -> int:
    """Make `count` connections, two hundred at a time, each of which says something and is reset when the server ends
    it, or soon."""
    texts = hostile_texts()
    chance = random.Random(4)
    poll = select.epoll()
    living: dict[int, tuple[socket.socket, float, bytes]] = {}
    made = ended = 0
    while ended < count:
        while len(living) < _TOGETHER and made < count:
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            sock.bind((f"127.4.{made % 50}.{made // 50 % 200 + 1}", 0))
            if sock.connect_ex(server) not in (0, errno.EINPROGRESS):
                sock.close()
                continue
            made += 1
            poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
            life = chance.random() * _LONGEST_LIFE
            living[sock.fileno()] = (sock, time.monotonic() + life, chance.choice(texts))
        over = []
        for descriptor, events in poll.poll(0.01):
            sock, end, text = living[descriptor]
            try:
                if events & select.EPOLLOUT:
                    sent = sock.send(text) if text else 0
                    living[descriptor] = (sock, end, text[sent:])
                    if not text[sent:]:
                        poll.modify(descriptor, select.EPOLLIN)
                if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not sock.recv(65536):
                    over.append(descriptor)
            except BlockingIOError:
                pass
            except OSError:
                over.append(descriptor)
        now = time.monotonic()
        over += [descriptor for descriptor, (_, end, _) in living.items() if end < now]
        for descriptor in dict.fromkeys(over):
            poll.unregister(descriptor)
            living.pop(descriptor)[0].close()
            ended += 1
    poll.close()
    return ended


@contextmanager
def slow_connections(server: Endpoint, count: int) -> Iterator[int]:
    """So many connections that say half a request and then nothing; as many as the server lets in and keeps."""
    sockets = []
    for number in range(count):
        sock = socket.socket()
        sock.settimeout(5)
        sock.bind((f"127.5.{number % 40}.1", 0))
        with suppress(OSError):
            sock.connect(server)
            sock.send(os.urandom(0) + (b"GET / HT", _BINDING[:7], b"\x16")[number % 3])
        sockets.append(sock)
    try:
        yield len(sockets)
    finally:
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            sock.close()
