"""Tokens: what an operator gives to those who may use a broker.

A node never says its token. What it says proves that it has it, is good for its own key at this broker alone, and tells
whoever poses as the broker nothing, unless the token can be guessed.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from ntcpsock._traversal.broker.fields import TOKEN_PROOF_LENGTH


def token_proof(token: str, broker_key: bytes, node_key: bytes) -> bytes:
    """That the node has `token`, told the broker (keyed BLAKE2b, RFC 7693 section 2.9, over both keys)."""
    return hashlib.blake2b(
        broker_key + node_key, key=_key(token), digest_size=TOKEN_PROOF_LENGTH, person=b"ntcp token"
    ).digest()


@lru_cache(maxsize=256)
def _key(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=32, person=b"ntcp token key").digest()
