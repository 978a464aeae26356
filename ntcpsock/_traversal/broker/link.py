"""A client machine on a UDP socket under trio: the loop of every session with a broker."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ntcpsock._address import BrokerAddress, Endpoint, encode_node_id
from ntcpsock._errors import BrokerUnreachable, IdentityMismatch
from ntcpsock._traversal.broker.events import Connected, Event, KeyShown, WrongKeyShown
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import MAX_DATAGRAM, Welcome
from ntcpsock._traversal.broker.side import SidePath
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.interfaces import further_uplinks, prefer_lasting_source

#: Address family and socket address, as `getaddrinfo` gives them.
Destination = tuple[int, tuple[Any, ...]]

# Seconds for which a refusal by ICMP, or a hint at another key, must stand uncontradicted.
_GRACE = 0.75

# Seconds for which a lost broker is greeted at one of its addresses, before it is the next one's turn.
_PATIENCE = 5.0


class Link:
    """One machine and the socket under it. `run` serves both; `flush` sends at once, from any task.

    others: further destinations of the same broker.
    """

    def __init__(
        self,
        machine: ClientMachine,
        address: BrokerAddress,
        destination: Destination,
        others: Sequence[Destination] = (),
    ) -> None:
        self.machine = machine
        self.address = address
        self._family, self._destination = destination
        self._others = others
        self._sides: list[SidePath] = []
        self._moved = 0.0
        self._socket: trio.socket.SocketType | None = None
        self._raw: socket.socket | None = None
        self._opened = trio.Event()
        self._wake = trio.Event()
        self._handle: Callable[[Event], None] = self._greeting_event
        self._greeted = trio.Event()
        self._suspicious = trio.Event()
        self._error: Exception | None = None

    @property
    def broker_host(self) -> str:
        """The numeric address at which the broker is reached."""
        return str(self._destination[0])

    @property
    def broker_key(self) -> bytes:
        """The key that the broker has proved, once greeted."""
        key = self.machine.broker_key
        assert key is not None
        return key

    @property
    def welcome(self) -> Welcome:
        """The latest Welcome; STUN servers that share the broker's host have its address filled in, and are left out
        where it has none in their family."""
        welcome = self.machine.welcome
        assert welcome is not None
        stun = []
        for server in welcome.stun:
            host: str | None = server.host
            if ipaddress.ip_address(server.host).is_unspecified:
                family = socket.AF_INET6 if server.is_ipv6 else socket.AF_INET
                host = next((str(address[0]) for known, address in self._places() if known == family), None)
            if host is not None:
                stun.append(Endpoint(host, server.port))
        return Welcome(welcome.session, welcome.observed, tuple(stun), welcome.elsewhere, welcome.spoofs)

    def _places(self) -> list[Destination]:
        """Where the broker is, the place in use first."""
        welcome = self.machine.welcome
        told = () if welcome is None else welcome.elsewhere
        return [
            (self._family, self._destination),
            *self._others,
            *((socket.AF_INET6 if place.is_ipv6 else socket.AF_INET, tuple(place)) for place in told),
        ]

    def prove_further_addresses(self) -> None:
        """Once greeted: have the broker see us in the other family too, and at other uplinks, where we have that."""
        firsts: dict[int, Destination] = {}
        for place in self._places():
            firsts.setdefault(place[0], place)
        self._sides = [SidePath(*place) for family, place in firsts.items() if family != self._family]
        for source in further_uplinks():
            own = firsts.get(socket.AF_INET6 if ":" in source else socket.AF_INET)
            if own is not None and not is_loopback(str(own[1][0])):
                self._sides.append(SidePath(*own, source))
        self.machine.prove(len(self._sides), trio.current_time())

    def mismatch(self, key: bytes) -> IdentityMismatch:
        """What to raise where the broker shows `key` instead of the expected one."""
        expected = self.machine.broker_key
        known = "another key" if expected is None else encode_node_id(expected)
        return IdentityMismatch(
            f"the broker {self.address.host}:{self.address.port} shows key {encode_node_id(key)}, "
            f"expected is {known}"
        )

    # The socket.

    def move_on(self) -> None:
        """A new socket, towards the broker's next address where it has several: this one led nowhere."""
        here = self._family, self._destination
        others = [place for place in dict.fromkeys(self._places()) if place != here]
        if others:
            self._others = [*others[1:], here]
            self._family, self._destination = others[0]
        self._moved = trio.current_time()
        self.reopen()

    def reopen(self) -> None:
        """A new socket, from whatever own address now leads to the broker; none while nothing does."""
        self.close()
        try:
            raw = socket.socket(self._family, socket.SOCK_DGRAM)
        except OSError as error:  # a system without IPv6
            self._error = error
            return
        try:
            raw.setblocking(False)
            if self._family == socket.AF_INET6:
                prefer_lasting_source(raw)
            # Connected: the kernel drops what others send, and tells us of ICMP errors.
            raw.connect(self._destination)
        except OSError as error:
            raw.close()
            self._error = error
            return
        self._raw = raw
        self._socket = trio.socket.from_stdlib_socket(raw)
        self._opened.set()

    def close(self) -> None:
        """Close the sockets; `flush` would open others."""
        for side in self._sides:
            side.close()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._raw = None
        self._opened = trio.Event()

    def flush(self) -> None:
        """Send what the machine has, without waiting, and have its timers looked at anew."""
        for datagram in self.machine.datagrams_to_send():
            if self._raw is None:
                self.reopen()
            if self._raw is None:
                continue
            try:
                # Not through trio: `introduce` is on the critical path of every connect, and a UDP
                # socket's buffer has room. Where it has not, the datagram is lost like any other.
                self._raw.send(datagram)
            except OSError as error:
                self._suspect(error)
        for index, datagram in self.machine.proofs_to_send():
            self._sides[index].send(datagram, trio.current_time())
        self._wake.set()

    # The tasks.

    async def greet(self) -> None:
        """Run until the broker has welcomed us. Raises OSError or IdentityMismatch; waits for ever else."""
        self.machine.start(trio.current_time())
        self.flush()
        if self._raw is None and self._error is not None:
            raise self._error
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
            for side in self._sides:
                nursery.start_soon(side.run, self._take)

    async def _receive(self) -> None:
        while True:
            if self._socket is None:
                await self._opened.wait()
                continue
            try:
                datagram = await self._socket.recv(MAX_DATAGRAM + 1)
            except trio.ClosedResourceError:
                # `reopen` took it away.
                continue
            except OSError as error:
                self._suspect(error)
                continue
            self._take(datagram)

    def _take(self, datagram: bytes) -> None:
        self.machine.receive_datagram(datagram, trio.current_time())
        self._turn()

    async def _keep_time(self) -> None:
        while True:
            due = self.machine.next_timer()
            self._wake = trio.Event()
            with trio.CancelScope(deadline=math.inf if due is None else due):
                await self._wake.wait()
            self.machine.handle_timer(trio.current_time())
            self._turn()
            lost = self._greeted.is_set() and not self.machine.connected
            if lost and trio.current_time() - self._moved > _PATIENCE:
                self.move_on()

    def _turn(self) -> None:
        for event in self.machine.events():
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
            case Connected():
                self._greeted.set()

    def _suspect(self, error: OSError) -> None:
        if not isinstance(self._error, IdentityMismatch):
            self._error = error
        self._suspicious.set()

    async def _judge(self) -> None:
        """A stranger's ICMP or KeyReply must not outrun the broker's own answer: give that a while."""
        await self._suspicious.wait()
        await trio.sleep(_GRACE)
        self._greeted.set()
