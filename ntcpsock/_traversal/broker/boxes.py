"""Boxes under a key that both sides have already computed: libsodium's secretbox, as short a way as Python has.

PyNaCl's own functions check, pad and copy, which takes longer than the cryptography of a small frame (1.2 us in place
of 0.6). What they call is called here directly where this PyNaCl has it, on buffers that are used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from nacl import bindings
from nacl.exceptions import CryptoError

from ntcpsock._errors import BadMessage

_MAC_LENGTH = 16
_NONCE_LENGTH = 24
_KEY_LENGTH = 32


def seal(payload: bytes, nonce: bytes, shared: bytes) -> bytes:
    """MAC and encrypted payload. Raises BadMessage where nonce or key has another length than 24 and 32 bytes."""
    try:
        return bytes(bindings.crypto_box_afternm(payload, nonce, shared))
    except (CryptoError, ValueError, TypeError):
        raise BadMessage("unusable nonce or key") from None


def open_untrusted(box: bytes, nonce: bytes, shared: bytes) -> bytes:
    """The payload. Raises BadMessage."""
    try:
        return bytes(bindings.crypto_box_open_afternm(box, nonce, shared))
    except (CryptoError, ValueError, TypeError):
        raise BadMessage("box does not open") from None


class Boxes:
    """The same two functions. Not to be shared by threads: the buffer is."""

    def __init__(self, longest: int) -> None:
        """longest: of a box, in bytes."""
        self._longest = longest
        self.seal = seal
        self.open_untrusted = open_untrusted
        try:
            from nacl._sodium import ffi, lib  # type: ignore[import-not-found]

            # A box is made and opened with these two, whatever the key comes from.
            self._seal, self._open = lib.crypto_secretbox_easy, lib.crypto_secretbox_open_easy
            buffer = ffi.new("unsigned char[]", longest)
            self._buffer, self._octets = buffer, ffi.buffer(buffer)
        except (ImportError, AttributeError):
            return
        self.seal = self._seal_directly
        self.open_untrusted = self._open_directly

    _seal: Any
    _open: Any
    _buffer: Any
    _octets: Any

    def _seal_directly(self, payload: bytes, nonce: bytes, shared: bytes) -> bytes:
        length = len(payload)
        # Without these the call would read or write beyond what it is given.
        if (
            length + _MAC_LENGTH > self._longest
            or len(nonce) != _NONCE_LENGTH
            or len(shared) != _KEY_LENGTH
            or self._seal(self._buffer, payload, length, nonce, shared)
        ):
            raise BadMessage("unusable nonce or key")
        sealed: bytes = self._octets[: length + _MAC_LENGTH]
        return sealed

    def _open_directly(self, box: bytes, nonce: bytes, shared: bytes) -> bytes:
        length = len(box)
        if (
            not _MAC_LENGTH <= length <= self._longest
            or len(nonce) != _NONCE_LENGTH
            or len(shared) != _KEY_LENGTH
            or self._open(self._buffer, box, length, nonce, shared)
        ):
            raise BadMessage("box does not open")
        opened: bytes = self._octets[: length - _MAC_LENGTH]
        return opened


class PlacedBoxes:
    """Makes boxes where they are to be: in a buffer of the caller's, at a row of places that have room for `longest`
    bytes each. Not to be shared by threads."""

    def __init__(self, buffer: bytearray, places: Sequence[int], longest: int) -> None:
        self._buffer = buffer
        self._places = places
        self._longest = longest
        self._pointers: list[Any] = []
        with suppress(ImportError, AttributeError):
            from nacl._sodium import ffi, lib

            self._seal = lib.crypto_secretbox_easy
            start = ffi.from_buffer("unsigned char[]", buffer)
            # The view of the buffer must live as long as what points into it.
            self._view = start
            self._pointers = [start + place for place in places]

    _seal: Any

    def seal(self, number: int, payload: bytes, nonce: bytes, shared: bytes) -> int:
        """Make one at place `number`; its length. Raises BadMessage where nonce or key has another length than 24 and
        32 bytes, or where it is too long."""
        length = len(payload) + _MAC_LENGTH
        if not self._pointers:
            box = seal(payload, nonce, shared)
            if length > self._longest:
                raise BadMessage("too long for its place")
            self._buffer[self._places[number] : self._places[number] + length] = box
            return length
        # Without these the call would read or write beyond what it is given.
        if (
            length > self._longest
            or len(nonce) != _NONCE_LENGTH
            or len(shared) != _KEY_LENGTH
            or self._seal(self._pointers[number], payload, length - _MAC_LENGTH, nonce, shared)
        ):
            raise BadMessage("unusable nonce or key")
        return length
