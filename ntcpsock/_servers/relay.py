"""`GET /relay`: two nodes that present the tickets of one session get joined, and the kernel moves their bytes (this
process does, where either came over TLS).

What the relay sees is ciphertext. What it bounds: who may enter (tickets of a broker that shares its secret, each
good once), how long the first waits for the second, how many connections a node has here, how much it moves, and how
long a silent connection stays.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn

import trio

from ntcpsock._address import site_of
from ntcpsock._errors import BadMessage
from ntcpsock._servers.bans import BanList, Network
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.relay_seats import Allowance, Place
from ntcpsock._servers.splice import End, Forwarder, Meter
from ntcpsock._servers.tls_stream import KernelSocket
from ntcpsock._servers.visitor import Visitor
from ntcpsock._traversal.relay.message import (
    LIFETIME,
    TICKET_HEADER,
    UPGRADE,
    Seat,
    Ticket,
    from_header_untrusted,
    verify_untrusted,
)

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, at once
# The kernel asks a silent end after a minute whether it is still there (RFC 9293 section 3.8.4).
_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}
_SWEEP_INTERVAL: Final = 10.0
# Of refusals that no later try with the same ticket can change.
_STATUS: Final = {
    "banned": 403,
    "ticket was used": 409,
    "the other side has left": 410,
    "the relay is about to end": 503,
}


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """sessions: joined or waiting, in all and of one node; used_tickets: how many are remembered; entry_rate,
    entry_burst: tickets that are taken of one address, per second and at once, so that nobody fills that memory.

    bytes_per_second: of one node, all its connections and both directions; None: no limit. The same two of one address,
    or IPv6 /64. Seconds:
    pairing_deadline for the second side, idle_timeout without a byte in either direction.
    """

    sessions: int = 4096
    sessions_of_a_node: int = 256
    used_tickets: int = 100_000
    entry_rate: float = 200.0
    entry_burst: float = 5000.0
    bytes_per_second: float | None = None
    sessions_of_an_address: int | None = None
    bytes_per_second_of_an_address: float | None = None
    pairing_deadline: float = 15.0
    idle_timeout: float = 7200.0


@dataclass(slots=True)
class RelayCounters:
    """What the relay has done since it started."""

    refused: Counter[str] = field(default_factory=Counter)  # by reason
    joined: int = 0
    unmatched: int = 0  # the other side never came
    resets: int = 0
    idle: int = 0
    bytes: int = 0
    open: int = 0  # nodes' connections, joined or waiting


class RelayDesk:
    """The relayed connections of one server; `sweep` runs as its task."""

    def __init__(
        self,
        secret: bytes | None,
        limits: RelayLimits | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        forwarder: Forwarder | None = None,
    ) -> None:
        self.counters = RelayCounters()
        #: What tickets are checked with: a relay may work for several brokers.
        self.secrets = set() if secret is None else {secret}
        self.limits = limits or RelayLimits()
        #: Who gets no seat.
        self.bans = BanList()
        self._wall_clock = wall_clock
        self._forwarder = forwarder or Forwarder()
        self._entries = RateLimit(self.limits.entry_rate, self.limits.entry_burst)
        self._used: OrderedDict[tuple[bytes, Seat], float] = OrderedDict()
        self._waiting: dict[bytes, Place] = {}
        self._of_node: Counter[bytes] = Counter()
        self._of_site: Counter[str] = Counter()
        self._places: set[Place] = set()
        self._allowances: dict[bytes | str, Allowance] = {}
        self._last_bytes: dict[trio.CancelScope, float] = {}
        self._is_draining = False
        #: Set when no seats are given any more.
        self.draining = trio.Event()
        self._changed = trio.Event()

    async def serve(self, visitor: Visitor) -> None:
        """One side's connection, until it ends."""
        try:
            ticket = self._verify_untrusted(from_header_untrusted(visitor.header(TICKET_HEADER) or b""))
        except BadMessage as error:
            await self._refuse(visitor, 403, error.args[0])
            return
        if (visitor.header("upgrade") or b"").lower() != UPGRADE.encode():
            await self._refuse(visitor, 426, f"upgrade to {UPGRADE} is expected")
            return
        reason = self._why_not(ticket, visitor.source.host)
        if reason is not None:
            await self._refuse(visitor, _STATUS.get(reason, 429), reason)
            return
        if visitor.rest:
            await self._refuse(visitor, 400, "bytes before the answer")
            return
        visitor.proved()
        place = Place(visitor, ticket)
        with self._counted(place):
            await self._seat(place)

    def _verify_untrusted(self, data: bytes) -> Ticket:
        """Raises BadMessage."""
        failure = BadMessage("ticket of another issuer")
        for secret in self.secrets:
            try:
                return verify_untrusted(secret, data, self._wall_clock())
            except BadMessage as error:
                failure = error if error.args[0] != "ticket of another issuer" else failure
        raise failure

    def configure(self, limits: RelayLimits) -> None:
        """From now on, and for new connections."""
        self.limits = limits
        self._allowances.clear()

    @property
    def load(self) -> int | None:
        """How full it is, in percent; None: it gives no seats any more."""
        return None if self._is_draining else min(100, 100 * self.counters.open // (2 * self.limits.sessions))

    def get_load(self) -> int | None:
        """`load`, for whoever asks again and again."""
        return self.load

    def end_banned(self) -> int:
        """Reset what belongs to those who are banned; how many connections that were."""
        banned = [place for place in self._places if self._is_banned(place.ticket, place.visitor.source.host)]
        for place in banned:
            place.end()
        return len(banned)

    def end_in(self, network: Network) -> int:
        """Reset the connections from an address or a network; how many those were."""
        places = [place for place in self._places if _is_in(place.visitor.source.host, network)]
        for place in places:
            place.end()
        return len(places)

    def end_of(self, tag: bytes) -> int:
        """Reset the connections of a node, by the tag of its tickets."""
        places = [place for place in self._places if place.ticket.node == tag]
        for place in places:
            place.end()
        return len(places)

    def _is_banned(self, ticket: Ticket, host: str) -> bool:
        return self.bans.has_tag(ticket.node) or (self.bans.has_networks and self.bans.has_host(host))

    @property
    def pairs(self) -> int:
        """How many are joined now."""
        return len(self._last_bytes)

    async def drain(self) -> None:
        """Give no seats any more but those whose other side waits; return when nobody is here."""
        self._is_draining = True
        self.draining.set()
        while self.counters.open:
            self._changed = trio.Event()
            await self._changed.wait()

    async def sweep(self) -> NoReturn:
        """End what has been silent for too long; forget tickets whose time is over."""
        while True:
            await trio.sleep(min(_SWEEP_INTERVAL, self.limits.idle_timeout / 2))
            now = trio.current_time()
            for scope, then in list(self._last_bytes.items()):
                if now - then > self.limits.idle_timeout:
                    self.counters.idle += 1
                    scope.cancel()
            self._forget_used()

    def close(self) -> None:
        """After the last connection has ended."""
        self._forwarder.close()

    async def _refuse(self, visitor: Visitor, status: int, reason: str) -> None:
        self.counters.refused[reason] += 1
        await visitor.answer(status, reason + "\n")

    def _why_not(self, ticket: Ticket, host: str) -> str | None:
        """Why a good ticket does not get in, or None; from now on it is used."""
        if self._is_banned(ticket, host):
            return "banned"
        if (ticket.session, ticket.seat) in self._used:
            return "ticket was used"
        if self._is_draining and ticket.session not in self._waiting:
            return "the relay is about to end"
        if (ticket.session, Seat(1 - ticket.seat)) in self._used and ticket.session not in self._waiting:
            return "the other side has left"
        if self._of_node[ticket.node] >= self.limits.sessions_of_a_node:
            return "too many connections of this node"
        most = self.limits.sessions_of_an_address
        if most is not None and self._of_site[site_of(host.partition("%")[0])] >= most:
            return "too many connections of this address"
        if self.counters.open >= 2 * self.limits.sessions:
            return "the relay is full"
        if not self._entries.take(host.partition("%")[0], trio.current_time()):
            return "too many tickets of this address lately"
        self._forget_used()
        if len(self._used) >= self.limits.used_tickets:
            return "too many tickets lately"
        # What is left of its time runs by a clock that never jumps: else a wall clock that is set back would have
        # these fill the table.
        left = min(ticket.expires - self._wall_clock(), LIFETIME)
        self._used[ticket.session, ticket.seat] = trio.current_time() + left
        return None

    def _forget_used(self) -> None:
        now = trio.current_time()
        # Tickets come about in the order in which they expire; one that does not is forgotten a little late.
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)

    @contextmanager
    def _counted(self, place: Place) -> Iterator[None]:
        node, site = place.ticket.node, place.site
        self.counters.open += 1
        self._of_node[node] += 1
        self._of_site[site] += 1
        self._places.add(place)
        try:
            yield
        finally:
            self._places.discard(place)
            self.counters.open -= 1
            self._changed.set()
            self._of_node[node] -= 1
            if not self._of_node[node]:
                del self._of_node[node]
                self._allowances.pop(node, None)
            self._of_site[site] -= 1
            if not self._of_site[site]:
                del self._of_site[site]
                self._allowances.pop(site, None)

    async def _seat(self, place: Place) -> None:
        visitor, session = place.visitor, place.ticket.session
        other = self._waiting.pop(session, None)
        if other is None:
            self._waiting[session] = place
            visitor.scope.deadline = trio.current_time() + self.limits.pairing_deadline
            try:
                await visitor.switch(UPGRADE)
                await place.wait()
            finally:
                if not place.released.is_set():
                    place.has_left = True
                    place.released.set()
                if self._waiting.get(session) is place:
                    del self._waiting[session]
                    self.counters.unmatched += 1
        else:
            for side in (place, other):
                # Both end with this task.
                side.visitor.scope.deadline = math.inf
            other.joined.set()
            try:
                await visitor.switch(UPGRADE)
                await other.released.wait()
                if other.has_left:
                    self.counters.unmatched += 1
                else:
                    await self._join(other, place)
            finally:
                other.done.set()

    async def _join(self, first: Place, second: Place) -> None:
        self.counters.joined += 1
        ends = [_end(place.visitor) for place in (first, second)]
        for end in ends:
            _keep_alive(end.socket)
        is_broken = False

        async def forward(source: End, sink: End) -> None:
            nonlocal is_broken
            try:
                await self._forwarder.forward(source, sink, meter)
            except (OSError, trio.BrokenResourceError):
                is_broken = True
                scope.cancel()

        with trio.CancelScope() as scope:
            first.scope = second.scope = scope
            meter = self._meter(scope, first, second)
            self._last_bytes[scope] = trio.current_time()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(forward, ends[0], ends[1])
                    nursery.start_soon(forward, ends[1], ends[0])
            finally:
                del self._last_bytes[scope]
        if scope.cancelled_caught:
            self.counters.resets += is_broken
            for end in ends:
                with suppress(OSError):
                    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _meter(self, scope: trio.CancelScope, first: Place, second: Place) -> Meter:
        rates: dict[bytes | str, float | None] = {}
        for place in (first, second):
            rates[place.ticket.node] = self.limits.bytes_per_second
            rates[place.site] = self.limits.bytes_per_second_of_an_address
        allowances = [
            self._allowances.setdefault(who, Allowance(rate))
            for who, rate in rates.items()
            if rate is not None
        ]

        async def meter(count: int) -> None:
            self.counters.bytes += count
            self._last_bytes[scope] = trio.current_time()
            for allowance in allowances:
                await allowance.spend(count)

        return meter


def _is_in(host: str, network: Network) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    return address.version == network.version and address in network


def _end(visitor: Visitor) -> End:
    return End(visitor.stream, visitor.socket, visitor.is_tls)


def _keep_alive(sock: KernelSocket) -> None:
    with suppress(OSError):  # gone already: the first read tells
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
