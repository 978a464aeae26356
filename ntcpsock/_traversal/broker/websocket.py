"""A broker's frames as binary messages of a WebSocket (RFC 6455): bytes in and out, at either end.

For networks that let nothing but HTTP out. One frame is one message; there is no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.short_keep_alive import SHORT_ACK_LENGTH

PATH: Final = "/signal"

# Six bytes of an attacker's make us work as long as a whole frame of a node's does: pings, pongs, fragments, messages
# that are shorter than the shortest frame. Neither nodes nor brokers say such things, and what is between them says few
# of them: two for each frame, and so many more.
_MOST_IDLE_WORDS: Final = 32
_WORDS_OF_A_FRAME: Final = 2


class WebSocketMachine:
    """One connection; made by `client` or `server`. Bytes go out through `data_to_send`."""

    def __init__(self, websocket: WSConnection) -> None:
        #: When it is open only what speaks WebSocket is kept: the HTTP machine before that takes some kilobytes.
        self._websocket: WSConnection | Connection = websocket
        self._out = bytearray()
        self._partial = bytearray()
        self._idle_words = 0
        self.is_open = False
        #: Whether the other end has said goodbye.
        self.is_over = False

    @classmethod
    def client(cls, host: str) -> WebSocketMachine:
        """Asks for the upgrade; `host` is what stands in the Host header."""
        machine = cls(WSConnection(ConnectionType.CLIENT))
        machine._out += machine._websocket.send(Request(host=host, target=PATH))
        return machine

    @classmethod
    def server(cls, headers: Sequence[tuple[bytes, bytes]]) -> WebSocketMachine:
        """Answers the request that had these headers. Raises BadMessage where it asks for no WebSocket."""
        websocket = WSConnection(ConnectionType.SERVER)
        machine = cls(websocket)
        try:
            websocket.initiate_upgrade_connection(list(headers), PATH)
            for event in websocket.events():
                if isinstance(event, Request):
                    machine._out += websocket.send(AcceptConnection())
                    machine.is_open = True
            machine._drop_handshake()
        except (ProtocolError, ValueError) as error:
            raise BadMessage("not a WebSocket request") from error
        return machine

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes. Raises BadMessage for whatever a node or a broker would not send."""
        messages: list[bytes] = []
        try:
            self._websocket.receive_data(data)
            for event in self._websocket.events():
                if isinstance(event, BytesMessage):
                    self._partial += event.data
                    if len(self._partial) > MAX_DATAGRAM:
                        raise BadMessage("too long")
                    if event.message_finished:
                        self._count(len(self._partial) < SHORT_ACK_LENGTH)
                        messages.append(bytes(self._partial))
                        self._partial.clear()
                    elif event.frame_finished:
                        self._count(True)
                elif isinstance(event, AcceptConnection):
                    self.is_open = True
                elif isinstance(event, Ping):
                    self._count(True)
                    self._out += self._websocket.send(event.response())
                elif isinstance(event, Pong):
                    self._count(True)
                elif isinstance(event, CloseConnection):
                    self._out += self._websocket.send(event.response())
                    self.is_over = True
                elif isinstance(event, RejectConnection):
                    raise BadMessage("refused", f"HTTP status {event.status_code}")
                elif isinstance(event, TextMessage):
                    raise BadMessage("text message")
            self._drop_handshake()
        except (ProtocolError, ValueError) as error:
            if isinstance(error, BadMessage):
                raise
            raise BadMessage("not a WebSocket", str(error)) from error
        return messages

    def _count(self, is_idle: bool) -> None:
        """Another word of the other end's. Raises BadMessage for one that says nothing too many."""
        self._idle_words = self._idle_words + 1 if is_idle else max(0, self._idle_words - _WORDS_OF_A_FRAME)
        if self._idle_words > _MOST_IDLE_WORDS:
            raise BadMessage("says nothing")

    def _drop_handshake(self) -> None:
        if (
            self.is_open
            and isinstance(self._websocket, WSConnection)
            and self._websocket.connection is not None
        ):
            self._websocket = self._websocket.connection

    def send(self, message: bytes) -> None:
        """Put a message out. Only while the connection is open."""
        self._out += self._websocket.send(BytesMessage(data=message))

    def close(self) -> None:
        """Say goodbye, where that can be said."""
        if self.is_open and not self.is_over:
            self.is_over = True
            self._out += self._websocket.send(CloseConnection(code=1000))

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` has something."""
        return bool(self._out)

    def data_to_send(self) -> bytes:
        """What is to be sent, once."""
        data = bytes(self._out)
        self._out.clear()
        return data
