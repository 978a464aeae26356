"""Allow lists as they travel: digests of names and of keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ntcpsock._address import decode_node_id
from ntcpsock._traversal.broker.fields import ALLOWED_DIGEST_LENGTH


def allowed_digest(entry: str) -> bytes:
    """What stands for a name or a node id in an allow list.

    Digests make 48 entries fit into one registration, and the broker learns no names from them that
    it does not know already.
    """
    key = decode_node_id(entry)
    kind, value = (b"name:", entry.encode()) if key is None else (b"key:", key)
    return hashlib.sha256(kind + value).digest()[:ALLOWED_DIGEST_LENGTH]


def key_digest(key: bytes) -> bytes:
    """`allowed_digest` of the key's node id, without spelling it."""
    return hashlib.sha256(b"key:" + key).digest()[:ALLOWED_DIGEST_LENGTH]


def encode_allow(entries: Iterable[str]) -> bytes:
    """An allow list in its wire form, sorted and without doubles."""
    return b"".join(sorted({allowed_digest(entry) for entry in entries}))


def allows(allow: bytes, digest: bytes) -> bool:
    """Whether `digest` is one of the list's."""
    return any(
        allow[start : start + ALLOWED_DIGEST_LENGTH] == digest
        for start in range(0, len(allow), ALLOWED_DIGEST_LENGTH)
    )
