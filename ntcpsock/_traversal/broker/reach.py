"""Reaching a broker for the first time: its addresses over UDP, and soon after over TCP, in one race."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path

import trio

from ntcpsock._address import BrokerAddress
from ntcpsock._errors import BrokerRefused, BrokerUnreachable, NTCPError
from ntcpsock._identity import Identity
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.fields import MAX_TTL, MIN_TTL
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.link import FALLBACK_DELAY, Link
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.transport import Destination, Transport, UdpTransport, WebSocketTransport
from ntcpsock._traversal.http.proxy import find_proxy
from ntcpsock._traversal.http.tls import client_context

# Another address of the broker is tried beside the first after this pause (RFC 8305 section 5).
_STAGGER = 0.25


async def reach(
    address: BrokerAddress,
    identity: Identity,
    pins: Pins,
    keep_alive_interval: float,
    timeout: float,
    *,
    ca_file: Path | None = None,
    hidden: bool = False,
    token: str | None = None,
) -> Link:
    """The link by which the broker answers first.

    Each next address starts a little later, or when one fails; TCP starts when nothing has answered over UDP for
    `FALLBACK_DELAY` seconds, or when the name cannot be resolved here and a proxy may do it. A `wss` address is met in
    TLS only. Several hosts, and several addresses of one, are the brokers of a cluster. Raises BrokerUnreachable,
    BrokerRefused, IdentityMismatch, ConfigurationError for an unusable `ca_file`.
    """
    race = _Race(address, identity, pins, keep_alive_interval, ca_file, hidden, token)
    if address.tls:
        race.context = await trio.to_thread.run_sync(client_context, ca_file)
    try:
        with trio.move_on_after(timeout):
            await race.run()
    except BaseException:
        # Cancelled while the race ended: nobody gets the link any more.
        if race.winner is not None:
            _leave(race.winner)
        raise
    if race.winner is not None:
        return race.winner
    for error in race.errors:
        if isinstance(error, NTCPError) and not isinstance(error, BrokerUnreachable):
            raise error
    text = f"no answer from the broker {address.host}:{address.port}"
    if race.errors:
        raise BrokerUnreachable(f"{text}: {race.errors[0]}") from ExceptionGroup("broker", race.errors)
    raise BrokerUnreachable(f"{text} within {timeout:g} s")


class _Race:
    def __init__(
        self,
        address: BrokerAddress,
        identity: Identity,
        pins: Pins,
        keep_alive_interval: float,
        ca_file: Path | None,
        hidden: bool,
        token: str | None,
    ) -> None:
        self._address = address
        self._identity = identity
        self._pins = pins
        self._key = address.key or pins.get("brokers", _pin_name(address))
        self._keep_alive_interval = keep_alive_interval
        self._ca_file = ca_file
        self._hidden = hidden
        self._token = token
        self.context: ssl.SSLContext | None = None
        self._proxy = find_proxy(address.hosts[0])
        self._resolved: list[Destination] = []
        # Whose address each is: a certificate is made out to a name.
        self._names: dict[Destination, str] = {}
        self._resolution_ended = trio.Event()
        self.winner: Link | None = None
        self.errors: list[Exception] = []

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            if self._address.tls:
                await self._over_tls()
                return
            self._nursery.start_soon(self._over_tcp)
            await self._over_udp()

    async def _over_tls(self) -> None:
        if self._proxy is not None:
            await self._attempt(self._through_proxy(), None, trio.Event())
            return
        try:
            await self._resolve()
        except BrokerUnreachable as error:
            self.errors.append(error)
            return
        self._start(self._tls_ways)

    async def _over_udp(self) -> None:
        try:
            await self._resolve()
        except BrokerUnreachable as error:
            self.errors.append(error)
            return
        finally:
            self._resolution_ended.set()
        self._start(self._ways)

    def _start(self, ways: Callable[[Destination], tuple[Transport, ...]]) -> None:
        before = None
        for destination in self._resolved:
            failed = trio.Event()
            self._nursery.start_soon(self._attempt, ways(destination), before, failed)
            before = failed

    async def _resolve(self) -> None:
        self._resolved, self._names = await _resolve_all(self._address)

    async def find_more(self) -> list[Transport]:
        """Ways to where the broker's name leads now, in no order."""
        if self._proxy is not None:
            return []
        try:
            await self._resolve()
        except BrokerUnreachable:
            return []
        first = self._resolved[0]
        return list(self._tls_ways(first) if self._address.tls else self._ways(first))

    async def _over_tcp(self) -> None:
        if self._proxy is not None:
            with trio.move_on_after(FALLBACK_DELAY):
                await self._resolution_ended.wait()
                if self._resolved:
                    await trio.sleep(FALLBACK_DELAY)
            # A session through the proxy finds back to UDP, too, where that is let out one day.
            over_udp = [UdpTransport(place) for place in self._resolved]
            await self._attempt((*self._through_proxy(), *over_udp), None, trio.Event())
            return
        await self._resolution_ended.wait()
        await trio.sleep(FALLBACK_DELAY)
        self._start(partial(self._ways, tcp_first=True))

    def _ways(self, first: Destination, *, tcp_first: bool = False) -> tuple[Transport, ...]:
        """To the broker at `first`, and then to its other addresses: a lost session is looked for everywhere."""
        places = self._from(first)
        over_udp = [UdpTransport(place) for place in places]
        over_tcp = (
            [self._web_socket(place) for place in places] if self._proxy is None else self._through_proxy()
        )
        return (*over_tcp, *over_udp) if tcp_first else (*over_udp, *over_tcp)

    def _tls_ways(self, first: Destination) -> tuple[Transport, ...]:
        return tuple(self._web_socket(place) for place in self._from(first))

    def _from(self, first: Destination) -> list[Destination]:
        """All places, `first` first. The others in an order of our own: the nodes of a broker that ends shall not go to
        the same one, all of them."""
        others = [place for place in self._resolved if place != first]
        random.shuffle(others)
        # Sorting is stable: the family that led there once comes first.
        return [first, *sorted(others, key=lambda place: place[0] != first[0])]

    def _through_proxy(self) -> tuple[Transport, ...]:
        """A proxy is told the name, and resolves it itself."""
        port, context = self._address.port, self.context
        return tuple(
            WebSocketTransport(host, port, self._proxy, None, context) for host in self._address.hosts
        )

    def _web_socket(self, destination: Destination) -> WebSocketTransport:
        if self.context is not None:
            name = self._names[destination]
            return WebSocketTransport(name, self._address.port, None, destination, self.context)
        return WebSocketTransport(str(destination[1][0]), self._address.port, None, destination)

    async def _attempt(
        self, transports: tuple[Transport, ...], before: trio.Event | None, failed: trio.Event
    ) -> None:
        if before is not None:
            with trio.move_on_after(_STAGGER):
                await before.wait()
        # An instance for each: two ways to one broker must not look like one node that moves.
        machine = ClientMachine(
            Sealer(self._identity),
            self._key,
            keep_alive_interval=self._keep_alive_interval,
            ttl=ttl_for(self._keep_alive_interval),
            hidden=self._hidden,
            token=self._token,
        )
        link = Link(machine, self._address, transports, self._ca_file, self.find_more)
        try:
            await link.greet()
            if self._address.key is None:
                self._pins.check("brokers", _pin_name(self._address), link.broker_key)
            if self.winner is None:
                self.winner = link
                self._nursery.cancel_scope.cancel()
        except BrokerRefused as error:
            # It is the broker's own word, and would be the same by any other way.
            self.errors.append(error)
            self._nursery.cancel_scope.cancel()
        except OSError as error:
            self.errors.append(error)
            failed.set()
        finally:
            if self.winner is not link:
                _leave(link)


def _leave(link: Link) -> None:
    """Tell the broker that we are gone."""
    link.machine.close()
    link.flush()
    link.close()


def ttl_for(keep_alive_interval: float) -> int:
    """Seconds after which the broker may forget us."""
    return int(min(MAX_TTL, max(MIN_TTL, 3 * keep_alive_interval)))


async def _resolve_all(address: BrokerAddress) -> tuple[list[Destination], dict[Destination, str]]:
    """Where all hosts are, in turns, and whose each is. Raises BrokerUnreachable where none of them is found."""
    found: list[list[Destination]] = []
    names: dict[Destination, str] = {}
    failure: BrokerUnreachable | None = None
    for host in address.hosts:
        try:
            places = await _resolve(BrokerAddress(host, address.port))
        except BrokerUnreachable as error:
            failure = error
            continue
        found.append(places)
        for place in places:
            names.setdefault(place, host)
    if failure is not None and not found:
        raise failure
    turns = [place for turn in zip_longest(*found) for place in turn if place is not None]
    return list(dict.fromkeys(turns)), names


async def _resolve(address: BrokerAddress) -> list[Destination]:
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise BrokerUnreachable(f"broker {address.host}: {error}") from error
    # In the system's order (RFC 6724), each once.
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _pin_name(address: BrokerAddress) -> str:
    return f"{address.host}:{address.port}"
