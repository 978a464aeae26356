"""The frames of a session, and their incremental decoder. Pure: bytes in, frames out.

Every frame starts with one header of 13 bytes, big-endian, so that a reader always knows how many
bytes to ask for next and never has to read ahead:

    type(1) | value(8) | length(4) | payload(length)

    BIND   0x10  value = version of this protocol (1), payload = dial id(16) + one-time token(32)
    DATA   0x01  value = absolute offset of the first byte, payload = 1 to 262,144 bytes
    ACK    0x02  value = everything before this offset has been given to the reader; FIN counts as one byte
    FIN    0x03  value = offset at which this direction ends
    RESET  0x04  value = reason (32 bits), the whole stream is dead
    PING   0x05  value = nonce, PONG 0x06 returns it
    SIGNAL 0x07  value = 0, payload = 1 to 4,096 bytes: what the nodes tell each other about further paths

A carrier to which a stream moves begins otherwise, with one frame each way (see `resumption`):

    RESUME   0x11  value as in ACK, payload = session id(16) + epoch(8) + proof(32), behind BIND
    RESUMED  0x12  value as in ACK; or RESET, where there is no such stream

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
LARGEST_SIGNAL: Final = 4096
SESSION_ID_LENGTH: Final = 16
PROOF_LENGTH: Final = 32
RESUME_LENGTH: Final = SESSION_ID_LENGTH + 8 + PROOF_LENGTH
LARGEST_EPOCH: Final = 2**63 - 1

_HEADER = struct.Struct("!BQI")


class FrameType(IntEnum):
    DATA = 0x01
    ACK = 0x02
    FIN = 0x03
    RESET = 0x04
    PING = 0x05
    PONG = 0x06
    SIGNAL = 0x07
    BIND = 0x10
    RESUME = 0x11
    RESUMED = 0x12


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
class SignalFrame:
    body: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """The dialer's second frame on a carrier that an open stream shall move to. received: as in ACK."""

    received: int
    session_id: bytes
    epoch: int
    proof: bytes


@dataclass(frozen=True, slots=True)
class Bind:
    """The dialer's first frame on a carrier: which dial it belongs to, and the proof."""

    dial_id: bytes
    token: bytes


Frame = Data | Payload | Ack | Fin | Reset | Ping | Pong | SignalFrame | Bind


def encode_data_header(offset: int, length: int) -> bytes:
    """The header of a DATA frame; the caller sends the `length` bytes themselves after it."""
    if not 0 < length <= LARGEST_PAYLOAD:
        raise ValueError(f"a DATA frame carries 1 to {LARGEST_PAYLOAD} bytes, not {length}")
    if not 0 <= offset <= LARGEST_OFFSET - length:
        raise ValueError(f"offset {offset} is out of range")
    return _HEADER.pack(FrameType.DATA, offset, length)


def encode_frame(frame: Ack | Fin | Reset | Ping | Pong | SignalFrame | Resume | Bind) -> bytes:
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
        case SignalFrame(body):
            if not 0 < len(body) <= LARGEST_SIGNAL:
                raise ValueError(f"a SIGNAL carries 1 to {LARGEST_SIGNAL} bytes, not {len(body)}")
            return _HEADER.pack(FrameType.SIGNAL, 0, len(body)) + body
        case Resume(received, session_id, epoch, proof):
            if len(session_id) != SESSION_ID_LENGTH or len(proof) != PROOF_LENGTH:
                raise ValueError("a session id has 16 bytes and a proof 32")
            if not (0 <= received <= LARGEST_OFFSET and 0 <= epoch <= LARGEST_EPOCH):
                raise ValueError("offset or epoch is out of range")
            header = _HEADER.pack(FrameType.RESUME, received, RESUME_LENGTH)
            return header + session_id + epoch.to_bytes(8, "big") + proof
        case Bind(dial_id, token):
            if len(dial_id) != DIAL_ID_LENGTH or len(token) != TOKEN_LENGTH:
                raise ValueError("a dial id has 16 bytes and a token 32")
            return _HEADER.pack(FrameType.BIND, PROTOCOL_VERSION, BIND_LENGTH) + dial_id + token


def encode_resumed(received: int) -> bytes:
    """The listener's answer to RESUME. received: as in ACK. ValueError where it is out of range."""
    return _encode(FrameType.RESUMED, received, LARGEST_OFFSET)


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


def decode_resume(data: bytes) -> Resume:
    """The one RESUME frame that `data` (69 bytes) is. Raises BadMessage."""
    if len(data) != HEADER_LENGTH + RESUME_LENGTH:
        raise BadMessage(f"a RESUME frame has {HEADER_LENGTH + RESUME_LENGTH} bytes, not {len(data)}")
    kind, received, length = _HEADER.unpack_from(data)
    body = data[HEADER_LENGTH:]
    epoch = int.from_bytes(body[SESSION_ID_LENGTH : SESSION_ID_LENGTH + 8], "big")
    if kind != FrameType.RESUME or length != RESUME_LENGTH:
        raise BadMessage("the frame behind BIND is not RESUME")
    if received > LARGEST_OFFSET or epoch > LARGEST_EPOCH:
        raise BadMessage("RESUME: offset or epoch is out of range")
    return Resume(received, body[:SESSION_ID_LENGTH], epoch, body[SESSION_ID_LENGTH + 8 :])


def decode_resumed(data: bytes) -> int | None:
    """The listener's answer to RESUME (13 bytes): its `received`, None where it refuses. Raises BadMessage."""
    if len(data) != HEADER_LENGTH:
        raise BadMessage(f"the answer to RESUME has {HEADER_LENGTH} bytes, not {len(data)}")
    kind, value, length = _HEADER.unpack(data)
    if kind == FrameType.RESET:
        return None
    if kind != FrameType.RESUMED or length or value > LARGEST_OFFSET:
        raise BadMessage("that is no answer to RESUME")
    return int(value)


def _decode_header(header: bytes) -> Data | Ack | Fin | Reset | Ping | Pong | int:
    """The frame, or the length of a SIGNAL's body, which follows."""
    kind, value, length = _HEADER.unpack(header)
    if kind == FrameType.DATA:
        if not 0 < length <= LARGEST_PAYLOAD:
            raise BadMessage(f"DATA of {length} bytes")
        if value > LARGEST_OFFSET - length:
            raise BadMessage(f"DATA offset {value} is out of range")
        return Data(value, length)
    if kind == FrameType.SIGNAL:
        if value or not 0 < length <= LARGEST_SIGNAL:
            raise BadMessage(f"SIGNAL of {length} bytes, value {value}")
        return int(length)
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

    It keeps at most 12 bytes, and a SIGNAL's: payload is handed out in the pieces in which it arrives. A driver that
    wants no copy reads at most `payload_remaining` bytes into a buffer of its own and only says so
    with `skip_payload`. After BadMessage the decoder is dead: every later call raises it again.
    """

    def __init__(self) -> None:
        self._header = bytearray()
        self._body_length = 0  # of the SIGNAL under way
        self._failure: str | None = None
        self.payload_remaining = 0

    @property
    def header_missing(self) -> int:
        """How many bytes the header that comes next still needs (1 to 13), or a SIGNAL's body; outside a payload."""
        return (self._body_length or HEADER_LENGTH) - len(self._header)

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

    def receive_header_part(self, part: bytes) -> Data | Ack | Fin | Reset | Ping | Pong | SignalFrame | None:
        """Take at most `header_missing` bytes of a header; the frame once it is whole. Raises BadMessage."""
        if self._failure is not None:
            raise BadMessage(self._failure)
        self._header += part
        if self.header_missing:
            return None
        header = bytes(self._header)
        self._header.clear()
        if self._body_length:
            self._body_length = 0
            return SignalFrame(header)
        try:
            frame = _decode_header(header)
        except BadMessage as error:
            self._failure = str(error)
            raise
        if isinstance(frame, int):
            self._body_length = frame
            return None
        if isinstance(frame, Data):
            self.payload_remaining = frame.length
        return frame

    def receive_data_header(self, header: memoryview, offset: int) -> bool:
        """The short way for a whole header that arrives between two frames: whether it was that of a DATA
        frame at `offset`. If not, nothing has happened, and `receive_header_part` says what it is."""
        kind, value, length = _HEADER.unpack(header)
        if kind != _DATA or value != offset or not 0 < length <= LARGEST_PAYLOAD or self._failure is not None:
            return False
        if self._body_length or value > LARGEST_OFFSET - length:
            return False
        self.payload_remaining = length
        return True

    def skip_payload(self, length: int) -> None:
        """`length` bytes of the payload under way went straight into the driver's buffer."""
        if not 0 <= length <= self.payload_remaining:
            raise ValueError(f"{length} bytes of a payload that has {self.payload_remaining} left")
        self.payload_remaining -= length
