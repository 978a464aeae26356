"""A node: its identity, its broker session, its warm ports, its listeners.

`open_node` (in `ntcpsock.trio`) owns one; nothing of it outlives that block.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence

import trio

from ntcpsock._address import Endpoint, full_name, normalize_name
from ntcpsock._admission import Admission
from ntcpsock._config import Config
from ntcpsock._datagram_socket import Deliver, NTCPDatagramSocket, Refuse
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._datagrams import Datagrams
from ntcpsock._errors import (
    IdentityMismatch,
    NameTaken,
)
from ntcpsock._experience import Experience
from ntcpsock._identity import Identity
from ntcpsock._listener import NTCPListener
from ntcpsock._node_network import NodeNetwork
from ntcpsock._node_ports import NodePorts
from ntcpsock._node_settings import NodeSettings
from ntcpsock._node_turn import NodeTurn
from ntcpsock._nursery import Background
from ntcpsock._path_ages import MOVE_AT, PathAges
from ntcpsock._registration import Registration
from ntcpsock._report import Report
from ntcpsock._session.plain import PlainStream
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Certificate
from ntcpsock._state import Pins
from ntcpsock._traversal.accept import Acceptor
from ntcpsock._traversal.broker.driver import BrokerSession, Delivery
from ntcpsock._traversal.bursts import Bursts
from ntcpsock._traversal.connect import connect, connect_road
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.mapping import DialMapping
from ntcpsock._traversal.moving.streams import MovingStreams
from ntcpsock._traversal.outcome import telling_outcome
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import DialKind, Signal, Transport
from ntcpsock._traversal.relay_times import RelayTimes
from ntcpsock._traversal.surroundings import Surroundings
from ntcpsock._traversal.time_limit import limited
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer

# Seconds that a node waits at its end for streams that were closed in the background.
LINGER_DEADLINE = 5.0

# Dials under way at once; more wait their turn. Each holds a port and its connections to the STUN servers, of
# which a server allows one address so many (256 for ours).
MAX_DIALLING = 64

# Where mappings end at an age: the part of it that a dial's port has behind it at most.
YOUNG = MOVE_AT / 2

# Where port 0 of a listener is chosen: the dynamic ports of RFC 6335 section 6.
_DYNAMIC_PORTS = (49152, 65535)


class Node(NodeSettings):
    """A running node. Made by `ntcpsock.trio.open_node`; all methods are for its trio thread only."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        pins: Pins,
        session: BrokerSession,
        servers: Sequence[Endpoint],
        nursery: trio.Nursery,
        pace: float = 1.0,
    ) -> None:
        super().__init__(config, pace)
        if config.relay == "only":
            # No address of ours is to be told to anybody, so none is looked for.
            servers = ()
        self.stun_servers = tuple(servers)
        self._identity = identity
        self._session = session
        self._nursery = nursery
        self.introductions = Introductions(session, identity, pins, nursery)
        self.background = Background(nursery)
        #: Its ports for datagrams, and the ways to other nodes.
        self.datagrams = Datagrams(self, nursery)
        self.dialling = trio.CapacityLimiter(MAX_DIALLING)
        #: The joint attempts under way, as leader and as follower.
        self.pairs = Pairs(identity.public_key)
        self.surroundings = Surroundings(
            session, servers, Experience(config.state_dir), PathAges(config.state_dir)
        )
        #: Its streams, which go on over other paths when they have to.
        self.moving = MovingStreams(self)
        self._acceptor = Acceptor(self)
        self.registration = Registration(self, config, identity, session)
        self._admission = Admission(self, self.registration)
        self._ports = NodePorts(
            self,
            session,
            servers,
            nursery,
            pace,
            incoming=self._acceptor.doorkeeper.incoming,
            on_change=self._candidates_changed,
        )
        self._relay_times = RelayTimes(session)
        self.turn = NodeTurn(self, session, nursery, self.registration.card_changed)
        #: When it changes: `subscribe`, `wait_change`.
        self.network = NodeNetwork(self, session, self._ports, self.surroundings)
        self.network.subscribe(self.moving.network_changed)
        self._closing = False

    @property
    def node_id(self) -> str:
        """52 base32 characters: the public key."""
        return self._identity.node_id

    @property
    def name(self) -> str | None:
        """The node's own label, or None."""
        return self.config.name

    async def wait_warm(self) -> None:
        """Until the warm ports are gathered, so that a connect starts at once; not for long where no STUN server
        answers."""
        await self._ports.wait_warm()

    async def resolve(self, name: str) -> bytes:
        """The 32-byte key that `name` stands for: spelled by it, pinned, or registered (and pinned now).

        Raises NameNotFound, IdentityMismatch, BrokerUnreachable.
        """
        return await self.introductions.resolve(name)

    async def open_stream(
        self,
        name: str,
        port: int,
        *,
        timeout: float | None = None,
        source_port: int = 0,
        descriptor: int | None = None,
    ) -> NTCPStream:
        """Connect to `port` of the node called `name` (with or without `.ntcp`, or a node id).

        timeout: seconds for everything, `Config.connect_timeout` when None. source_port: what the listener's
        program is told to be ours; 0: nothing.

        With `encryption="off"` the stream is a `PlainStream`. descriptor: then, of an AF_INET TCP socket that is
        neither bound nor connected: it becomes the connection if its attempt wins (`PlainStream.is_given`), and
        comes back unconnected if not. The call owns and closes it; lend a duplicate.

        Raises the errors of `ntcpsock._errors`, each with its `report`. Cancelling leaves nothing behind.
        """
        if descriptor is None:
            return await self._open_stream(name, port, timeout, source_port, None)
        given = GivenSocket(descriptor)
        stream: NTCPStream | None = None
        try:
            lent = given if self.encryption == "off" else None
            stream = await self._open_stream(name, port, timeout, source_port, lent)
        finally:
            if not (isinstance(stream, PlainStream) and stream.is_given):
                given.withdraw()
        return stream

    async def _open_stream(
        self, name: str, port: int, timeout: float | None, source_port: int, given: GivenSocket | None
    ) -> NTCPStream:
        label = normalize_name(name)
        report = Report(f"{label}:{port}", "dialer", trio.current_time())
        seconds = self.config.connect_timeout if timeout is None else timeout
        with limited(label, port, seconds, report):
            async with self.dialling:
                with telling_outcome(self.config, self._session, report) as outcome:
                    stream = await connect(self, label, port, report, source_port, given)
                    outcome.connected(stream.path.technique, stream.path.kind)
                return stream
        raise AssertionError("unreachable")

    async def open_listener(
        self, port: int, *, name: str | None = None, allow: Sequence[str] | None = None, backlog: int = 128
    ) -> NTCPListener:
        """Listen on `port` of this node; 0 chooses one.

        name: the name to be reached by, the configured one when None; a node without a name is reached by its
        node id. allow: names and node ids that may connect, `Config.allow` when None. Raises NameTaken,
        OSError (EADDRINUSE) for a port already listened on, BrokerUnreachable.
        """
        label = self.registration.own_label(name)
        listeners = self.registration.listeners
        if port == 0:
            port = next(number for number in _dynamic_ports() if number not in listeners)
        if port in listeners:
            raise NameTaken(f"port {port} is already listened on by this node")
        allowed = self.config.allow if allow is None else Config(allow=tuple(allow)).allow
        listener = NTCPListener(label or self.node_id, port, allowed, backlog, lambda: self._closed(port))
        listeners[port] = listener  # from here on nobody else gets it
        try:
            await self._ports.start_listening()
        except BaseException:
            listeners.pop(port, None)
            raise
        await self.registration.add(listener, label)
        return listener

    async def open_datagram_socket(
        self,
        port: int | None = None,
        *,
        name: str | None = None,
        allow: Sequence[str] | None = None,
        wanted: int = 0,
        deliver: Deliver | None = None,
        refuse: Refuse | None = None,
    ) -> NTCPDatagramSocket:
        """A socket for datagrams to and from other nodes.

        port: at which others reach this node; 0 chooses one. None: the socket is for sending first: it has some port,
        and takes datagrams from nodes that it has sent to. name, allow: as in `open_listener`.

        wanted: without `port`, the number to take where it is free. deliver: called with (label, port, payload) for
        what comes, in place of a queue; it says whether anybody takes it. refuse: called with (label, port, error)
        for what did not arrive.

        Raises NameTaken, OSError (EADDRINUSE), BrokerUnreachable.
        """
        if port is None:
            number = 0 if wanted in self.datagrams.sockets else wanted
            own = self.config.name or self.node_id
            return self.datagrams.bind(own, number, None, is_bound=False, deliver=deliver, refuse=refuse)
        label = self.registration.own_label(name)
        allowed = self.config.allow if allow is None else Config(allow=tuple(allow)).allow
        sock = self.datagrams.bind(
            label or self.node_id,
            port,
            allowed,
            is_bound=True,
            deliver=deliver,
            refuse=refuse,
            on_close=lambda: self._datagram_socket_closed(sock.port),
        )
        try:
            await self._ports.start_listening()
            await self.registration.add_datagram_socket(sock, label)
        except BaseException:
            sock.close()
            raise
        return sock

    def _datagram_socket_closed(self, port: int) -> None:
        if self.registration.datagram_sockets.pop(port, None) is not None and not self._closing:
            self._nursery.start_soon(self.registration.send_quietly)

    async def dial_road(self, label: str, key: bytes, port: int, source_port: int) -> OpenRoad:
        """Dial for a road to a node, for `datagrams`."""
        report = Report(f"{label}:{port}", "dialer", trio.current_time())
        with limited(label, port, self.config.connect_timeout, report):
            async with self.dialling:
                with telling_outcome(self.config, self._session, report) as outcome:
                    opened = await connect_road(self, label, port, report, source_port)
                    outcome.connected(opened.path.technique, opened.path.kind)
                if opened.key != key:
                    opened.road.close()
                    raise IdentityMismatch(f"{full_name(label)} has another key than before", report=report)
                return opened
        raise AssertionError("unreachable")

    def take_road(self, opened: OpenRoad) -> None:
        """A road that a dialer has made."""
        self.datagrams.arrived(opened)

    @property
    def public_key(self) -> bytes:
        return self._identity.public_key

    @property
    def own_labels(self) -> Sequence[str]:
        return *self.registration.names, self.node_id

    def _closed(self, port: int) -> None:
        if self.registration.listeners.pop(port, None) is not None and not self._closing:
            self._nursery.start_soon(self.registration.send_quietly)

    async def _candidates_changed(self) -> None:
        self.moving.candidates_changed()
        await self.registration.card_changed()

    # The acceptor's and the dials' view of the node (AcceptContext, DialContext).

    @property
    def nursery(self) -> trio.Nursery:
        """For the tasks of paths over UDP, which end with them."""
        return self._nursery

    @property
    def relays(self) -> Sequence[Endpoint]:
        return self._session.relays

    @property
    def relay_times(self) -> Mapping[str, float]:
        """How far they are, in seconds, by their words; empty where there is no choice."""
        return self._relay_times.times

    @property
    def closing(self) -> bool:
        """Whether the node has begun to end."""
        return self._closing

    async def wait_network_changed(self) -> None:
        """Until an address or a route of the machine has changed, or it has slept."""
        await self.network.wait_change()

    @property
    def private(self) -> bool:
        """Whether every listener admits only those on its list."""
        return self.registration.is_private

    @property
    def fingerprint(self) -> bytes | None:
        """Of the certificate, once there is one."""
        return self._ports.fingerprint

    @property
    def certificate(self) -> Certificate:
        return self._ports.certificate

    @property
    def broker_rtt(self) -> float:
        return min(self._session.rtt, 60.0)

    @property
    def broker_spoofs(self) -> bool:
        """Whether the broker's operator allows it to send SYN-ACKs for `tcp-stunt1`."""
        return self._session.welcome.spoofs

    @property
    def listening_port(self) -> WarmPort | None:
        return self._ports.listening_port

    def listens(self, port: int, kind: DialKind = "stream") -> bool:
        """Whether a listener of this node has `port`, or a datagram socket that is bound to it."""
        return self._admission.listens(port, kind)

    async def admits(self, port: int, delivery: Delivery, kind: DialKind = "stream") -> bool:
        """Whether the sender of an offer may connect to `port`."""
        return await self._admission.admits(port, delivery, kind)

    async def is_allowed(self, allow: tuple[str, ...] | None, key: bytes, sender_name: str | None) -> bool:
        """Whether a key is on the list; names on it may have to be looked up."""
        return await self._admission.is_allowed(allow, key, sender_name)

    def hand_over(self, stream: NTCPStream) -> bool:
        """Give an arrived stream to its listener. False when there is none any more, or its backlog is full."""
        listener = self.registration.listeners.get(stream.peer.port)
        return listener is not None and listener.offer(stream)

    def mapped_ports(self, transport: Transport) -> list[int]:
        """Ports that the NAT holds for the warm ports, and those that it gave us lately."""
        return self._ports.mapped_ports(transport)

    def note_mapped(self, transport: Transport, ports: Collection[int]) -> None:
        """The NAT was seen to give us these."""
        self._ports.note_mapped(transport, ports)

    @property
    def bursts(self) -> Bursts:
        """What prediction has cost the NAT."""
        return self._ports.bursts

    @property
    def turn_servers(self) -> Sequence[TurnServer]:
        """Best first; none where none may be used."""
        return self.turn.servers

    def take_turn_allocation(self, *, ipv6: bool) -> TurnAllocation | None:
        """One that is ready, for an attempt to have; None where there is none."""
        return self.turn.take_warm(ipv6=ipv6)

    @property
    def relay_is_likely(self) -> bool:
        """Whether direct paths often fail from here: no UDP comes out, the NAT changes its ports, or none is wanted."""
        if self.config.relay == "only" or self._session.transport == "tcp":
            return True
        return self._ports.nat_changes

    async def take_port(self, again: tuple[int, int] | None = None) -> WarmPort:
        """A port for one dial, gathered; the dial closes it. again: the numbers of TCP's and UDP's port."""
        lifetime = self.surroundings.mapping_lifetime
        return await self._ports.take(math.inf if lifetime is None else YOUNG * lifetime, again)

    @property
    def port_mapping_refusal(self) -> str | None:
        """Why the router maps no port for a dial now, None where it might."""
        return self._ports.mappings.refusal

    def map_port(self, port: int) -> DialMapping:
        """Ask the router for one dial's port, where there is no refusal. The dial releases it."""
        return self._ports.mappings.map_port(port)

    # Tasks.

    async def start(self) -> None:
        """Register the node's names and start its tasks. Raises NameTaken, BrokerUnreachable."""
        if self.registration.names:
            await self.registration.send()
        self._nursery.start_soon(self.introductions.serve, self._acceptor.offered, self._heard)
        self._ports.start()
        if "relay" in self.techniques:
            self._nursery.start_soon(self._relay_times.run)
        self.turn.start()
        self._nursery.start_soon(self.network.run)
        self._nursery.start_soon(self.moving.watch)
        self._nursery.start_soon(self.moving.mind_ages)

    def _heard(self, delivery: Delivery, signal: Signal) -> None:
        if not self.moving.heard(delivery, signal):
            self._acceptor.heard(delivery, signal)

    def close(self) -> None:
        """Close the listeners, and reset what nobody has accepted. The rest ends with the node's nursery."""
        self._closing = True
        for listener in list(self.registration.listeners.values()):
            listener.close()
        self.datagrams.close()
        self.moving.close()
        self.surroundings.save()

    def close_soon(self, stream: NTCPStream) -> None:
        """Close `stream` in the background, as a kernel does after close() has returned."""
        if self._closing:
            stream.reset()
        else:
            self.background.start(stream.aclose)

    async def finish(self) -> None:
        """Wait until streams that are closed in the background have brought their last bytes out."""
        await self.background.finish(LINGER_DEADLINE)


def _dynamic_ports() -> Sequence[int]:
    low, high = _DYNAMIC_PORTS
    return random.SystemRandom().sample(range(low, high + 1), 256)
