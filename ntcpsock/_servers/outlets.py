"""The ways out of a broker: its UDP sockets, the WebSocket of each node that came over TCP, and raw packets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from ntcpsock._servers import mmsg
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.datagrams import DatagramSocket, socket_address
from ntcpsock._servers.hot_path import Unsealed
from ntcpsock._servers.sealed_outbox import SealedOutbox
from ntcpsock._servers.sources import (
    WAYS,
    Connection,
    Datagram,
    Source,
    UdpSource,
    pack_source,
    unpack_source,
)
from ntcpsock._servers.spoofer import Spoofer
from ntcpsock._traversal.broker.short_keep_alive import SHORT_ACK_LENGTH, SHORT_KEEP_ALIVE_LENGTH

# Datagrams that leave one socket with one call.
_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class _Exit:
    """How datagrams leave by one way."""

    descriptor: int
    outbox: SealedOutbox
    control: bytes
    #: Answers to short keep-alives.
    acks: mmsg.EvenOutbox


class Outlets:
    """Sends each frame where it belongs, without waiting. What cannot leave is lost as a datagram is, and counted."""

    def __init__(self, own_key: bytes, spoofer: Spoofer | None) -> None:
        """own_key: the broker's."""
        self._own_key = own_key
        self._spoofer = spoofer
        #: Queues a frame for one connection; False where that has no room.
        self.connections: dict[Connection, Callable[[bytes], bool]] = {}
        #: Frames that did not leave, by reason.
        self.unsent: Counter[str] = Counter()
        self._outboxes: dict[DatagramSocket, SealedOutbox] = {}
        self._exits: dict[bytes, _Exit] = {}

    def answer(self, core: BrokerCore, frame: bytes, source: Source) -> None:
        """Give a frame to the core, and send what it answers."""
        self._send(core.receive(frame, source, trio.current_time()))
        self._flush()
        if self._spoofer is not None:
            self._spoofer.put(core.syn_acks)

    def answer_known(
        self, core: BrokerCore, frames: Sequence[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """The same for the frequent ones of many frames with their packed sources; the answers leave together. What is
        left is for `answer_others`.

        One step is made for all before the next: what it needs of program and memory is at hand then.
        """
        now = trio.current_time()
        others: list[tuple[bytes, bytes]] = []
        longer = self._answer_keep_alives(core, frames, others, now)
        answer_known = core.answer_known
        unsealed: list[Unsealed] = []
        for entry in longer:
            answers = answer_known(*entry, now)
            if answers is None:
                others.append(entry)
            else:
                unsealed += answers
        if unsealed:
            self._seal(core, unsealed)
            self._flush()
        core.sweep(now)
        return others

    def _seal(self, core: BrokerCore, unsealed: list[Unsealed]) -> None:
        """Queue the frames of these."""
        ways = {entry[3][:2] for entry in unsealed}
        for number in ways:
            some = unsealed if len(ways) == 1 else [entry for entry in unsealed if entry[3][:2] == number]
            way = self._exits.get(number) or self._exit_to(some[0][3])
            if way is not None:
                self._count(way.outbox.seal_all(some, way.control))
                continue
            for payload, key, shared, destination in some:
                self._send_elsewhere(core.sealer.seal_with(shared, key, payload), destination)

    def _answer_keep_alives(
        self,
        core: BrokerCore,
        frames: Sequence[tuple[bytes, bytes]],
        others: list[tuple[bytes, bytes]],
        now: float,
    ) -> Sequence[tuple[bytes, bytes]]:
        """The short ones; the rest is returned, but for those among them that go to `others`."""
        short = [entry for entry in frames if len(entry[0]) == SHORT_KEEP_ALIVE_LENGTH]
        if not short:
            return frames
        answers = core.answer_keep_alives(short, now)
        others += [entry for entry, answer in zip(short, answers, strict=True) if answer is None]
        answered = [(answer, entry[1]) for entry, answer in zip(short, answers, strict=True) if answer]
        if answered:
            acks, askers = zip(*answered, strict=True)
            self._acknowledge(acks, askers)
        return [entry for entry in frames if len(entry[0]) != SHORT_KEEP_ALIVE_LENGTH]

    def _acknowledge(self, acks: Sequence[bytes], askers: Sequence[bytes]) -> None:
        """Send each to the packed source that has asked."""
        ways = {asker[:2] for asker in askers}
        if len(ways) > 1:
            for number in ways:
                some = [pair for pair in zip(acks, askers, strict=True) if pair[1][:2] == number]
                self._acknowledge(*zip(*some, strict=True))
            return
        way = self._exits.get(askers[0][:2]) or self._exit_to(askers[0])
        if way is not None:
            self._count(way.acks.send_all(way.descriptor, acks, askers))
            return
        for ack, asker in zip(acks, askers, strict=True):
            self._send_elsewhere(ack, asker)

    def answer_others(self, core: BrokerCore, frames: Iterable[tuple[bytes, bytes]]) -> None:
        """All of these; a stranger's costs a Diffie-Hellman."""
        now = trio.current_time()
        for frame, origin in frames:
            self._send(core.receive(frame, unpack_source(origin), now))
        self._flush()
        if self._spoofer is not None:
            self._spoofer.put(core.syn_acks)

    def forget(self, sock: DatagramSocket, ways: Iterable[type[UdpSource]]) -> None:
        """The socket is about to be closed."""
        self._outboxes.pop(sock, None)
        for way in ways:
            WAYS.remove(way.number)
            self._exits.pop(way.packed_number, None)

    def send(self, frames: Iterable[Datagram]) -> None:
        """Put them on their way: what nobody has asked for just now."""
        self._send(frames)
        self._flush()

    def _send(self, frames: Iterable[Datagram]) -> None:
        for frame, destination in frames:
            if isinstance(destination, Connection):
                self._send_over(frame, destination)
            elif mmsg.AVAILABLE:
                self._queue(frame, pack_source(destination))
            else:
                # A node's address was given in by us with the way to it, whoever's datagram makes us send there.
                assert isinstance(destination, UdpSource)
                self._send_datagram(frame, destination)

    def _send_over(self, frame: bytes, connection: Connection) -> None:
        queue = self.connections.get(connection)
        if queue is None:
            self.unsent["connection is gone"] += 1
        elif not queue(frame):
            self.unsent["connection is full"] += 1

    def _send_datagram(self, frame: bytes, destination: UdpSource) -> None:
        out, own_address = destination.way
        try:
            out.send(frame, socket_address(destination, out.ipv6), own_address)
        except OSError as error:
            # A full buffer or no route: lost like any datagram, and asked for again.
            self.unsent[str(error.strerror)] += 1

    def _queue(self, frame: bytes, destination: bytes) -> None:
        """destination: packed."""
        way = self._exits.get(destination[:2]) or self._exit_to(destination)
        if way is None:
            self._send_elsewhere(frame, destination)
            return
        refused = way.outbox.queue(way.descriptor, frame, destination[2:], way.control)
        if refused:
            self._count(refused)

    def _send_elsewhere(self, frame: bytes, destination: bytes) -> None:
        """Where no UDP socket leads."""
        source = unpack_source(destination)
        if isinstance(source, Connection):
            self._send_over(frame, source)
        else:
            self.unsent["socket is gone"] += 1

    def _exit_to(self, destination: bytes) -> _Exit | None:
        """A new way out, if that is one over UDP, and there."""
        source = unpack_source(destination)
        if not isinstance(source, UdpSource):
            return None
        sock, own_address = source.way
        outbox = self._outboxes.get(sock)
        if outbox is None:
            outbox = self._outboxes[sock] = SealedOutbox(
                sock.fileno(), _TOGETHER, self._own_key, ipv6=sock.ipv6
            )
        control = mmsg.pack_control(own_address)
        acks = mmsg.EvenOutbox(_TOGETHER, SHORT_ACK_LENGTH, control, ipv6=sock.ipv6)
        new = self._exits[source.packed_number] = _Exit(sock.fileno(), outbox, control, acks)
        return new

    def _flush(self) -> None:
        for sock, outbox in self._outboxes.items():
            refused = outbox.flush(sock.fileno())
            if refused:
                self._count(refused)

    def _count(self, refused: list[int]) -> None:
        for number in refused:
            self.unsent[os.strerror(number)] += 1
