"""The long-term credential mechanism of RFC 8489 section 9.2, the client's side, over many requests.

A server challenges the first request (401) with its realm and a nonce; from then on requests are signed, and its
answers must be. Where it offers password algorithms it is the newer half of the RFC: SHA-256 everywhere. The nonce's
cookie says so under the server's own protection, so that nobody on the way can take the offer out.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from ntcpsock._traversal.stun.attributes import Attribute, ErrorCodeAttribute, Nonce, Realm, Username
from ntcpsock._traversal.stun.constants import ErrorCode, MessageClass, PasswordAlgorithmNumber
from ntcpsock._traversal.stun.credentials import (
    MessageIntegrity,
    MessageIntegritySha256,
    PasswordAlgorithm,
    PasswordAlgorithms,
    UserHash,
    long_term_key,
    opaque_string,
    user_hash,
)
from ntcpsock._traversal.stun.message import (
    Message,
    check_integrity,
    check_integrity_sha256,
    encode_message,
)
from ntcpsock._traversal.turn.credentials import TurnCredentials
from ntcpsock._traversal.turn.message import TurnErrorCode

#: RFC 8489 section 9.2: how a nonce begins that says which security features its server has, in 4 more octets.
NONCE_COOKIE: Final = b"obMatJos2"
_FEATURES_LENGTH: Final = 4

# RFC 8489 section 18.1 numbers the bits of the feature set. Its own vector (B.1) counts them from the right, as
# erratum 6290 says, and servers were built that count from the left; the bits between are not assigned.
_PASSWORD_ALGORITHMS: Final = 0x800001
_USERNAME_ANONYMITY: Final = 0x400002

_KNOWN_ALGORITHMS: Final = (PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA256)

# What a server says before it knows who asks, so that it cannot sign it.
_UNSIGNED_ERRORS: Final = frozenset(
    {
        ErrorCode.TRY_ALTERNATE,
        ErrorCode.BAD_REQUEST,
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.UNKNOWN_ATTRIBUTE,
        ErrorCode.STALE_NONCE,
        TurnErrorCode.WRONG_CREDENTIALS,
    }
)


class CannotAuthenticate(Exception):
    """The challenge cannot be met; the text says why. It stays inside the TURN machine."""


class Authentication:
    """What the server has told, and the keys that follow from it."""

    def __init__(self, credentials: TurnCredentials) -> None:
        self._credentials = credentials
        self._realm: str | None = None
        self._nonce = b""
        self._algorithms: PasswordAlgorithms | None = None
        self._chosen: tuple[int, bytes] = (PasswordAlgorithmNumber.MD5, b"")
        self._key: bytes | None = None

    @property
    def is_challenged(self) -> bool:
        """Whether requests are signed by now."""
        return self._key is not None

    def encode(self, request: Message) -> bytes:
        """The octets of `request`, with credentials and integrity once the server has asked for them."""
        if self._key is None:
            return encode_message(request)
        signed = Message(
            request.method,
            request.message_class,
            request.transaction_id,
            (*request.attributes, *self._attributes()),
        )
        if self._algorithms is not None:
            return encode_message(signed, sha256_key=self._key)
        return encode_message(signed, integrity_key=self._key)

    def _attributes(self) -> tuple[Attribute, ...]:
        """RFC 8489 section 9.2.3.2."""
        assert self._realm is not None
        username = opaque_string(self._credentials.username)
        who: Attribute = Username(username)
        if _features(self._nonce) & _USERNAME_ANONYMITY:
            who = UserHash(user_hash(username, self._realm))
        said = (who, Realm(self._realm), Nonce(self._nonce))
        if self._algorithms is None:
            return said
        return (*said, self._algorithms, PasswordAlgorithm(*self._chosen))

    def handle_challenge_untrusted(self, response: Message) -> None:
        """Take a 401 or a 438 (RFC 8489 section 9.2.5): the request can be repeated, signed anew.

        Raises CannotAuthenticate where that would be of no use.
        """
        code = response.get(ErrorCodeAttribute)
        realm, nonce = response.get(Realm), response.get(Nonce)
        algorithms = response.get(PasswordAlgorithms)
        if nonce is None or (realm is None and self._realm is None):
            raise CannotAuthenticate("the server's challenge has no realm or no nonce")
        name = self._realm if realm is None else realm.text
        refused = code is not None and code.code == ErrorCode.UNAUTHENTICATED and self._key is not None
        if refused and (nonce.value == self._nonce or name != self._realm):
            # Signed with what the server asked for. A restarted one says 401 for the nonces of its former life;
            # that is tried once more with the new one.
            raise CannotAuthenticate("wrong user or password")
        if _features(nonce.value) & _PASSWORD_ALGORITHMS and algorithms is None:
            raise CannotAuthenticate("somebody took the password algorithms out of the server's challenge")
        chosen = (PasswordAlgorithmNumber.MD5.value, b"")
        if algorithms is not None:
            known = [entry for entry in algorithms.entries if entry[0] in _KNOWN_ALGORITHMS]
            if not known:
                raise CannotAuthenticate("the server offers no password algorithm that is known here")
            chosen = known[0]
        try:
            assert name is not None
            key = long_term_key(self._credentials.username, name, self._credentials.password, chosen[0])
        except ValueError:
            raise CannotAuthenticate("the server's realm cannot be used") from None
        self._realm, self._nonce, self._algorithms = name, nonce.value, algorithms
        self._chosen, self._key = chosen, key

    def is_trusted_untrusted(self, data: bytes, response: Message, *, signed: bool) -> bool:
        """Whether `response`, decoded from `data`, is to be believed (RFC 8489 section 9.2.5). signed: whether the
        request was. Raises BadMessage."""
        if not signed or self._key is None:
            # Before the challenge nobody can have signed anything, and a server succeeds at nothing without one.
            return True
        if response.get(MessageIntegritySha256) is not None:
            return check_integrity_sha256(data, self._key)
        if response.get(MessageIntegrity) is not None:
            # RFC 8489 section 9.2.5: who was asked with SHA-256 answers with it.
            return self._algorithms is None and check_integrity(data, self._key)
        error = response.get(ErrorCodeAttribute)
        return (
            response.message_class == MessageClass.ERROR_RESPONSE
            and error is not None
            and error.code in _UNSIGNED_ERRORS
        )


def _features(nonce: bytes) -> int:
    """The 24 bits of the nonce's feature set, 0 where it has no cookie."""
    if not nonce.startswith(NONCE_COOKIE):
        return 0
    text = nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + _FEATURES_LENGTH]
    try:
        return int.from_bytes(base64.b64decode(text, validate=True)) if len(text) == 4 else 0
    except (binascii.Error, ValueError):
        return 0
