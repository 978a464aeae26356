"""The broker as a server: its core on a UDP socket and on a TCP port, a relay beside it, and its state directory.

State: `broker.key` (its identity, mode 0600), `relay.key` (what it shares with its relays, likewise) and
`names.sqlite`. Everything else is soft: nodes say it again when a restarted broker challenges them.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import trio

from ntcpsock._address import BrokerAddress, Endpoint, encode_node_id
from ntcpsock._identity import Identity
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.broker_state import BrokerLimits
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.cluster.start import Membership, open_names
from ntcpsock._servers.datagrams import DatagramSocket
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.listener import open_listener
from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.networks import Networks
from ntcpsock._servers.outlets import Outlets
from ntcpsock._servers.pages import Readiness, make_operator_pages, make_pages, readers
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.signal_desk import SignalDesk
from ntcpsock._servers.socket_filter import enlarge, only_frames
from ntcpsock._servers.spoofer import Spoofer
from ntcpsock._servers.spoofing import SpoofingDesk
from ntcpsock._servers.status_page.pages import StatusPage
from ntcpsock._servers.stun import StunCounters
from ntcpsock._servers.turn_desk import TurnDesk
from ntcpsock._servers.udp_desk import UdpDesk
from ntcpsock._servers.web import WebLimits, WebServer
from ntcpsock._state import load_identity
from ntcpsock._traversal.broker.fields import MAX_RELAYS, MAX_STUN_SERVERS, RelayPlace, check_relay

_logger = logging.getLogger("ntcpsock.broker")

# Some seconds of keep-alives of many nodes may arrive while a batch is worked on.
_RECEIVE_BUFFER = 4 * 1024 * 1024
_EXPIRY_INTERVAL = 5.0
# Tries to find a port that is free for UDP and TCP, when the kernel may choose.
_BIND_ATTEMPTS = 32


@dataclass(frozen=True, slots=True)
class BrokerServer:
    """A running broker: where it is bound (first), and its public key. web, relay: what its TCP port has, or None;
    certificate: for TLS there, or None."""

    address: Endpoint
    key: bytes
    core: BrokerCore
    #: Frames that did not leave, by reason.
    unsent: Counter[str]
    web: WebServer | None = None
    relay: RelayDesk | None = None
    certificate: CertificateFiles | None = None
    readiness: Readiness = field(default_factory=Readiness)

    @property
    def ready(self) -> str:
        """The line that says so."""
        return f"ready {self.uri}"

    async def drain(self, seconds: float) -> None:
        """Give no seats at the relay any more, and return when it is empty, or after so many seconds. Signalling goes
        on until then: where this is the only broker, nodes have no other."""
        self.readiness.reason = "draining"
        if self.relay is not None:
            with trio.move_on_after(seconds):
                await self.relay.drain()

    def reload(self) -> None:
        """Read the certificate again. Raises ConfigurationError."""
        if self.certificate is not None:
            self.certificate.reload()

    @property
    def uri(self) -> str:
        """`ntcp://HOST:PORT?key=KEY`, as nodes are told it."""
        return str(BrokerAddress(self.address.host, self.address.port, self.key))


async def serve_broker(
    listen: str | Sequence[str],
    port: int,
    *,
    state_dir: Path | None,
    udp: bool = True,
    tcp: bool = True,
    stun: Sequence[Endpoint] = (),
    elsewhere: Sequence[str] = (),
    relays: Sequence[Endpoint | RelayPlace] | None = None,
    limits: BrokerLimits | None = None,
    web_limits: WebLimits | None = None,
    relay_limits: RelayLimits | None = None,
    behind: Collection[str] = (),
    certificate: CertificateFiles | None = None,
    metrics_from: Collection[str] = (),
    stun_counters: Sequence[StunCounters] = (),
    allow_spoofing: bool = False,
    gate: Gate | None = None,
    relay_nodes: Collection[bytes] = (),
    store: str | None = None,
    turn: TurnDesk | None = None,
    task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` gets the BrokerServer once it is bound.

    `listen` is one or more numeric IPv4 or IPv6 addresses ("::" alone takes IPv4 too); port 0 lets the system choose
    one, the same for all, UDP and TCP. `state_dir` None keeps keys and names in memory only.
    `stun` and `relays` are what nodes are told; a host that is 0.0.0.0 or :: means "this broker's own": for `stun`, of
    that family. `relays` None is the relay on our own TCP port, where we have one; any other relay needs our
    `relay.key`. `elsewhere`: this host's addresses; a node is told those of the other family than the one in which it
    came. `behind`: addresses of reverse proxies before the TCP port, which tell in X-Forwarded-For whom they bring.
    `certificate`: the TCP port speaks TLS, too, to whoever begins with it. `metrics_from`: who may read /metrics beside
    this machine; `stun_counters`: of STUN servers in this process, which stand there as well.
    `turn`: TURN servers that nodes may use, with credentials for a while.
    `allow_spoofing` lets two nodes that both ask for it have SYN-ACKs under each other's address
    (`_servers.spoofing`); it needs CAP_NET_RAW and scapy. `gate`: whom and what the operator lets in; `relay_nodes`:
    keys of relays that may register without our relay.key. `store`: redis://HOST:PORT of the cluster that this broker
    is one of; all of them share broker.key and relay.key.
    Raises OSError where it cannot bind, ValueError for servers that cannot be told to nodes and for what is no address
    or network, ConfigurationError for an unusable state directory, and where it may not spoof.
    """
    _check_told(stun, relays)
    for entries in (behind, metrics_from):
        Networks(entries)  # what is none is an error by itself, before there is a nursery
    identity = Identity.generate() if state_dir is None else load_identity(state_dir / "broker.key")
    secret = Identity.generate() if state_dir is None else load_identity(state_dir / "relay.key")
    membership = None if store is None else Membership(store, identity, secret)
    names = open_names(None if state_dir is None else state_dir / "names.sqlite", membership)
    spoofer: Spoofer | None = None
    relay: RelayDesk | None = None
    try:
        spoofer = Spoofer() if allow_spoofing else None
        hosts = (listen,) if isinstance(listen, str) else tuple(listen)
        with _bound(hosts, port, udp=udp, tcp=tcp) as (sockets, listeners, address):
            if relays is None:
                relays = [RelayPlace("0.0.0.0", 0)] if tcp else []
            told = tuple(RelayPlace(*relay) for relay in relays)
            core = BrokerCore(
                identity,
                names,
                stun=stun,
                elsewhere=[Endpoint(host, address.port) for host in elsewhere],
                relays=told,
                relay_secret=secret.seed,
                limits=limits,
                spoofing=SpoofingDesk() if allow_spoofing else None,
                gate=gate,
                cluster=None if membership is None else membership.machine,
                turn=turn,
            )
            core.relays.trusted = frozenset(relay_nodes)
            outlets = Outlets(core.key, spoofer)
            async with trio.open_nursery() as nursery:
                if membership is not None:
                    await nursery.start(membership.driver(core.keys, outlets.send).run)
                nursery.start_soon(_expire, core)
                if spoofer is not None:
                    nursery.start_soon(spoofer.run)
                web: WebServer | None = None
                readiness = Readiness()
                if tcp:

                    def sources() -> Sources:
                        return Sources(
                            core, outlets.unsent, web.counters if web else None, relay, stun_counters
                        )

                    may_read = readers(metrics_from)
                    plain = f"An ntcpsock broker, key {encode_node_id(core.key)}.\n"
                    status = StatusPage("Broker", plain, sources, readiness, may_read)
                    nursery.start_soon(status.run)
                    relay = RelayDesk(secret.seed, relay_limits)
                    relay.bans = core.gate.bans
                    core.relays.own_load = relay.get_load
                    web = WebServer(
                        {
                            "/signal": SignalDesk(core, outlets).serve,
                            "/relay": relay.serve,
                            **make_pages(core.key, stun, told, () if turn is None else turn.servers),
                            **make_operator_pages(sources, readiness, may_read),
                            **status.handlers(),
                        },
                        web_limits,
                        behind=behind,
                        certificate=certificate,
                    )
                    nursery.start_soon(relay.sweep)
                    nursery.start_soon(web.serve, listeners)
                for sock in sockets:
                    nursery.start_soon(UdpDesk(sock, core, outlets).serve)
                task_status.started(
                    BrokerServer(address, core.key, core, outlets.unsent, web, relay, certificate, readiness)
                )
    finally:
        names.close()
        if spoofer is not None:
            spoofer.close()
        if relay is not None:
            relay.close()
    raise AssertionError("unreachable")


async def serve_udp_broker(
    listen: str | Sequence[str],
    port: int,
    *,
    state_dir: Path | None,
    stun: Sequence[Endpoint] = (),
    elsewhere: Sequence[str] = (),
    relays: Sequence[Endpoint | RelayPlace] = (),
    limits: BrokerLimits | None = None,
    allow_spoofing: bool = False,
    task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """`serve_broker` over UDP alone, with the relays that are given."""
    await serve_broker(
        listen,
        port,
        state_dir=state_dir,
        tcp=False,
        stun=stun,
        elsewhere=elsewhere,
        relays=relays,
        limits=limits,
        allow_spoofing=allow_spoofing,
        task_status=task_status,
    )


def _check_told(stun: Sequence[Endpoint], relays: Sequence[Endpoint | RelayPlace] | None) -> None:
    """Nodes refuse a Welcome with anything else in it."""
    if len(stun) > MAX_STUN_SERVERS:
        raise ValueError(f"at most {MAX_STUN_SERVERS} STUN servers")
    if len(relays or ()) > MAX_RELAYS:
        raise ValueError(f"at most {MAX_RELAYS} relays")
    for server in stun:
        ipaddress.ip_address(server.host)
    for relay in relays or ():
        check_relay(RelayPlace(*relay))


@contextmanager
def _bound(
    hosts: Sequence[str], port: int, *, udp: bool, tcp: bool
) -> Iterator[tuple[list[DatagramSocket], list[trio.SocketListener], Endpoint]]:
    """UDP sockets and TCP listeners, on one port; closed at the end. And where the first of them is."""
    if not (udp or tcp):
        raise ValueError("a broker needs UDP or TCP")
    for attempt in range(_BIND_ATTEMPTS):
        with ExitStack() as stack:
            try:
                bound = _bind_all(stack, hosts, port, udp=udp, tcp=tcp)
            except OSError:
                if port or attempt == _BIND_ATTEMPTS - 1:
                    raise
                continue
            yield bound
            return


def _bind_all(
    stack: ExitStack, hosts: Sequence[str], port: int, *, udp: bool, tcp: bool
) -> tuple[list[DatagramSocket], list[trio.SocketListener], Endpoint]:
    dual = hosts == ("::",)
    sockets: list[DatagramSocket] = []
    listeners: list[trio.SocketListener] = []
    first: Endpoint | None = None
    for host in hosts:
        if udp:
            bound = stack.enter_context(_bind_datagrams(host, first.port if first else port, dual=dual))
            sockets.append(DatagramSocket(bound))
            first = first or sockets[-1].local
        if tcp:
            listener = open_listener(host, first.port if first else port, dual=dual)
            stack.callback(listener.socket.close)
            listeners.append(listener)
            first = first or Endpoint(*listener.socket.getsockname()[:2])
    assert first is not None
    return sockets, listeners, first


def _bind_datagrams(listen: str, port: int, *, dual: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        enlarge(sock, _RECEIVE_BUFFER)
        only_frames(sock)
        sock.bind((listen, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _expire(core: BrokerCore) -> NoReturn:
    unwritten = 0
    while True:
        await trio.sleep(_EXPIRY_INTERVAL)
        core.expire(trio.current_time())
        if core.unwritten > unwritten:
            _logger.error(
                "the disk takes no names any more (%d registrations were refused): make room where names.sqlite is",
                core.unwritten - unwritten,
            )
        unwritten = core.unwritten
