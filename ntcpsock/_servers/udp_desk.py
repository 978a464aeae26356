"""The broker's datagrams: in by one UDP socket, through the core, out by whichever socket the receiver is known at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, NoReturn

import trio

from ntcpsock._servers import mmsg
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.datagrams import Ancillary, DatagramSocket, turn_round
from ntcpsock._servers.outlets import Outlets
from ntcpsock._servers.sources import UdpSource, sources_by
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM

_logger = logging.getLogger("ntcpsock.broker")

# Read with one call, and so many calls in a row before other tasks get their turn.
_BATCH: Final = 128
_BATCHES: Final = 4
# Longer datagrams arrive cut to one more than the longest, and are dropped.
_SIZE: Final = MAX_DATAGRAM + 8
# Our addresses times interfaces; beyond that somebody adds and removes them, and no more are told apart.
_MOST_WAYS: Final = 1024


class UdpDesk:
    """One socket of a broker."""

    def __init__(self, sock: DatagramSocket, core: BrokerCore, outlets: Outlets) -> None:
        self._sock = sock
        self._core = core
        self._outlets = outlets
        #: By ancillary data in the kernel's form.
        self._ways: dict[bytes, type[UdpSource]] = {}

    async def serve(self) -> NoReturn:
        """Until cancelled."""
        try:
            if mmsg.AVAILABLE:
                await self._serve_batches()
            await self._serve_single()
        finally:
            self._outlets.forget(self._sock, self._ways.values())

    async def _serve_batches(self) -> NoReturn:
        batch = mmsg.Batch(_BATCH, _SIZE, ipv6=self._sock.ipv6, control=self._sock.is_wildcard)
        if not self._sock.is_wildcard:
            number = self._way_of(b"", []).packed_number
            for index in range(_BATCH):
                batch.set_way(index, number)
        moderation = mmsg.Moderation()
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            began = trio.current_time()
            for _ in range(_BATCHES):
                count = batch.receive(self._sock.fileno())
                if count:
                    self._outlets.answer_all(self._core, self._frames(batch, count))
                if count < _BATCH:
                    break
            if pause := moderation.pause(began, trio.current_time(), full=count == _BATCH):
                await trio.sleep(pause)

    def _frames(self, batch: mmsg.Batch, count: int) -> Iterator[tuple[bytes, bytes]]:
        datagrams = batch.octets
        for index, length in enumerate(batch.lengths[:count].tolist()):
            if self._sock.is_wildcard:
                control = batch.control(index)
                way = self._ways.get(control)
                if way is None:
                    asked = [turn_round(*entry) for entry in mmsg.unpack_control(control)]
                    way = self._way_of(control, asked)
                batch.set_way(index, way.packed_number)
            at = index * _SIZE
            yield datagrams[at : at + length], batch.origin(index)

    async def _serve_single(self) -> NoReturn:
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            for _ in range(_BATCH):
                try:
                    datagram, source, asked = self._sock.receive(_SIZE)
                except BlockingIOError:
                    break
                except OSError as error:
                    # What the network says of an earlier datagram of ours (WSAECONNRESET) concerns nobody here.
                    _logger.debug("recvfrom: %s", error)
                    break
                way = self._ways.get(mmsg.pack_control(asked)) or self._way_of(
                    mmsg.pack_control(asked), asked
                )
                self._outlets.answer(self._core, datagram, way(*source))

    def _way_of(self, control: bytes, asked: Ancillary) -> type[UdpSource]:
        """A new one, unless there are too many; then the last."""
        if len(self._ways) >= _MOST_WAYS:
            return next(reversed(self._ways.values()))
        way = self._ways[control] = sources_by((self._sock, asked))
        return way
