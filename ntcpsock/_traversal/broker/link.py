"""A client machine on its way to a broker under trio: the loop of every session."""

from __future__ import annotations

import math
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from ntcpsock._address import BrokerAddress, Endpoint, encode_node_id
from ntcpsock._errors import BrokerRefused, BrokerUnreachable, IdentityMismatch
from ntcpsock._traversal.broker.climb import Climb
from ntcpsock._traversal.broker.events import Connected, Event, KeyShown, Moved, Rejected, WrongKeyShown
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import Reason, Welcome
from ntcpsock._traversal.broker.refusal import session_refused
from ntcpsock._traversal.broker.side import Sides
from ntcpsock._traversal.broker.told import relay_at, with_hosts
from ntcpsock._traversal.broker.transport import Destination, Transport, UdpTransport
from ntcpsock._traversal.relay.tunnel import Tunnels

#: Seconds of silence after which another way to the broker is tried: over UDP, where it doubles from turn to turn,
#: and over TCP, where a connection has to be made first.
FALLBACK_DELAY = 0.4
CONNECTION_PATIENCE = 5.0

# Seconds for the broker's Welcome on the way that is tried beside the one in use, and for which the old one is read
# after it.
_MOVE_DEADLINE = 3.0
_MOVE_GRACE = 1.0

# Seconds between two ways over TCP where the first one fails at once, at least and at most: a broker that ends has
# many nodes, and the next one need not meet them all in the same instant.
_QUICK_PAUSE = 0.2, 1.0
# Seconds to ask again where the broker's name leads.
_RESOLVE_DEADLINE = 3.0
# Of all the places that were found in a session's life so many ways there are kept.
MAX_WAYS = 32

# Seconds for which a refusal by ICMP, or a hint at another key, must stand uncontradicted.
_GRACE = 0.75


class Link:
    """One machine and the ways to its broker, one of which is in use. `run` serves it; `flush` sends at once, from any
    task.

    transports: the first is the one to begin with; the others' turn comes where it stays silent. find: more of them,
    where the broker's name leads elsewhere by now; asked when none of the known ones answers.
    """

    def __init__(
        self,
        machine: ClientMachine,
        address: BrokerAddress,
        transports: Sequence[Transport],
        ca_file: Path | None = None,
        find: Callable[[], Awaitable[Sequence[Transport]]] | None = None,
    ) -> None:
        self._find = find
        self.machine = machine
        self.address = address
        self.tunnels = Tunnels()
        self._ca_file = ca_file
        self._climb = Climb()
        # The way that is tried, and which of ours it would replace.
        self._other: Transport | None = None
        self._replaced: Transport | None = None
        self._moved = trio.Event()
        self._transports = list(transports)
        self._transport = self._transports[0]
        self._running = trio.CancelScope()
        self._sides = Sides()
        self._wake = trio.Event()
        self._handle: Callable[[Event], None] = self._greeting_event
        self._greeted = trio.Event()
        self._suspicious = trio.Event()
        self._lost = trio.Event()
        self._found = trio.Event()
        self._failed = trio.Event()
        # Where the broker was to which further addresses were proved.
        self._proved_at: Destination | None = None
        self._error: Exception | None = None

    @property
    def broker_host(self) -> str:
        """Where the broker is reached: a numeric address, or a name for a proxy."""
        place = self._transport.destination
        return self._transport.host if place is None else str(place[1][0])

    @property
    def transport(self) -> str:
        """What is in use: "udp" or "tcp"."""
        return self._transport.name

    @property
    def broker_key(self) -> bytes:
        """The key that the broker has proved, once greeted."""
        key = self.machine.broker_key
        assert key is not None
        return key

    @property
    def welcome(self) -> Welcome:
        """The latest Welcome; STUN servers that share the broker's host have its address filled in, and are left out
        where it has none in their family that we know."""
        welcome = self.machine.welcome
        assert welcome is not None
        return with_hosts(welcome, self._places())

    @property
    def relays(self) -> tuple[Endpoint, ...]:
        """Those that the broker has told last, with its host and port filled in; the host may be a name, for a proxy
        or for TLS, which is spoken to those that are a TlsRelay."""
        host = self._transport.host
        return tuple(
            relay_at(place, host, self.address, self.tunnels, self._ca_file) for place in self.machine.relays
        )

    def _places(self) -> list[Destination]:
        """Where the broker is, the place in use first."""
        welcome = self.machine.welcome
        told = () if welcome is None else welcome.elsewhere
        # Through a proxy nothing of it can be reached, until UDP leads there.
        known = [] if self._transport.destination is None else [self._transport, *self._transports]
        in_use, *others = [way.destination for way in known] or [None]
        # What this broker says of itself comes before what the name stands for: that may be others of its cluster.
        places = [
            in_use,
            *((socket.AF_INET6 if place.is_ipv6 else socket.AF_INET, tuple(place)) for place in told),
            *others,
        ]
        return [place for place in places if place is not None]

    def prove_further_addresses(self) -> None:
        """Once greeted, and when the network has changed: have the broker see us in the other family too, and at other
        uplinks, where we have that."""
        if self.address.tls or self.machine.hidden:
            return  # where no UDP is spoken, and where nobody shall know
        self._proved_at = self._transport.destination
        count = self._sides.replace(self._places(), self._transport.destination)
        self.machine.prove(count, trio.current_time())

    def mismatch(self, key: bytes) -> IdentityMismatch:
        """What to raise where the broker shows `key` instead of the expected one."""
        expected = self.machine.broker_key
        known = "another key" if expected is None else encode_node_id(expected)
        return IdentityMismatch(
            f"the broker {self.address.host}:{self.address.port} shows key {encode_node_id(key)}, "
            f"expected is {known}"
        )

    def refusal(self, reason: Reason) -> BrokerRefused:
        """What to raise where the broker gives us no session."""
        where = f"{self.address.host}:{self.address.port}"
        return session_refused(where, reason, encode_node_id(self.machine.own_key))

    # Sending.

    def reopen(self) -> None:
        """The session is lost in silence: begin from whatever own address now leads to the broker, and after a while
        by another way."""
        if self.address.tls:
            self._use(self._transport)
            self._lost.set()
            return
        known = {way.destination[1][:2] for way in self._transports if way.name == "udp" and way.destination}
        told = {place[1][:2]: place for place in self._places() if place[1][:2] not in known}
        self._transports += [UdpTransport(place) for place in told.values()]
        self._use(self._transport)
        self._lost.set()

    def renew(self, *, moved: bool) -> bool:
        """The network has changed (moved), or a path has died: see at once whether the broker still answers us, from
        whatever own address leads to it now. Whether it is to see us elsewhere."""
        is_stale = self._transport.is_stale()
        if is_stale:
            self._transport.close()
        if self.machine.is_lazy:
            return is_stale
        if moved:
            self._climb.hurry()
            self.prove_further_addresses()
        if not self.machine.connected:
            # Whatever was tried in vain until now: begin again with the first way, and with its patience.
            self._use(self._preferred())
            self._lost.set()
            self._found.set()
        elif is_stale:
            self._running.cancel()
        self.machine.probe(trio.current_time())
        self.flush()
        return is_stale

    @property
    def place(self) -> tuple[object, int]:
        """What stays the same as long as the broker has a reason to see us in the same place."""
        return self._transport, self._transport.sockets

    def _preferred(self) -> Transport:
        return next((way for way in self._transports if way.name == "udp"), self._transport)

    def close(self) -> None:
        """Close what is open; `flush` would open it again."""
        self._sides.close()
        for transport in (*self._transports, *([self._other] if self._other else [])):
            transport.close()

    def flush(self) -> None:
        """Send what the machine has, without waiting, and have its timers looked at anew."""
        for datagram in self.machine.datagrams_to_send():
            try:
                self._transport.send(datagram)
            except OSError as error:
                self._suspect(error)
        for index, datagram in self.machine.proofs_to_send():
            self._sides.send(index, datagram, trio.current_time())
        for datagram in self.machine.moves_to_send():
            if self._other is not None:
                with suppress(OSError):
                    self._other.send(datagram)
        self._wake.set()

    # The tasks.

    async def greet(self) -> None:
        """Run until the broker has welcomed us. Raises OSError or IdentityMismatch; waits for ever else."""
        self.machine.start(trio.current_time())
        self.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run, self._greeting_event)
            nursery.start_soon(self._judge)
            await self._greeted.wait()
            nursery.cancel_scope.cancel()
        if not self.machine.connected:
            raise self._error or BrokerUnreachable("no answer")

    async def run(self, handle: Callable[[Event], None]) -> None:
        """Serve the machine until cancelled; `handle` gets its events."""
        self._handle = handle
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._change)
            nursery.start_soon(self._climb_back)
            nursery.start_soon(self._sides.run, self._take)

    async def _receive(self) -> None:
        while True:
            with trio.CancelScope() as self._running:
                await self._transport.run(self._take, self._suspect, self._renew)

    def _take(self, datagram: bytes) -> None:
        self.machine.receive_datagram(datagram, trio.current_time())
        self._turn()

    def _renew(self) -> None:
        """A new connection is another place to the broker: be found there at once, not at the next keep-alive."""
        self.machine.greet_again(trio.current_time())
        self._turn()

    async def _keep_time(self) -> None:
        while True:
            due = self.machine.next_timer()
            self._wake = trio.Event()
            with trio.CancelScope(deadline=math.inf if due is None else due):
                await self._wake.wait()
            self.machine.handle_timer(trio.current_time())
            self._turn()

    async def _change(self) -> None:
        """After a silence: one transport after the other, until the broker answers on one."""
        while True:
            await self._lost.wait()
            self._lost = trio.Event()
            datagram_patience, tries = FALLBACK_DELAY, 0
            while not (self.machine.connected or self.machine.closed or self._lost.is_set()):
                self._found = trio.Event()
                is_udp = self._transport.name == "udp"
                if await self._is_found_within(datagram_patience if is_udp else CONNECTION_PATIENCE, is_udp):
                    break
                tries += 1
                if tries % len(self._transports) == 0:
                    await self._look_elsewhere()
                    # The path may be long, and no TCP lead out.
                    datagram_patience = min(2 * datagram_patience, CONNECTION_PATIENCE)
                if len(self._transports) > 1:
                    self._switch()

    async def _is_found_within(self, patience: float, is_udp: bool) -> bool:
        """Whether the broker answers on the way in use; over TCP, no longer than that is refused."""
        self._failed = trio.Event()
        with trio.move_on_after(patience):
            if is_udp:
                await self._found.wait()
                return True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until, self._found, nursery.cancel_scope)
                nursery.start_soon(self._until, self._failed, nursery.cancel_scope)
            if not self._found.is_set():
                with trio.move_on_after(random.uniform(*_QUICK_PAUSE)):
                    await self._found.wait()
        return self._found.is_set()

    async def _until(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def _look_elsewhere(self) -> None:
        """None of the ways has led there: the broker's name may stand for another address by now."""
        if self._find is None or self._found.is_set():
            return
        with trio.move_on_after(_RESOLVE_DEADLINE):
            known = {(way.name, way.destination) for way in self._transports}
            for way in await self._find():
                if (way.name, way.destination) not in known and len(self._transports) < MAX_WAYS:
                    self._transports.append(way)

    async def _climb_back(self) -> None:
        """While the session goes over TCP: look now and then whether the broker answers over UDP, and move there."""
        while True:
            await self._climb.wait()
            over_udp = [way for way in self._transports if way.name == "udp"]
            if self._transport.name == "udp" or not over_udp or not self.machine.connected:
                self._climb.rest()
                continue
            for way in over_udp:
                if await self._try(way):
                    self._climb.succeeded(trio.current_time())
                    break
            else:
                self._climb.failed()

    async def _try(self, old: Transport) -> bool:
        """Whether the session has moved to where `old` leads: over a new socket, which replaces it then."""
        assert old.destination is not None
        before, way = self._transport, UdpTransport(old.destination)
        self._other, self._replaced, self._moved = way, old, trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.run, self._take, _ignore, _nothing)
            self.machine.try_way(trio.current_time())
            self.flush()
            with trio.move_on_after(_MOVE_DEADLINE):
                await self._moved.wait()
            if self._moved.is_set() and self._transport is way:
                # What was under way to the old place when the broker moved us is still read there.
                with trio.move_on_after(_MOVE_GRACE):
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        self._other = None
        if self._transport is way and self._moved.is_set():
            before.close()
            self._running.cancel()
            return True
        if not self._moved.is_set():
            way.close()
            self.machine.leave_way(trio.current_time())
            self._turn()
        return False

    def _switch(self) -> None:
        index = self._transports.index(self._transport)
        self._climb.fell(trio.current_time())
        self._use(self._transports[(index + 1) % len(self._transports)])
        self._renew()

    def _use(self, transport: Transport) -> None:
        self._transport.close()
        self._transport = transport
        self._running.cancel()

    def _turn(self) -> None:
        for event in self.machine.events():
            if isinstance(event, Connected):
                self._found.set()
                if self._proved_at is not None and self._proved_at != self._transport.destination:
                    # The session may be with another broker of a cluster now.
                    self.prove_further_addresses()
                if self._transport.name != "udp":
                    self._climb.begin()
            elif isinstance(event, Moved) and self._other is not None:
                # From here on our own frames leave there.
                assert self._replaced is not None
                self._transports[self._transports.index(self._replaced)] = self._transport = self._other
                self._moved.set()
            self._handle(event)
        self.flush()

    # While greeting.

    def _greeting_event(self, event: Event) -> None:
        match event:
            case KeyShown(key):
                # Pinned when the broker has proved that it has the key, not when it says so.
                self.machine.accept_key(key, trio.current_time())
            case WrongKeyShown(key):
                self._error = self.mismatch(key)
                self._suspicious.set()
            case Rejected(reason):
                self._error = self.refusal(reason)
                self._greeted.set()
            case Connected():
                self._greeted.set()

    def _suspect(self, error: OSError) -> None:
        self._failed.set()
        self.machine.doubt(trio.current_time())
        self._wake.set()
        if not isinstance(self._error, IdentityMismatch):
            self._error = error
        self._suspicious.set()

    async def _judge(self) -> None:
        """A stranger's ICMP or KeyReply must not outrun the broker's own answer: give that a while."""
        await self._suspicious.wait()
        await trio.sleep(_GRACE)
        self._greeted.set()


def _ignore(error: OSError) -> None:
    """What ICMP says of a way that is only tried."""


def _nothing() -> None:
    """A way that is only tried has no session to renew."""
