"""How the two ends of a stream know each other on another carrier. Pure.

The dialer brings the new carrier, by a dial like any other, and behind BIND it says which stream shall move to it:

    dialer -> listener   RESUME    session id, epoch, what has arrived here, proof
    listener -> dialer   RESUMED   what has arrived there

The session id is the dial id of the first carrier. The proof is an HMAC-SHA-256 under a secret that both made out of
that dial's one-time token, which was sealed from node to node: over the id, the epoch, the position, and the dial id
of the new carrier, so that it is of no use with another one. The epoch grows with each attempt, and the listener takes
none twice. The carrier's own encryption hides all of it; a stranger who has the id only has nothing.
"""

from __future__ import annotations

import hmac
from typing import Final

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import Resume, encode_frame

_SECRET: Final = b"ntcp resume 1"


def _secret_of(token: bytes) -> bytes:
    return hmac.digest(token, _SECRET, "sha256")


def _proof(secret: bytes, session_id: bytes, epoch: int, received: int, dial_id: bytes) -> bytes:
    said = session_id + epoch.to_bytes(8, "big") + received.to_bytes(8, "big") + dial_id
    return hmac.digest(secret, b"resume\0" + said, "sha256")


class Resuming:
    """The dialer's side of one stream. epoch: of its last attempt to move; moved: of the last that succeeded."""

    def __init__(self, session_id: bytes, token: bytes) -> None:
        self.session_id = session_id
        self.epoch = self.moved = 0
        self._secret = _secret_of(token)

    def resume(self, received: int, dial_id: bytes) -> bytes:
        """The RESUME frame for the carrier of the dial `dial_id` (16 bytes), each time a new one."""
        self.epoch += 1
        proof = _proof(self._secret, self.session_id, self.epoch, received, dial_id)
        return encode_frame(Resume(received, self.session_id, self.epoch, proof))

    def has_moved(self) -> None:
        """The stream goes on over the carrier of the last attempt."""
        self.moved = self.epoch

    def is_late(self, epoch: int) -> bool:
        """Whether the listener, which knows of moves up to `epoch`, speaks of a carrier before the present one. It need
        not have heard of attempts that failed."""
        return epoch < self.moved


class Resumable:
    """The listener's side of one stream. peer: the 32-byte key of its dialer; epoch: the newest that was taken."""

    def __init__(self, session_id: bytes, token: bytes, peer: bytes) -> None:
        self.session_id = session_id
        self.peer = peer
        self.epoch = 0
        self._secret = _secret_of(token)

    def take(self, resume: Resume, dial_id: bytes, peer: bytes) -> None:
        """Accept `resume`, which came on the carrier of the dial `dial_id`, whose dialer is `peer`. Raises BadMessage
        for whoever is not this stream's dialer, and for what was said before."""
        expected = _proof(self._secret, resume.session_id, resume.epoch, resume.received, dial_id)
        if not hmac.compare_digest(resume.proof, expected) or resume.session_id != self.session_id:
            raise BadMessage("RESUME: wrong proof")
        if not hmac.compare_digest(peer, self.peer):
            raise BadMessage("RESUME: another node's stream")
        if resume.epoch <= self.epoch:
            raise BadMessage("RESUME: said before")
        self.epoch = resume.epoch
