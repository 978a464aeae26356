"""A name as it stands in the store: its owner and its policy in one string of bytes, and the number of its last change.

row: key(32) | 0                    whoever proves a key may know it
     key(32) | 1 | allow list       see `_traversal.broker.fields.AllowList`
announcement: number in decimal | space | name | zero byte | row, or nothing where the name is free again
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ntcpsock._errors import BadMessage
from ntcpsock._servers.names import NameRecord
from ntcpsock._traversal.broker.fields import ALLOWED_DIGEST_LENGTH, MAX_ALLOWED, MAX_NAME

_KEY_LENGTH: Final = 32
_LONGEST: Final = _KEY_LENGTH + 1 + MAX_ALLOWED * ALLOWED_DIGEST_LENGTH


class Change(NamedTuple):
    """One name after its change with that number; record None: it is free."""

    number: int
    name: str
    record: NameRecord | None


def encode_row(key: bytes, allow: bytes | None) -> bytes:
    """The row of a name that belongs to `key`."""
    return key + b"\0" if allow is None else key + b"\1" + allow


def decode_row_untrusted(name: str, row: bytes) -> NameRecord:
    """Raises BadMessage."""
    key, form, allow = row[:_KEY_LENGTH], row[_KEY_LENGTH : _KEY_LENGTH + 1], row[_KEY_LENGTH + 1 :]
    if len(row) > _LONGEST or len(allow) % ALLOWED_DIGEST_LENGTH or form not in (b"\0", b"\1"):
        raise BadMessage("malformed row of a name")
    if form == b"\0" and allow:
        raise BadMessage("malformed row of a name")
    return NameRecord(name, key, None if form == b"\0" else allow)


def decode_change_untrusted(number: int, name: bytes, row: bytes | None) -> Change:
    """A change as the store tells it. Raises BadMessage."""
    if not 0 < len(name) <= MAX_NAME or number < 0:
        raise BadMessage("malformed change of a name")
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        raise BadMessage("malformed change of a name") from None
    return Change(number, text, decode_row_untrusted(text, row) if row else None)


def decode_announcement_untrusted(data: bytes) -> Change:
    """A change as it is published. Raises BadMessage."""
    number, _, rest = data.partition(b" ")
    name, zero, row = rest.partition(b"\0")
    if not zero or not number.isdigit() or len(number) > 18:
        raise BadMessage("malformed announcement of a name")
    return decode_change_untrusted(int(number), name, row)
