"""The broker's datagrams: in by one UDP socket, through the core, out by whichever socket the receiver is known at."""

from __future__ import annotations

import logging
from typing import Final, NoReturn

import trio

from ntcpsock._servers import mmsg
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.crowds import Crowds
from ntcpsock._servers.datagrams import Ancillary, DatagramSocket, turn_round
from ntcpsock._servers.outlets import Outlets
from ntcpsock._servers.socket_filter import Unread
from ntcpsock._servers.sources import UdpSource, sources_by
from ntcpsock._servers.waiting_room import WaitingRoom
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM

_logger = logging.getLogger("ntcpsock.broker")

# Read with one call, before other tasks get their turn.
_BATCH: Final = 256
# Strangers, and whoever asks for something unusual, wait in a queue of their own, so that nodes do not wait for their
# Diffie-Hellmans: so many are answered between two batches, some half a millisecond.
_OTHERS_AT_ONCE: Final = 16
_MOST_OTHERS: Final = 4096
# Seconds in which datagrams gather under load.
_PAUSE: Final = 0.002
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
        self._others = WaitingRoom(core.sealer.knows, most=_MOST_OTHERS, at_once=_OTHERS_AT_ONCE)
        self._crowds = Crowds[bytes](core.limits.datagram_rate)
        self._was_full = False

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
        moderation = mmsg.Moderation(pause=_PAUSE)
        unread = Unread(self._sock)
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            # Under load the next batch is there after a pause, and nobody need be asked whether it is.
            while True:
                if lost := unread.new():
                    # By the first octets, or because the buffer was full.
                    self._core.dropped["unread"] += lost
                began = trio.current_time()
                count = self._read(batch, began)
                self._answer_some_others()
                is_behind = count == _BATCH or bool(self._others)
                pause = moderation.pause(began, trio.current_time(), full=is_behind)
                if not (is_behind or (count and pause)):
                    break
                await trio.sleep(pause)

    def _read(self, batch: mmsg.Batch, now: float) -> int:
        """Answer what is frequent of what is there, and put the rest aside; of how many datagrams it was."""
        count = batch.receive(self._sock.fileno())
        if not count:
            return 0
        # One full batch may be a node that asks for much at once; after another one we are behind.
        was_full, self._was_full = self._was_full, count == _BATCH
        is_behind = was_full and self._was_full
        if self._sock.is_wildcard:
            self._set_ways(batch, count)
        frames = batch.received(count)
        if is_behind:
            frames = self._fair(frames, now)
        self._put_aside(self._outlets.answer_known(self._core, frames))
        return count

    def _put_aside(self, others: list[tuple[bytes, bytes]]) -> None:
        if lost := self._others.put(others):
            self._core.dropped["too many strangers"] += lost

    def _answer_some_others(self) -> None:
        if self._others:
            self._outlets.answer_others(self._core, self._others.take())

    def _set_ways(self, batch: mmsg.Batch, count: int) -> None:
        """By which of our addresses each datagram came."""
        for index in range(count):
            control = batch.control(index)
            way = self._ways.get(control)
            if way is None:
                asked = [turn_round(*entry) for entry in mmsg.unpack_control(control)]
                way = self._way_of(control, asked)
            batch.set_way(index, way.packed_number)

    def _fair(self, frames: list[tuple[bytes, bytes]], now: float) -> list[tuple[bytes, bytes]]:
        """Without those of sources that send too much. What nodes send in session is never that much; what NATs let
        out, neither, since each node behind one has a port of its own."""
        crowd = self._crowds.excessive([origin for _, origin in frames], now)
        if not crowd:
            return frames
        kept = [entry for entry in frames if entry[1] not in crowd]
        self._core.dropped["too many datagrams"] += len(frames) - len(kept)
        return kept

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
