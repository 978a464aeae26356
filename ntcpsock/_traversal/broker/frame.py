"""The one frame of all signalling: a NaCl box between two Ed25519 keys, with the sender's key in front.

    version(1) = 1 | sender key(32) | nonce(24) | MAC(16) and encrypted payload

The same frame goes between a node and its broker and, inside Introduce and Deliver, from peer to peer.
Boxes are made with the X25519 forms of the Ed25519 node keys (XSalsa20-Poly1305, as libsodium has it).

Two plaintext datagrams serve a client that does not know its broker's key yet:

    KeyRequest:  2 | nonce(24) | zeros up to 64 bytes
    KeyReply:    3 | the same nonce(24) | broker key(32)

They prove nothing: the key is taken at first contact and pinned by whoever asked. Kinds 4 and 5 are in
`short_keep_alive`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nacl import bindings
from nacl.exceptions import CryptoError

from ntcpsock._errors import BadMessage
from ntcpsock._identity import Identity
from ntcpsock._traversal.broker import boxes

SEALED = 1
KEY_REQUEST = 2
KEY_REPLY = 3

KEY_LENGTH = 32
NONCE_LENGTH = 24
MAC_LENGTH = 16
HEADER_LENGTH = 1 + KEY_LENGTH + NONCE_LENGTH
#: What sealing adds to a payload.
OVERHEAD = HEADER_LENGTH + MAC_LENGTH

#: Longer than a KeyReply (57 bytes): nobody can use a broker to send a victim more than he sends himself.
KEY_REQUEST_LENGTH = 64
KEY_REPLY_LENGTH = 1 + NONCE_LENGTH + KEY_LENGTH

# A new pair of keys costs 34 us, a known one 3 us. 130 bytes an entry.
_DEFAULT_CACHE_SIZE = 4096


class Sealer:
    """Seals and opens frames for one identity.

    The shared key of a pair is computed once and kept in a bounded LRU. Only peers that have proved
    their key, or that we write to ourselves, get a place in it: invented keys cannot wash it out.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        cache_size: int = _DEFAULT_CACHE_SIZE,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.public_key = identity.public_key
        self._box_key = bytes(identity.box_key)
        self._cache_size = cache_size
        self._random_bytes = random_bytes
        self._shared: dict[bytes, bytes] = {}

    def knows(self, key: bytes) -> bool:
        """Whether a frame of `key` can be opened or refused without a Diffie-Hellman."""
        return key in self._shared

    def forget(self, key: bytes) -> None:
        """Somebody else keeps what is shared with `key` from now on."""
        self._shared.pop(key, None)

    def seal(self, recipient_key: bytes, payload: bytes) -> bytes:
        """A frame that only the holder of `recipient_key` can open.

        Raises BadMessage where `recipient_key` is no usable Ed25519 key.
        """
        shared = self.shared_key(recipient_key)
        self._remember(recipient_key, shared)
        nonce = directed_nonce(self._random_bytes(NONCE_LENGTH), self.public_key, recipient_key)
        return b"".join((bytes((SEALED,)), self.public_key, nonce, boxes.seal(payload, nonce, shared)))

    def open_untrusted(self, frame: bytes) -> tuple[bytes, bytes]:
        """The proved sender key and the payload. Raises BadMessage."""
        sender, nonce, box = split_untrusted(frame)
        if nonce[0] & 1 != (sender > self.public_key):
            raise BadMessage("a frame of ours that came back")
        shared = self.shared_key(sender)
        payload = boxes.open_untrusted(box, nonce, shared)
        self._remember(sender, shared)
        return sender, payload

    def shared_key(self, key: bytes) -> bytes:
        """What boxes to and from `key` are sealed with, 32 bytes. Raises BadMessage where `key` is no usable one."""
        shared = self._shared.get(key)
        if shared is not None:
            return shared
        try:
            box_key = bindings.crypto_sign_ed25519_pk_to_curve25519(key)
            return bindings.crypto_box_beforenm(box_key, self._box_key)
        except (CryptoError, ValueError, TypeError, RuntimeError):
            # Not a point of the curve, or one of low order.
            raise BadMessage("unusable public key") from None

    def _remember(self, key: bytes, shared: bytes) -> None:
        # A dict keeps the order of insertion: taking out and putting back makes it an LRU.
        self._shared.pop(key, None)
        self._shared[key] = shared
        if len(self._shared) > self._cache_size:
            del self._shared[next(iter(self._shared))]


def directed_nonce(nonce: bytes, sender: bytes, recipient: bytes) -> bytes:
    """`nonce` with the lowest bit of its first byte as it is in frames from `sender` to `recipient`.

    A box's key is the same in both directions, so a frame from A to B, sent back to A under B's name,
    would open. The nonce is authenticated; a bit of it that follows from the order of both keys
    makes such a frame fail. (With oneself as peer there is no order, and nobody to be confused with.)
    """
    return _WITH_BIT[sender > recipient][nonce[0]] + nonce[1:]


_WITH_BIT = [[bytes((first & 0xFE | bit,)) for first in range(256)] for bit in (0, 1)]


def split_untrusted(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Claimed sender key, nonce and box of a sealed frame; nothing is proved. Raises BadMessage."""
    if len(frame) < OVERHEAD or frame[0] != SEALED:
        raise BadMessage("not a sealed frame")
    return frame[1 : 1 + KEY_LENGTH], frame[1 + KEY_LENGTH : HEADER_LENGTH], frame[HEADER_LENGTH:]


def encode_key_request(nonce: bytes) -> bytes:
    """Ask a broker for its key; `nonce` has 24 random bytes."""
    return (bytes((KEY_REQUEST,)) + nonce).ljust(KEY_REQUEST_LENGTH, b"\0")


def decode_key_request_untrusted(data: bytes) -> bytes:
    """The nonce to echo. Raises BadMessage, also for a request that is shorter than padded ones are."""
    if len(data) != KEY_REQUEST_LENGTH or data[0] != KEY_REQUEST:
        raise BadMessage("not a key request")
    return data[1 : 1 + NONCE_LENGTH]


def encode_key_reply(nonce: bytes, key: bytes) -> bytes:
    """Answer a KeyRequest."""
    return bytes((KEY_REPLY,)) + nonce + key


def decode_key_reply_untrusted(data: bytes) -> tuple[bytes, bytes]:
    """The echoed nonce and the key. Raises BadMessage."""
    if len(data) != KEY_REPLY_LENGTH or data[0] != KEY_REPLY:
        raise BadMessage("not a key reply")
    return data[1 : 1 + NONCE_LENGTH], data[1 + NONCE_LENGTH :]
