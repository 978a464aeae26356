"""Machines that are broken on purpose: the simulation must find each."""

from __future__ import annotations

import hmac

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import HEADER_LENGTH, Fin, Resume, encode_frame
from ntcpsock._session.machine import Session
from ntcpsock._session.resumption import Resumable, _proof
from ntcpsock._session.send_buffer import SendBuffer


class LostAck(Session):
    """What the lost carrier had of acknowledgements is not said again."""

    def reattach(self, peer_position: int) -> None:
        super().reattach(peer_position)
        self._ack_due = False


class OffByOne(Session):
    """The first byte that the peer lacks is left out."""

    def reattach(self, peer_position: int) -> None:
        super().reattach(peer_position)
        if self._again_at is not None and self._again_at < self.sent:
            self._again_at += 1


class ForgottenEnd(Session):
    """FIN is not sent again."""

    def reattach(self, peer_position: int) -> None:
        super().reattach(peer_position)
        self._end_again = False
        if self._again_at == self.sent and not self.reset_sent:
            self._again_at = None


class AcknowledgesHeld(Session):
    """What no reader has taken is confirmed."""

    def control_to_send(self) -> bytes:
        held, self.held = self.held, 0
        try:
            return super().control_to_send()
        finally:
            self.held = held


class UnwatchedAck(Session):
    """An acknowledgement may be lost unnoticed with a silent carrier, and the peer waits for it."""

    def control_to_send(self) -> bytes:
        if self._ack_due and self.has_control:
            self.aside_said += HEADER_LENGTH
        return super().control_to_send()


class SendsTwice(Session):
    """The last that is sent again is sent again once more."""

    _last = b""

    def next_again(self) -> bytes:
        if self._last:
            frame, self._last = self._last, b""
            self._again_at = None
            return frame
        at = self._again_at
        frame = super().next_again()
        if self._again_at is None and not self.reset_sent:
            self._again_at, self._last = at, frame
        return frame


class EarlyEnd(Session):
    """A FIN overtakes what is sent again."""

    def send_eof(self) -> bytes:
        super().send_eof()
        self._end_again = False
        return encode_frame(Fin(self.sent))


class HalfFrame(Session):
    """The new carrier begins in the middle of the old one's frame."""

    def reattach(self, peer_position: int) -> None:
        decoder = self._decoder
        super().reattach(peer_position)
        self._decoder = decoder


class RoundedDown(Session):
    """Of a frame that came half nothing counts as received."""

    @property
    def position(self) -> int:
        return max(0, super().position - min(self.payload_remaining, 5))


class NoWindow(Session):
    """More is sent than the peer lets through."""

    @property
    def room(self) -> int:
        return super().room + 10


class _Hoard(SendBuffer):
    def release(self, offset: int) -> None:
        pass


class NeverForgets(Session):
    """What was confirmed is kept."""

    def __init__(self, window: int = 0) -> None:
        super().__init__(window)
        self._kept = _Hoard()


class AcceptsReplay(Resumable):
    """A word is taken as often as it is said."""

    def take(self, resume: Resume, dial_id: bytes, peer: bytes) -> None:
        self.epoch = min(self.epoch, resume.epoch - 1)
        super().take(resume, dial_id, peer)


class AnyCarrier(Resumable):
    """The proof is not one for this carrier. Epochs and keys still count."""

    def take(self, resume: Resume, dial_id: bytes, peer: bytes) -> None:
        for number in range(256):
            other = bytes((number,)) * len(dial_id)
            proof = _proof(self._secret, resume.session_id, resume.epoch, resume.received, other)
            if hmac.compare_digest(proof, resume.proof):
                super().take(resume, other, peer)
                return
        raise BadMessage("RESUME: wrong proof")


class AnyPeer(Resumable):
    """Whoever heard the word may say it."""

    def take(self, resume: Resume, dial_id: bytes, peer: bytes) -> None:
        super().take(resume, dial_id, self.peer)


class NoProof(Resumable):
    """The session id is enough."""

    def take(self, resume: Resume, dial_id: bytes, peer: bytes) -> None:
        proof = _proof(self._secret, resume.session_id, resume.epoch, resume.received, dial_id)
        super().take(Resume(resume.received, resume.session_id, resume.epoch, proof), dial_id, peer)


SESSIONS: tuple[type[Session], ...] = (
    LostAck,
    OffByOne,
    ForgottenEnd,
    AcknowledgesHeld,
    UnwatchedAck,
    SendsTwice,
    EarlyEnd,
    HalfFrame,
    RoundedDown,
    NoWindow,
    NeverForgets,
)
RESUMABLES: tuple[type[Resumable], ...] = (
    AcceptsReplay,
    AnyCarrier,
    AnyPeer,
    NoProof,
)
