"""Frames between a broker and its nodes: the keys shared with nodes are in their records, those with strangers in a
bounded cache."""

from __future__ import annotations

from collections.abc import Callable

from ntcpsock._errors import BadMessage
from ntcpsock._identity import Identity
from ntcpsock._servers.registry import Registry
from ntcpsock._traversal.broker.boxes import Boxes
from ntcpsock._traversal.broker.frame import (
    NONCE_LENGTH,
    SEALED,
    Sealer,
    directed_nonce,
    split_untrusted,
)

# Of UDP, and of a WebSocket.
_LONGEST_FRAME = 65536
# Between their first hello and their second: one and a half seconds of them at the rate that `BrokerLimits` allows.
_MOST_STRANGERS = 16384
_SEALED = bytes((SEALED,))


class NodeSealer:
    """Seals and opens as `Sealer` does, without a Diffie-Hellman for whoever is in the registry."""

    def __init__(self, identity: Identity, registry: Registry, random_bytes: Callable[[int], bytes]) -> None:
        self.public_key = identity.public_key
        self._prefix = _SEALED + self.public_key
        self._registry = registry
        self._random_bytes = random_bytes
        self._strangers = Sealer(identity, cache_size=_MOST_STRANGERS, random_bytes=random_bytes)
        #: For whoever has a shared key at hand.
        self.boxes = Boxes(_LONGEST_FRAME)

    def knows(self, key: bytes) -> bool:
        """Whether a frame of `key` can be opened or refused without a Diffie-Hellman."""
        return self._strangers.knows(key) or self._registry.knows(key)

    def shared_key(self, key: bytes) -> bytes:
        """Raises BadMessage where `key` is no usable one."""
        return self._registry.shared_key(key) or self._strangers.shared_key(key)

    def settled(self, key: bytes) -> None:
        """It is in the registry now."""
        self._strangers.forget(key)

    def seal(self, key: bytes, payload: bytes) -> bytes:
        """A frame that only the holder of `key` can open. Raises BadMessage where it is no usable key."""
        shared = self._registry.shared_key(key)
        return self._strangers.seal(key, payload) if shared is None else self.seal_with(shared, key, payload)

    def seal_with(self, shared: bytes, key: bytes, payload: bytes) -> bytes:
        """The same, where their shared key is at hand."""
        nonce = directed_nonce(self._random_bytes(NONCE_LENGTH), self.public_key, key)
        return b"".join((self._prefix, nonce, self.boxes.seal(payload, nonce, shared)))

    def open_untrusted(self, frame: bytes) -> tuple[bytes, bytes]:
        """The proved sender key and the payload. Raises BadMessage."""
        sender, nonce, box = split_untrusted(frame)
        shared = self._registry.shared_key(sender)
        if shared is None:
            return self._strangers.open_untrusted(frame)
        return sender, self.open_with(shared, sender, nonce, box)

    def open_with(self, shared: bytes, sender: bytes, nonce: bytes, box: bytes) -> bytes:
        """The payload, where the shared key is at hand. Raises BadMessage."""
        if nonce[0] & 1 != (sender > self.public_key):
            raise BadMessage("a frame of ours that came back")
        return self.boxes.open_untrusted(box, nonce, shared)
