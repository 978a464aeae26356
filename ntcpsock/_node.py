"""A node: its identity, its broker session, its warm ports, its listeners.

`open_node` (in `ntcpsock.trio`) owns one; nothing of it outlives that block.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from ntcpsock._address import Endpoint, decode_node_id, encode_node_id, full_name, normalize_name
from ntcpsock._config import UDP_TECHNIQUES, Config, Encryption, Prefer
from ntcpsock._datagram_socket import Deliver, NTCPDatagramSocket, Refuse
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._datagrams import Datagrams
from ntcpsock._errors import (
    IdentityMismatch,
    NameTaken,
    NTCPError,
    TraversalTimeout,
)
from ntcpsock._experience import Experience
from ntcpsock._identity import Identity
from ntcpsock._listener import NTCPListener
from ntcpsock._nursery import Background
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._registration import Registration
from ntcpsock._report import Report
from ntcpsock._session.plain import PlainStream
from ntcpsock._session.quic.carrier import prepare
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Certificate, make_certificate
from ntcpsock._state import Pins
from ntcpsock._traversal.accept import Acceptor
from ntcpsock._traversal.broker.driver import BrokerSession, Delivery
from ntcpsock._traversal.checks.machine import CONSENT_INTERVAL
from ntcpsock._traversal.connect import connect, connect_road
from ntcpsock._traversal.dial_mappings import DialMappings
from ntcpsock._traversal.explain import explain
from ntcpsock._traversal.gather import WarmPort, gather
from ntcpsock._traversal.gather_udp import UDP_REFRESH_INTERVAL
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.learn import Learned
from ntcpsock._traversal.mapping import DialMapping
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.patience import group_of
from ntcpsock._traversal.plan import RAW_TECHNIQUES
from ntcpsock._traversal.ports import DialPorts, ListeningPort
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import DialKind
from ntcpsock._traversal.surroundings import Surroundings
from ntcpsock._traversal.turn.credentials import TurnServer, configured_servers

# Seconds that a node waits at its end for streams that were closed in the background.
LINGER_DEADLINE = 5.0

# Dials under way at once; more wait their turn. Each holds a port and its connections to the STUN servers, of
# which a server allows one address so many (256 for ours).
MAX_DIALLING = 64

# How long a STUN server is waited for in networks without UDP: a connection and an exchange, and as long again.
PATIENCE_RTTS = 4.0
SHORTEST_PATIENCE = 0.5

# Where port 0 of a listener is chosen: the dynamic ports of RFC 6335 section 6.
_DYNAMIC_PORTS = (49152, 65535)


class Node:
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
        self.config = config
        if config.relay == "only":
            # No address of ours is to be told to anybody, so none is looked for.
            servers = ()
        self.stun_servers = tuple(servers)
        self._turn_servers = configured_servers(config)
        self._identity = identity
        self._session = session
        self._nursery = nursery
        self.introductions = Introductions(session, identity, pins, nursery)
        self.background = Background(nursery)
        self._pace = pace
        # A lazy node has no ports that would have to be kept alive.
        warm_ports = 0 if math.isinf(pace) else config.warm_ports
        self._uses_udp = bool({*UDP_TECHNIQUES} & {*config.usable_techniques, *config.datagram_techniques})
        #: Its ports for datagrams, and the ways to other nodes.
        self.datagrams = Datagrams(self, nursery)
        self._dial_ports = DialPorts(servers, warm_ports, pace, self._uses_udp)
        self._learned = Learned(servers)
        self._dialling = trio.CapacityLimiter(MAX_DIALLING)
        #: The joint attempts under way, as leader and as follower.
        self.pairs = Pairs(identity.public_key)
        self.surroundings = Surroundings(session, servers, Experience(config.state_dir))
        self._acceptor = Acceptor(self)
        self.registration = Registration(self, config, identity, session)
        self._dial_mappings = DialMappings(config, nursery)
        self._listening = ListeningPort(
            servers,
            self._acceptor.doorkeeper.incoming,
            self.registration.card_changed,
            self._dial_mappings.mapper,
            pace,
            self._stun_patience,
            nursery if self._uses_udp else None,
        )
        self._quic_loaded = trio.Event()
        self._listening_started = trio.Lock()
        self._certificate: Certificate | None = None
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
        with trio.move_on_after(self._stun_patience):
            await self._dial_ports.wait_filled()
        if self._uses_udp and self.config.keep_alive != "lazy":
            await self._quic_loaded.wait()

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
        with self._limited(label, port, timeout, report):
            async with self._dialling:
                return await connect(self, label, port, report, source_port, given)
        raise AssertionError("unreachable")

    @contextmanager
    def _limited(self, label: str, port: int, timeout: float | None, report: Report) -> Iterator[None]:
        """A dial's time, and its report on what leaves it."""
        seconds = self.config.connect_timeout if timeout is None else timeout
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError:
            stage = report.failed_stage or "start"
            why = ""
            if stage == "punch":
                explanation = explain(report)
                report.cause, report.advice = explanation.cause, explanation.advice
                why = f". {explanation}"
            raise TraversalTimeout(
                f"no connection to {full_name(label)}:{port} within {seconds:g} s; "
                f"it was at the stage {stage!r}{why}",
                report=report,
            ) from None
        except NTCPError as error:
            error.report = error.report or report
            raise

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
            await self._start_listening()
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
            await self._start_listening()
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
        with self._limited(label, port, None, report):
            async with self._dialling:
                opened = await connect_road(self, label, port, report, source_port)
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

    async def _start_listening(self) -> None:
        async with self._listening_started:
            if self._certificate is None:
                self._certificate = await trio.to_thread.run_sync(make_certificate)
            if self._listening.warm is None:
                await self._nursery.start(self._listening.keep)
                self._hide(self._listening.warm)

    def _closed(self, port: int) -> None:
        if self.registration.listeners.pop(port, None) is not None and not self._closing:
            self._nursery.start_soon(self.registration.send_quietly)

    # The acceptor's and the dials' view of the node (AcceptContext, DialContext).

    @property
    def techniques(self) -> Sequence[str]:
        return self.config.usable_techniques

    @property
    def datagram_techniques(self) -> Sequence[str]:
        return self.config.datagram_techniques

    @property
    def turn_servers(self) -> Sequence[TurnServer]:
        return self._turn_servers if "turn" in self.techniques else ()

    @property
    def hidden(self) -> bool:
        """Whether peers are to see no address of ours."""
        return self.config.relay == "only"

    @property
    def prefer(self) -> Prefer:
        return self.config.prefer

    @property
    def nursery(self) -> trio.Nursery:
        """For the tasks of paths over UDP, which end with them."""
        return self._nursery

    @property
    def birthday_sockets(self) -> int:
        return self.config.birthday_sockets

    @property
    def birthday_rate(self) -> float:
        return self.config.birthday_rate

    @property
    def consent_interval(self) -> float:
        """Seconds between two checks of a path over UDP: as often as its NAT needs them, where that is known."""
        return min(CONSENT_INTERVAL, UDP_REFRESH_INTERVAL * self._pace)

    @property
    def relays(self) -> Sequence[Endpoint]:
        return self._session.relays

    @property
    def encryption(self) -> Encryption:
        return self.config.encryption

    @property
    def private(self) -> bool:
        """Whether every listener admits only those on its list."""
        return self.registration.is_private

    @property
    def fingerprint(self) -> bytes | None:
        """Of the certificate, once there is one."""
        return None if self._certificate is None else self._certificate.fingerprint

    @property
    def certificate(self) -> Certificate:
        assert self._certificate is not None, "only a listening node authenticates"
        return self._certificate

    @property
    def broker_rtt(self) -> float:
        return min(self._session.rtt, 60.0)

    @property
    def missing_for_raw(self) -> str | None:
        """What this process lacks for raw packets; None for nothing."""
        return missing_for_raw()

    @property
    def offers_raw(self) -> bool:
        """Whether dialers may plan techniques with raw packets."""
        return any(technique in RAW_TECHNIQUES for technique in self.techniques) and not self.missing_for_raw

    @property
    def broker_spoofs(self) -> bool:
        """Whether the broker's operator allows it to send SYN-ACKs for `tcp-stunt1`."""
        return self._session.welcome.spoofs

    @property
    def listening_port(self) -> WarmPort | None:
        warm = self._listening.warm
        return None if warm is None else self._learned.inform(warm)

    def listens(self, port: int, kind: DialKind = "stream") -> bool:
        """Whether a listener of this node has `port`, or a datagram socket that is bound to it."""
        registration = self.registration
        return port in (registration.listeners if kind == "stream" else registration.datagram_sockets)

    async def admits(self, port: int, delivery: Delivery, kind: DialKind = "stream") -> bool:
        """Whether the sender of an offer may connect to `port`."""
        registration = self.registration
        place: NTCPListener | NTCPDatagramSocket | None = registration.datagram_sockets.get(port)
        if kind == "stream":
            place = registration.listeners.get(port)
        allow = registration.allow if place is None else place.allow
        return await self.is_allowed(allow, delivery.sender, delivery.sender_name)

    async def is_allowed(self, allow: tuple[str, ...] | None, key: bytes, sender_name: str | None) -> bool:
        """Whether a key is on the list; names on it may have to be looked up."""
        if allow is None or encode_node_id(key) in allow:
            return True
        for name in allow:
            # The broker's word for the sender's name is only a hint which name to look up.
            if decode_node_id(name) is None and sender_name in (None, name):
                try:
                    if await self.resolve(name) == key:
                        return True
                except OSError:
                    continue
        return False

    def hand_over(self, stream: NTCPStream) -> bool:
        """Give an arrived stream to its listener. False when there is none any more, or its backlog is full."""
        listener = self.registration.listeners.get(stream.peer.port)
        return listener is not None and listener.offer(stream)

    async def take_port(self) -> WarmPort:
        """A port for one dial, gathered; the dial closes it."""
        warm: WarmPort | None = None
        with trio.move_on_after(self._stun_patience):
            warm = await self._dial_ports.take()
        if warm is None:
            warm = await gather((), udp=self._uses_udp)
        self._hide(warm)
        return self._learned.inform(warm)

    @property
    def _stun_patience(self) -> float:
        """Seconds for which the STUN servers may hold somebody up. Where UDP is blocked most else is, too."""
        if self._session.transport == "udp":
            return math.inf
        return max(SHORTEST_PATIENCE, PATIENCE_RTTS * self.broker_rtt)

    def _hide(self, warm: WarmPort | None) -> None:
        if warm is None:
            return
        if not any(group_of(technique) == "tcp" for technique in self.techniques):
            warm.candidates = ()

    @property
    def port_mapping_refusal(self) -> str | None:
        """Why the router maps no port for a dial now, None where it might."""
        return self._dial_mappings.refusal

    def map_port(self, port: int) -> DialMapping:
        """Ask the router for one dial's port, where there is no refusal. The dial releases it."""
        return self._dial_mappings.map_port(port)

    # Tasks.

    async def start(self) -> None:
        """Register the node's names and start its tasks. Raises NameTaken, BrokerUnreachable."""
        if self.registration.names:
            await self.registration.send()
        self._nursery.start_soon(self.introductions.serve, self._acceptor.offered, self._acceptor.heard)
        self._nursery.start_soon(self._dial_ports.keep)
        if self._uses_udp and self.config.keep_alive != "lazy":
            self._nursery.start_soon(self._load_quic)
        if self.config.keep_alive != "lazy":
            self._nursery.start_soon(self._learn)

    async def _load_quic(self) -> None:
        await prepare()
        self._quic_loaded.set()

    async def _learn(self) -> None:
        await self._dial_ports.wait_filled()
        if await self._learned.learn():
            await self.registration.card_changed()

    def close(self) -> None:
        """Close the listeners, and reset what nobody has accepted. The rest ends with the node's nursery."""
        self._closing = True
        for listener in list(self.registration.listeners.values()):
            listener.close()
        self.datagrams.close()
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
