"""How a connection without encryption begins: each end proves the dial's token, and the dialer nominates.

    dialer -> listener   HELLO     magic(8) | dial id(16) | nonce(32) | proof(32)
    listener -> dialer   WELCOME   nonce(32) | proof(32)
    dialer -> listener   NOMINATE  proof(32)

The token travelled in the sealed offer and is known to both ends alone. It never appears here: a proof is its
HMAC-SHA-256 over the message's name, the dial id and the nonces so far, so that what was overheard is of no use
for another connection, nor when sent back. All lengths are fixed and nothing is read ahead, so both ends know
the byte where the application begins: the listener's first one follows WELCOME (it waits for NOMINATE), the
dialer's first one follows NOMINATE.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

from ntcpsock._errors import BadMessage

MAGIC: Final = b"NTCPoff1"
DIAL_ID_LENGTH: Final = 16
NONCE_LENGTH: Final = 32
PROOF_LENGTH: Final = 32
HELLO_LENGTH: Final = len(MAGIC) + DIAL_ID_LENGTH + NONCE_LENGTH + PROOF_LENGTH
WELCOME_LENGTH: Final = NONCE_LENGTH + PROOF_LENGTH
NOMINATE_LENGTH: Final = PROOF_LENGTH


class Dialer:
    """The dialer's part on one connection."""

    def __init__(self, dial_id: bytes, token: bytes, nonce: bytes | None = None) -> None:
        self._token = token
        self._said = dial_id + (nonce or secrets.token_bytes(NONCE_LENGTH))

    def hello(self) -> bytes:
        """What opens the connection."""
        return MAGIC + self._said + _proof(self._token, b"hello", self._said)

    def take_welcome(self, data: bytes) -> None:
        """The other end must know the token, too. Raises BadMessage."""
        if len(data) != WELCOME_LENGTH:
            raise BadMessage("WELCOME: wrong length")
        said = self._said + data[:NONCE_LENGTH]
        if not hmac.compare_digest(data[NONCE_LENGTH:], _proof(self._token, b"welcome", said)):
            raise BadMessage("WELCOME: the other end does not know the token of this dial")
        self._said = said

    def nominate(self) -> bytes:
        """After `take_welcome`, on the one connection that won."""
        return _proof(self._token, b"nominate", self._said)


class Listener:
    """The listener's part on one connection: `dial_id` says which dial the other end claims to be.

    Raises BadMessage for what is no HELLO.
    """

    def __init__(self, hello: bytes, nonce: bytes | None = None) -> None:
        if len(hello) != HELLO_LENGTH or not hello.startswith(MAGIC):
            raise BadMessage("this is no HELLO")
        start, end = len(MAGIC), HELLO_LENGTH - PROOF_LENGTH
        self.dial_id = hello[start : start + DIAL_ID_LENGTH]
        self._said = hello[start:end]
        self._shown = hello[end:]
        self._nonce = nonce or secrets.token_bytes(NONCE_LENGTH)

    def welcome(self, token: bytes) -> bytes:
        """The answer to one who knows `token`. Raises BadMessage for others."""
        if not hmac.compare_digest(self._shown, _proof(token, b"hello", self._said)):
            raise BadMessage("HELLO: the other end does not know the token of its dial")
        self._said += self._nonce
        return self._nonce + _proof(token, b"welcome", self._said)

    def take_nominate(self, token: bytes, data: bytes) -> None:
        """The dialer has chosen this connection. Raises BadMessage."""
        if not hmac.compare_digest(data, _proof(token, b"nominate", self._said)):
            raise BadMessage("NOMINATE: wrong proof")


def _proof(token: bytes, name: bytes, said: bytes) -> bytes:
    return hmac.digest(token, b"ntcp off 1 " + name + b"\0" + said, "sha256")
