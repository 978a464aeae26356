"""The server's side until one client has finished the handshake.

Whoever can forge the peer's address may send a first packet before the client does. So each first packet
starts a machine of its own, a few at a time, and the machine whose client finishes the handshake is the one:
it takes who can read the answers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import trio

from ntcpsock._session.datagram_path import DatagramPath
from ntcpsock._session.quic.configuration import ServerIdentity, parse_initial
from ntcpsock._session.quic.machine import QuicMachine
from ntcpsock._session.tls import Certificate

# Handshakes under way at once; a further first packet takes the place of one that is older than this (seconds).
MOST_HANDSHAKES: Final = 8
REPLACEABLE_AFTER: Final = 2.0
_ID_LENGTH: Final = 8  # of our connection ids


class Acceptance:
    """Machines by the connection ids under which packets reach them. dropped: datagrams that were for none."""

    def __init__(
        self, identity: ServerIdentity, size: int, idle_timeout: float, round_trip: float, is_ipv6: bool
    ) -> None:
        self.machines: list[QuicMachine] = []
        self.dropped = 0
        self._identity = identity
        self._size = size
        self._idle_timeout = idle_timeout
        self._round_trip = round_trip
        self._is_ipv6 = is_ipv6
        self._by_id: dict[bytes, QuicMachine] = {}
        self._started: list[float] = []

    def receive(self, datagram: bytes, now: float) -> None:
        """Hand a datagram to its machine, or to a new one."""
        if not datagram:
            return
        if datagram[0] & 0x80:
            length = datagram[5] if len(datagram) > 5 else 0
            destination = datagram[6 : 6 + length]
        else:
            destination = datagram[1 : 1 + _ID_LENGTH]
        machine = self._by_id.get(destination) or self._start(datagram, now)
        if machine is None:
            self.dropped += 1
            return
        machine.receive(datagram, len(datagram), now)
        if machine.error is not None and not machine.handshake_done:
            self._end(self.machines.index(machine))

    def _start(self, datagram: bytes, now: float) -> QuicMachine | None:
        destination = parse_initial(datagram)
        if destination is None:
            return None
        if len(self.machines) >= MOST_HANDSHAKES:
            if now < self._started[0] + REPLACEABLE_AFTER:
                return None
            self._end(0)
        machine = QuicMachine.server(
            self._identity,
            destination,
            now,
            datagram_size=self._size,
            idle_timeout=self._idle_timeout,
            initial_rtt=self._round_trip,
            is_ipv6=self._is_ipv6,
        )
        self.machines.append(machine)
        self._started.append(now)
        self._by_id[destination] = self._by_id[machine.host_id] = machine
        return machine

    def _end(self, index: int) -> None:
        machine = self.machines.pop(index)
        del self._started[index]
        self._by_id = {key: value for key, value in self._by_id.items() if value is not machine}


_identity = lru_cache(maxsize=4)(ServerIdentity)


async def accept_client(
    path: DatagramPath, certificate: Certificate, idle_timeout: float, round_trip: float
) -> QuicMachine:
    """The machine of the first client on `path` that finishes the handshake. Raises OSError where the path breaks."""
    acceptance = Acceptance(
        _identity(certificate.certificate_pem, certificate.key_pem),
        path.max_datagram_size,
        idle_timeout,
        round_trip,
        path.remote.is_ipv6,
    )
    while True:
        now = trio.current_time()
        for datagram in path.try_receive():
            acceptance.receive(datagram, now)
        deadline = math.inf
        for machine in acceptance.machines:
            timer = machine.next_timer()
            if timer is not None and timer <= now:
                machine.handle_timer(now)
            if machine.handshake_done:
                return machine
            # What a full path does not take is lost, and sent again when its time comes.
            path.try_send(machine.datagrams_to_send(now, 16))
            timer = machine.next_timer()
            deadline = min(deadline, math.inf if timer is None else max(timer, now + 1e-6))
        with trio.move_on_at(deadline):
            await path.wait_readable()
