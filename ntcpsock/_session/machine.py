"""One stream's session as a pure machine, in the manner of h11: no I/O, no clock.

`send_*` return bytes for the carrier, `receive_data` returns events, `control_to_send` returns what
the machine itself wants to say (acknowledgements, answers to pings). Both directions end apart (FIN),
a RESET ends both. What the peer does against the rules raises BadMessage; the driver then gives the
carrier up. What our own side does against them raises RuntimeError.

Offsets count from the stream's beginning, and what the peer has not confirmed is kept, so the stream can go on
over another carrier: `reattach` is told what the peer has, and `next_again` gives the frames that it lacks. What is
kept is bounded by a window: the peer confirms what its reader has taken, so it never holds more than that either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import (
    HEADER_LENGTH,
    LARGEST_OFFSET,
    LARGEST_PAYLOAD,
    Ack,
    Bind,
    Data,
    Decoder,
    Fin,
    Frame,
    Payload,
    Ping,
    Pong,
    Reset,
    SignalFrame,
    encode_data_header,
    encode_frame,
)
from ntcpsock._session.send_buffer import Recycle, SendBuffer

ACK_INTERVAL: Final = 256 * 1024  # bytes taken by the reader between two acknowledgements
WINDOW: Final = 4 * 1024 * 1024  # bytes of one direction that may be unconfirmed
OUTSTANDING_PINGS: Final = 8
PENDING_PONGS: Final = 8
PENDING_SIGNALS: Final = 16


@dataclass(frozen=True, slots=True)
class DataReceived:
    """The next bytes of the stream, in order."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndReceived:
    """The peer's FIN: it sends no more, and everything that it sent has been received."""


@dataclass(frozen=True, slots=True)
class ResetReceived:
    """The peer gave the stream up. Both directions are dead; bytes before it remain good."""

    code: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The peer has everything before `offset`; `end` when it has our FIN too."""

    offset: int
    end: bool


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The answer to our `ping(nonce)`."""

    nonce: int


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """A word from the peer's node to ours."""

    body: bytes


Event = DataReceived | EndReceived | ResetReceived | Acknowledged | PongReceived | SignalReceived


class Session:
    """The machine. Attributes are for reading.

    sent, received: bytes of stream data in each direction so far; held: of those received, how many no reader has
    taken; acknowledged: how many of ours the peer has confirmed; confirmed: whether it has acknowledged anything, be
    it the beginning; eof_sent, eof_acknowledged, eof_received: FIN in each direction; reset_sent; reset_code: of the
    peer's RESET, or None.

    window: bytes that may be unconfirmed, and are kept; 0: nothing is kept, and the stream cannot move.
    aside_heard, aside_said: bytes of this carrier's frames that say nothing new of the stream: PING, PONG, SIGNAL, and
    ACK where it is heard. One that is said must not be lost unnoticed: the peer may wait for it.
    """

    def __init__(self, window: int = 0) -> None:
        self.window = window
        self.sent = 0
        self.received = 0
        self.held = 0
        self.acknowledged = 0
        self.eof_sent = False
        self.eof_acknowledged = False
        self.confirmed = False
        self.eof_received = False
        self.reset_sent = False
        self.reset_code: int | None = None
        self.aside_heard = 0
        self.aside_said = 0
        self._decoder = Decoder()
        self._last_ack = 0
        self._ack_due = False
        # Lists, which are nearly always empty: an empty deque takes 600 bytes.
        self._pings: list[int] = []
        self._pongs: list[int] = []
        self._signals: list[bytes] = []
        self._kept = SendBuffer() if window else None
        self._again_at: int | None = None  # what the carrier before has lost begins here
        self._end_again = False
        self._reset_frame = b""
        # The peer's window is as large as ours; a small one must not wait for more than it lets through.
        self._ack_interval = min(ACK_INTERVAL, window // 4) if window else ACK_INTERVAL

    @property
    def is_reset(self) -> bool:
        return self.reset_sent or self.reset_code is not None

    @property
    def receiving_ended(self) -> bool:
        """Whether no more stream data can arrive: after the peer's FIN, or a RESET of either side."""
        return self.eof_received or self.is_reset

    @property
    def position(self) -> int:
        """What RESUME and RESUMED say: everything before it has arrived here; FIN counts as one byte."""
        return self.received + self.eof_received

    # -- sending ---------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that may be sent before the peer has to confirm some."""
        if self._kept is None:
            return LARGEST_OFFSET
        return self.window - (self.sent - self.acknowledged)

    def send_data(self, length: int) -> bytes:
        """The header for the next `length` (1 to 262,144) bytes of the stream; they follow it as they are.

        Where there is a window the same bytes go to `keep`, at once, and `room` says how many they may be.
        """
        self._check_may_send("data")
        header = encode_data_header(self.sent, length)
        self.sent += length
        return header

    def keep(self, data: bytes | memoryview) -> None:
        """The bytes for which `send_data` gave a header, against the loss of the carrier."""
        if self._kept is not None:
            self._kept.append(data)

    def adopt(self, data: memoryview, recycle: Recycle) -> None:
        """As `keep`, without a copy: see `SendBuffer.adopt`. Where there is a window."""
        assert self._kept is not None
        self._kept.adopt(data, recycle)

    def send_eof(self) -> bytes:
        """A FIN frame: this direction ends here. b"" where `next_again` gives it, behind what the peer lacks."""
        self._check_may_send("FIN")
        self.eof_sent = True
        if self._again_at is not None:
            self._end_again = True
            return b""
        return encode_frame(Fin(self.sent))

    def reset(self, code: int = 0) -> bytes:
        """A RESET frame: both directions are dead. Allowed at any time, once."""
        if self.is_reset:
            raise RuntimeError("the stream is already reset")
        self._reset_frame = encode_frame(Reset(code))
        self.reset_sent = True
        return self._reset_frame

    def confirm(self) -> None:
        """Have an acknowledgement be due although nothing asks for one: it says that somebody is here."""
        self._ack_due = True

    def ping(self, nonce: int) -> bytes:
        """A PING frame; its answer comes as PongReceived. Only the newest 8 are remembered."""
        if self.is_reset:
            raise RuntimeError("ping on a stream that was reset")
        frame = encode_frame(Ping(nonce))
        _append(self._pings, nonce, OUTSTANDING_PINGS)
        self.aside_said += len(frame)
        return frame

    def signal(self, body: bytes) -> None:
        """Tell the peer's node something (1 to 4,096 bytes). Of those that wait only the newest 16 are sent, and
        what a lost carrier had is not repeated."""
        _append(self._signals, encode_frame(SignalFrame(body)), PENDING_SIGNALS)

    @property
    def has_control(self) -> bool:
        """Whether `control_to_send` would give bytes."""
        return (self._ack_due or bool(self._pongs) or bool(self._signals)) and not self.is_reset

    @property
    def has_unacknowledged(self) -> bool:
        """Whether the peer lacks an acknowledgement of bytes that were taken here."""
        return self.received - self.held != self._last_ack and not self.is_reset

    def acknowledge(self) -> None:
        """Have an acknowledgement be due where one is missing, although few bytes ask for it."""
        if self.has_unacknowledged:
            self._ack_due = True

    def control_to_send(self) -> bytes:
        """The acknowledgement, the pongs and the signals that are due, at most 25 frames, or b"".

        Acknowledgements that wait fold into one; of waiting pings the newest 8 are answered.
        """
        if not self.has_control:
            return b""
        frames = []
        if self._ack_due:
            self._ack_due = False
            self._last_ack = self.received - self.held
            frames.append(encode_frame(Ack(self._last_ack + (self.eof_received and not self.held))))
            self.aside_said -= HEADER_LENGTH
        frames.extend(encode_frame(Pong(nonce)) for nonce in self._pongs)
        frames.extend(self._signals)
        self._pongs.clear()
        self._signals.clear()
        control = b"".join(frames)
        self.aside_said += len(control)
        return control

    def _check_may_send(self, what: str) -> None:
        if self.eof_sent:
            raise RuntimeError(f"{what} after FIN")
        if self.is_reset:
            raise RuntimeError(f"{what} on a stream that was reset")

    # -- moving ----------------------------------------------------------------------------------

    def check_position(self, peer_position: int) -> None:
        """Raises BadMessage where `reattach` would: the peer cannot be there, or was there long ago (a RESUME that
        was late, and has been overtaken by what the peer said since)."""
        if self._kept is None:
            raise RuntimeError("a stream without a window cannot move")
        if peer_position > self.sent + self.eof_sent:
            raise BadMessage(f"the peer claims to have {peer_position} bytes, sent {self.sent}")
        if peer_position < self.acknowledged + self.eof_acknowledged:
            raise BadMessage(f"the peer has lost what it confirmed: {peer_position} of {self.acknowledged}")

    def reattach(self, peer_position: int) -> None:
        """Go on over a new carrier, on whose other end everything before `peer_position` has arrived.

        Raises BadMessage where that cannot be; then nothing has changed. What was partly received stays received:
        offsets are exact to a byte.
        """
        self.check_position(peer_position)
        self._decoder = Decoder()
        self._pings.clear()
        self._pongs.clear()
        self.aside_heard = self.aside_said = 0
        self._end_again = self.eof_sent and peer_position <= self.sent
        is_whole = peer_position >= self.sent and not self._end_again and not self.reset_sent
        self._again_at = None if is_whole else min(peer_position, self.sent)
        self._ack_due = True  # of what the old carrier had

    @property
    def is_behind(self) -> bool:
        """Whether `next_again` has something."""
        return self._again_at is not None

    def next_again(self) -> bytes:
        """The next frame that the peer lacks since `reattach`, with its payload; b"" where it lacks none any more.

        All of them go before new ones.
        """
        if self.reset_sent and self._again_at is not None:
            self._again_at = None
            return self._reset_frame
        if self._again_at is None or self._kept is None:
            return b""
        payload = self._kept.read(self._again_at, LARGEST_PAYLOAD)
        frame = b""
        if payload:
            frame = encode_data_header(self._again_at, len(payload)) + payload
            self._again_at += len(payload)
        elif self._end_again:
            self._end_again = False
            frame = encode_frame(Fin(self.sent))
        if self._again_at == self.sent and not self._end_again:
            self._again_at = None
        return frame

    # -- receiving -------------------------------------------------------------------------------

    def hold(self, length: int) -> None:
        """The last `length` bytes that were received have not come to a reader: they do not count as taken."""
        self.held += length

    def release(self, length: int) -> None:
        """A reader has taken `length` of the bytes that were held."""
        self.held -= length
        self._count_taken()
        if self.eof_received and not self.held:
            self._ack_due = True

    @property
    def payload_remaining(self) -> int:
        """Bytes of the current DATA frame that are still to come; 0 between frames."""
        return self._decoder.payload_remaining

    @property
    def header_missing(self) -> int:
        """Bytes that the next frame header still needs, where `payload_remaining` is 0."""
        return self._decoder.header_missing

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the carrier. Raises BadMessage where the peer breaks the rules."""
        events: list[Event] = []
        for frame in self._decoder.receive_data(data):
            event = self._handle_frame(frame)
            if event is not None:
                events.append(event)
        return events

    def receive_data_header(self, header: memoryview) -> bool:
        """As `Decoder.receive_data_header`: the next DATA frame, where that is what may come."""
        return not self.receiving_ended and self._decoder.receive_data_header(header, self.received)

    def receive_header_part(self, part: bytes) -> Event | None:
        """Like `receive_data` for at most `header_missing` bytes, between two frames."""
        frame = self._decoder.receive_header_part(part)
        return None if frame is None else self._handle_frame(frame)

    def skip_payload(self, length: int) -> None:
        """`length` payload bytes (up to `payload_remaining`) went straight to their reader."""
        self._decoder.skip_payload(length)
        self._count(length)

    def _count(self, length: int) -> None:
        self.received += length
        self._count_taken()

    def _count_taken(self) -> None:
        if self.received - self.held - self._last_ack >= self._ack_interval:
            self._ack_due = True

    def _handle_frame(self, frame: Frame) -> Event | None:
        if self.reset_code is not None:
            raise BadMessage("a frame after RESET")
        if self.reset_sent:
            # It crossed our RESET: of no use, and no fault of the peer. Payload still counts down.
            return None
        if isinstance(frame, Ack | Ping | Pong):
            self.aside_heard += HEADER_LENGTH
        match frame:
            case Data(offset, _):
                if self.eof_received:
                    raise BadMessage("DATA after FIN")
                self._check_offset("DATA", offset)
                return None
            case Payload(data):
                self._count(len(data))
                return DataReceived(data)
            case Fin(offset):
                if self.eof_received:
                    raise BadMessage("a second FIN")
                self._check_offset("FIN", offset)
                self.eof_received = True
                self._ack_due = True
                return EndReceived()
            case Ack(offset):
                return self._handle_ack(offset)
            case Reset(code):
                self.reset_code = code
                return ResetReceived(code)
            case Ping(nonce):
                _append(self._pongs, nonce, PENDING_PONGS)
                return None
            case Pong(nonce):
                # One that we do not wait for may answer a ping older than the newest 8.
                if nonce not in self._pings:
                    return None
                self._pings.remove(nonce)
                return PongReceived(nonce)
            case SignalFrame(body):
                self.aside_heard += HEADER_LENGTH + len(body)
                return SignalReceived(body)
            case Bind():
                raise BadMessage("BIND inside a session")

    def _check_offset(self, kind: str, offset: int) -> None:
        if offset != self.received:
            raise BadMessage(f"{kind} at offset {offset}, expected {self.received}")

    def _handle_ack(self, offset: int) -> Acknowledged:
        if offset > self.sent + self.eof_sent:
            raise BadMessage(f"ACK of {offset}, sent {self.sent}")
        if self._again_at is not None and offset > self._again_at:
            raise BadMessage(f"ACK of {offset}, sent {self._again_at} on this carrier")
        if offset < self.acknowledged + self.eof_acknowledged:
            raise BadMessage(f"ACK went back from {self.acknowledged} to {offset}")
        self.confirmed = True
        self.eof_acknowledged = offset > self.sent
        self.acknowledged = min(offset, self.sent)
        if self._kept is not None:
            self._kept.release(self.acknowledged)
        return Acknowledged(self.acknowledged, self.eof_acknowledged)


def _append(entries: list[Any], entry: object, most: int) -> None:
    """Keep the newest."""
    entries.append(entry)
    del entries[:-most]


__all__ = [
    "ACK_INTERVAL",
    "LARGEST_PAYLOAD",
    "Acknowledged",
    "DataReceived",
    "EndReceived",
    "Event",
    "PongReceived",
    "ResetReceived",
    "Session",
    "SignalReceived",
]
