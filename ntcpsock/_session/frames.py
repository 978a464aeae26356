"""The frames of a session, and their incremental decoder. Pure: bytes in, frames out.

Every frame starts with one header of 13 bytes, big-endian, so that a reader always knows how many
bytes to ask for next and never has to read ahead:

    type(1) | value(8) | length(4) | payload(length)

    BIND   0x10  value = version of this protocol (1), payload = dial id(16) + one-time token(32)
    DATA   0x01  value = absolute offset of the first byte, payload = 1 to 262,144 bytes
    ACK    0x02  value = everything before this offset has been received; FIN counts as one byte
    FIN    0x03  value = offset at which this direction ends
    RESET  0x04  value = reason (32 bits), the whole stream is dead
    PING   0x05  value = nonce, PONG 0x06 returns it

Offsets count each direction's bytes from 0 for the life of the stream, not of the carrier: a stream
that moves to another carrier needs no renumbering.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ntcpsock._errors import BadMessage

HEADER_LENGTH: Final = 13
PROTOCOL_VERSION: Final = 1
LARGEST_PAYLOAD: Final = 256 * 1024
LARGEST_OFFSET: Final = 2**63 - 1  # one bit spare: sums of offset and length stay inside 64 bits
LARGEST_RESET_CODE: Final = 2**32 - 1
DIAL_ID_LENGTH: Final = 16
TOKEN_LENGTH: Final = 32
BIND_LENGTH: Final = DIAL_ID_LENGTH + TOKEN_LENGTH

_HEADER = struct.Struct("!BQI")


class FrameType(IntEnum):
    DATA = 0x01
    ACK = 0x02
    FIN = 0x03
    RESET = 0x04
    PING = 0x05
    PONG = 0x06
    BIND = 0x10


_DATA: Final = int(FrameType.DATA)


@dataclass(frozen=True, slots=True)
class Data:
    """The header of a DATA frame; its `length` payload bytes follow as `Payload` pieces."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Payload:
    """The next piece of the payload of the DATA frame that is under way, as it arrived."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    offset: int


@dataclass(frozen=True, slots=True)
class Fin:
    offset: int


@dataclass(frozen=True, slots=True)
class Reset:
    code: int


@dataclass(frozen=True, slots=True)
class Ping:
    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    nonce: int


@dataclass(frozen=True, slots=True)
class Bind:
    """The dialer's first frame on a carrier: which dial it belongs to, and the proof."""

    dial_id: bytes
    token: bytes


Frame = Data | Payload | Ack | Fin | Reset | Ping | Pong | Bind


def encode_data_header(offset: int, length: int) -> bytes:
    """The header of a DATA frame; the caller sends the `length` bytes themselves after it."""
    if not 0 < length <= LARGEST_PAYLOAD:
        raise ValueError(f"a DATA frame carries 1 to {LARGEST_PAYLOAD} bytes, not {length}")
    if not 0 <= offset <= LARGEST_OFFSET - length:
        raise ValueError(f"offset {offset} is out of range")
    return _HEADER.pack(FrameType.DATA, offset, length)


def encode_frame(frame: Ack | Fin | Reset | Ping | Pong | Bind) -> bytes:
    """A whole frame without stream data as bytes. ValueError where a field is out of range."""
    match frame:
        case Ack(offset):
            return _encode(FrameType.ACK, offset, LARGEST_OFFSET)
        case Fin(offset):
            return _encode(FrameType.FIN, offset, LARGEST_OFFSET)
        case Reset(code):
            return _encode(FrameType.RESET, code, LARGEST_RESET_CODE)
        case Ping(nonce):
            return _encode(FrameType.PING, nonce, 2**64 - 1)
        case Pong(nonce):
            return _encode(FrameType.PONG, nonce, 2**64 - 1)
        case Bind(dial_id, token):
            if len(dial_id) != DIAL_ID_LENGTH or len(token) != TOKEN_LENGTH:
                raise ValueError("a dial id has 16 bytes and a token 32")
            return _HEADER.pack(FrameType.BIND, PROTOCOL_VERSION, BIND_LENGTH) + dial_id + token


def _encode(kind: FrameType, value: int, largest: int) -> bytes:
    if not 0 <= value <= largest:
        raise ValueError(f"{kind.name} value {value} is out of range")
    return _HEADER.pack(kind, value, 0)


def decode_bind(data: bytes) -> Bind:
    """The one BIND frame that `data` (61 bytes) is. Raises BadMessage."""
    if len(data) != HEADER_LENGTH + BIND_LENGTH:
        raise BadMessage(f"a BIND frame has {HEADER_LENGTH + BIND_LENGTH} bytes, not {len(data)}")
    kind, version, length = _HEADER.unpack_from(data)
    if kind != FrameType.BIND or length != BIND_LENGTH:
        raise BadMessage("the first frame on a carrier is not BIND")
    if version != PROTOCOL_VERSION:
        raise BadMessage(f"session protocol version {version}; this side speaks {PROTOCOL_VERSION}")
    body = data[HEADER_LENGTH:]
    return Bind(body[:DIAL_ID_LENGTH], body[DIAL_ID_LENGTH:])


def _decode_header(header: bytes) -> Data | Ack | Fin | Reset | Ping | Pong:
    kind, value, length = _HEADER.unpack(header)
    if kind == FrameType.DATA:
        if not 0 < length <= LARGEST_PAYLOAD:
            raise BadMessage(f"DATA of {length} bytes")
        if value > LARGEST_OFFSET - length:
            raise BadMessage(f"DATA offset {value} is out of range")
        return Data(value, length)
    if length:
        raise BadMessage(f"frame type {kind:#x} with a payload of {length} bytes")
    if kind in (FrameType.ACK, FrameType.FIN):
        if value > LARGEST_OFFSET:
            raise BadMessage(f"offset {value} is out of range")
        return Ack(value) if kind == FrameType.ACK else Fin(value)
    if kind == FrameType.RESET:
        if value > LARGEST_RESET_CODE:
            raise BadMessage(f"RESET code {value} is out of range")
        return Reset(value)
    if kind == FrameType.PING:
        return Ping(value)
    if kind == FrameType.PONG:
        return Pong(value)
    raise BadMessage(f"unknown frame type {kind:#x}")


class Decoder:
    """Splits a carrier's bytes into frames.

    It keeps at most 12 bytes: payload is handed out in the pieces in which it arrives. A driver that
    wants no copy reads at most `payload_remaining` bytes into a buffer of its own and only says so
    with `skip_payload`. After BadMessage the decoder is dead: every later call raises it again.
    """

    def __init__(self) -> None:
        self._header = bytearray()
        self._failure: str | None = None
        self.payload_remaining = 0

    @property
    def header_missing(self) -> int:
        """How many bytes the header that comes next still needs (1 to 13), outside a payload."""
        return HEADER_LENGTH - len(self._header)

    def receive_data(self, data: bytes) -> list[Frame]:
        """The frames and payload pieces that `data` completes. Raises BadMessage.

        The frames before a bad one are lost with it; a carrier that sends nonsense is given up.
        """
        frames: list[Frame] = []
        position = 0
        while position < len(data):
            if self.payload_remaining:
                piece = data[position : position + self.payload_remaining]
                position += len(piece)
                self.payload_remaining -= len(piece)
                frames.append(Payload(piece))
            else:
                part = data[position : position + self.header_missing]
                position += len(part)
                frame = self.receive_header_part(part)
                if frame is not None:
                    frames.append(frame)
        return frames

    def receive_header_part(self, part: bytes) -> Data | Ack | Fin | Reset | Ping | Pong | None:
        """Take at most `header_missing` bytes of a header; the frame once it is whole. Raises BadMessage."""
        if self._failure is not None:
            raise BadMessage(self._failure)
        self._header += part
        if len(self._header) < HEADER_LENGTH:
            return None
        header = bytes(self._header)
        self._header.clear()
        try:
            frame = _decode_header(header)
        except BadMessage as error:
            self._failure = str(error)
            raise
        if isinstance(frame, Data):
            self.payload_remaining = frame.length
        return frame

    def receive_data_header(self, header: memoryview, offset: int) -> bool:
        """The short way for a whole header that arrives between two frames: whether it was that of a DATA
        frame at `offset`. If not, nothing has happened, and `receive_header_part` says what it is."""
        kind, value, length = _HEADER.unpack(header)
        if kind != _DATA or value != offset or not 0 < length <= LARGEST_PAYLOAD or self._failure is not None:
            return False
        if value > LARGEST_OFFSET - length:
            return False
        self.payload_remaining = length
        return True

    def skip_payload(self, length: int) -> None:
        """`length` bytes of the payload under way went straight into the driver's buffer."""
        if not 0 <= length <= self.payload_remaining:
            raise ValueError(f"{length} bytes of a payload that has {self.payload_remaining} left")
        self.payload_remaining -= length
