"""Frames of a broker's that are sealed in the memory from which the kernel takes them: no copy between the two."""

from __future__ import annotations

from collections.abc import Iterable

from ntcpsock._servers import mmsg
from ntcpsock._servers.hot_path import Unsealed
from ntcpsock._servers.random_pool import NoncePool, RandomPool
from ntcpsock._traversal.broker.boxes import PlacedBoxes
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, KEY_LENGTH, SEALED

_NONCE_AT = 1 + KEY_LENGTH
_STRIDE = MAX_DATAGRAM


class SealedOutbox(mmsg.Outbox):
    """An outbox of one socket; own_key: the broker's."""

    def __init__(self, descriptor: int, count: int, own_key: bytes, *, ipv6: bool) -> None:
        super().__init__(count, _STRIDE, ipv6=ipv6)
        self._descriptor = descriptor
        self._own_key = own_key
        self._prefix = bytes((SEALED,)) + own_key
        # Whether the frame in each place begins with the prefix already.
        self._prefixed = [False] * count
        self._nonces = NoncePool(RandomPool())
        places = [index * _STRIDE + HEADER_LENGTH for index in range(count)]
        # A box may be as long as its place, no longer: the last one ends where the memory does.
        self._seal_box = PlacedBoxes(self._batch.datagrams, places, _STRIDE - HEADER_LENGTH).seal

    def queue(self, descriptor: int, datagram: bytes, address: bytes, control: bytes) -> list[int]:
        """See `Outbox`."""
        refused = super().queue(descriptor, datagram, address, control)
        self._prefixed[self._queued - 1] = False
        return refused

    def seal_all(self, unsealed: Iterable[Unsealed], control: bytes) -> list[int]:
        """Put in the frames of these payloads; what finds no room leaves first. control: ancillary data of each. The
        errnos of those that did not leave. Raises BadMessage where a payload is too long."""
        refused: list[int] = []
        own_key, drawn, seal_box = self._own_key, self._nonces.drawn, self._seal_box
        datagrams, sizes, names = self._batch.datagrams, self._batch.sizes, self._batch.names
        prefixed, controls = self._prefixed, self._controls
        for payload, key, shared, destination in unsealed:
            if self._queued == self._count:
                refused += self.flush(self._descriptor)
            index = self._queued
            at = index * _STRIDE
            if not prefixed[index]:
                prefixed[index] = True
                datagrams[at : at + _NONCE_AT] = self._prefix
            bit = own_key > key
            nonce = drawn[bit].pop() if drawn[bit] else self._nonces.take(bit)
            datagrams[at + _NONCE_AT : at + HEADER_LENGTH] = nonce
            sizes[index] = HEADER_LENGTH + seal_box(index, payload, nonce, shared)
            at = index * mmsg.NAME_STRIDE
            names[at : at + mmsg.NAME_LENGTH] = destination
            if controls[index] != control:
                self._control(index, control)
            self._queued = index + 1
        return refused
