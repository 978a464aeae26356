"""Clients that mean well, for `benchmarks.hostile`: each has `ask`, a request and its answer, sent once."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Protocol

from ntcpsock._address import Endpoint, decode_node_id
from ntcpsock._errors import BadMessage
from ntcpsock._identity import Identity
from ntcpsock._traversal.broker.events import Connected
from ntcpsock._traversal.broker.fields import MAX_TTL
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import (
    BrokerEnvelope,
    Deliver,
    FromNode,
    Introduce,
    KeepAlive,
    Register,
    decode_from_broker,
    encode_from_node,
)
from ntcpsock._traversal.broker.websocket import WebSocketMachine
from ntcpsock._traversal.relay.message import SESSION_LENGTH, TICKET_HEADER, UPGRADE, issue_pair, to_header
from ntcpsock._traversal.stun.message import binding_request, encode_message


class GoodClient(Protocol):
    """One of these."""

    def ask(self) -> bool: ...

    def close(self) -> None: ...


class StunClient:
    """Binding requests over UDP."""

    def __init__(self, server: Endpoint, patience: float) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.settimeout(patience)
        self._sock.connect(server)

    def ask(self) -> bool:
        transaction = os.urandom(12)
        try:
            self._sock.send(encode_message(binding_request(transaction)))
            while self._sock.recv(2048)[8:20] != transaction:
                pass
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._sock.close()


class StunStream:
    """The same over TCP, by a new connection each time."""

    def __init__(self, server: Endpoint, patience: float) -> None:
        self._server = server
        self._patience = patience

    def ask(self) -> bool:
        transaction = os.urandom(12)
        try:
            with socket.create_connection(self._server, self._patience) as sock:
                sock.sendall(encode_message(binding_request(transaction)))
                return sock.recv(2048)[8:20] == transaction
        except OSError:
            return False

    def close(self) -> None:
        """Nothing stays open."""


class _Node:
    """A node of a broker: one session, and keep-alives as requests."""

    def __init__(self, key: str) -> None:
        broker_key = decode_node_id(key)
        assert broker_key is not None
        self.broker_key = broker_key
        self._identity = Identity.generate()
        self.key = self._identity.public_key
        self._sealer = Sealer(self._identity)
        self._counter = 0
        self._session = b""
        #: Frames of an honest node, for those who change them.
        self.recorded: list[bytes] = []

    def _connect(self, link: Any) -> None:
        machine = ClientMachine(Sealer(self._identity), self.broker_key)
        machine.start(time.monotonic())
        while not self._session:
            for frame in machine.datagrams_to_send():
                link.send(frame)
                self.recorded.append(frame)
            machine.receive_datagram(link.receive(), time.monotonic())
            for event in machine.events():
                if isinstance(event, Connected):
                    self._session = event.welcome.session

    def frame(self, body: FromNode) -> bytes:
        """A request of this node's."""
        # Rising in every process that asks for this node.
        self._counter = time.monotonic_ns() // 1000
        payload = encode_from_node(self._session, self._counter, self._counter & 0xFFFFFFFF, body)
        return self._sealer.seal(self.broker_key, payload)

    def open(self, frame: bytes) -> BrokerEnvelope:
        """What the broker says. Raises BadMessage."""
        return decode_from_broker(self._sealer.open_untrusted(frame)[1])

    def _ask(self, link: Any, body: FromNode) -> bool:
        try:
            link.send(self.frame(body))
            while True:
                if self.open(link.receive()).request == self._counter & 0xFFFFFFFF:
                    return True
        except (OSError, BadMessage):
            return False


class BrokerNode(_Node):
    """Over UDP."""

    def __init__(self, server: Endpoint, key: str, patience: float) -> None:
        super().__init__(key)
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.settimeout(patience)
        self._sock.connect(server)
        self._connect(self)

    def send(self, frame: bytes) -> None:
        self._sock.send(frame)

    def receive(self) -> bytes:
        return self._sock.recv(2048)

    def ask(self) -> bool:
        return self._ask(self, KeepAlive())

    def close(self) -> None:
        self._sock.close()


class Introductions:
    """Two nodes of a UDP broker, of which one is introduced to the other: an answer is what arrives there."""

    def __init__(self, server: Endpoint, key: str, patience: float) -> None:
        self._dialer, self._listener = (BrokerNode(server, key, patience) for _ in range(2))
        registration = Register((), (80,), MAX_TTL, bytes(300))
        assert self._listener._ask(self._listener, registration)
        self._dialer._ask(self._dialer, Register((), (), MAX_TTL))

    def ask(self) -> bool:
        sealed = os.urandom(350)
        try:
            self._dialer.send(self._dialer.frame(Introduce(self._listener.key, 80, sealed)))
            while True:
                body = self._listener.open(self._listener.receive()).body
                if isinstance(body, Deliver) and body.sealed == sealed:
                    return True
        except (OSError, BadMessage):
            return False

    def close(self) -> None:
        self._dialer.close()
        self._listener.close()


class WebSocketNode(_Node):
    """Over TCP, all in one connection."""

    def __init__(self, server: Endpoint, key: str, patience: float) -> None:
        super().__init__(key)
        self._sock = socket.create_connection(server, patience)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._websocket = WebSocketMachine.client(str(server))
        self._frames: list[bytes] = []
        self._sock.sendall(self._websocket.data_to_send())
        while not self._websocket.is_open:
            self._websocket.receive(self._sock.recv(4096))
        self._connect(self)

    def send(self, frame: bytes) -> None:
        self._websocket.send(frame)
        self._sock.sendall(self._websocket.data_to_send())

    def receive(self) -> bytes:
        while not self._frames:
            data = self._sock.recv(4096)
            if not data:
                raise ConnectionResetError("the broker has ended it")
            self._frames += self._websocket.receive(data)
        return self._frames.pop(0)

    def ask(self) -> bool:
        return self._ask(self, KeepAlive())

    def close(self) -> None:
        self._sock.close()


class RelayedPair:
    """Two ends of a relayed connection: what one says the other hears."""

    def __init__(self, server: Endpoint, secret: bytes, patience: float) -> None:
        tickets = issue_pair(secret, os.urandom(SESSION_LENGTH), b"d" * 32, b"l" * 32, time.time())
        self._sockets = []
        for ticket in tickets:
            sock = socket.create_connection(server, patience)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = f"GET /relay HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n"
            sock.sendall(head.encode() + f"{TICKET_HEADER}: {to_header(ticket).decode()}\r\n\r\n".encode())
            self._sockets.append(sock)
        for sock in self._sockets:
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += sock.recv(1)
            assert b" 101 " in answer, answer

    def ask(self) -> bool:
        word = os.urandom(16)
        one, other = self._sockets
        try:
            one.sendall(word)
            heard = b""
            while len(heard) < len(word):
                data = other.recv(64)
                if not data:
                    return False
                heard += data
        except OSError:
            return False
        return heard == word

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
