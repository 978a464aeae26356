"""Who a node is: an Ed25519 key pair. The node id is the public key in base32."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from nacl.exceptions import BadSignatureError
from nacl.public import PrivateKey
from nacl.signing import SigningKey, VerifyKey

from ntcpsock._address import encode_node_id
from ntcpsock._errors import BadMessage

SIGNATURE_LENGTH = 64


@dataclass(frozen=True)
class Identity:
    """A node's key pair. The same key signs (Ed25519) and opens boxes (its X25519 form)."""

    signing_key: SigningKey = field(repr=False)

    @classmethod
    def generate(cls) -> Identity:
        return cls(SigningKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """From the 32-byte seed. Raises ValueError for another length."""
        if len(seed) != 32:
            raise ValueError("an Ed25519 seed has 32 bytes")
        return cls(SigningKey(seed))

    @property
    def seed(self) -> bytes:
        return bytes(self.signing_key)

    @cached_property
    def public_key(self) -> bytes:
        """The 32-byte Ed25519 public key."""
        return bytes(self.signing_key.verify_key)

    @cached_property
    def node_id(self) -> str:
        return encode_node_id(self.public_key)

    @property
    def box_key(self) -> PrivateKey:
        return self.signing_key.to_curve25519_private_key()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte detached signature."""
        return self.signing_key.sign(message).signature


def verify_untrusted(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raises BadMessage unless `signature` is `public_key`'s over `message`."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError) as error:
        raise BadMessage("signature does not verify") from error
