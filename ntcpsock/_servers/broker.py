"""The UDP broker: its core on a socket, and its state directory.

State: `broker.key` (its identity, mode 0600) and `names.sqlite`. Everything else is soft: nodes say it
again when a restarted broker challenges them.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NoReturn

import trio

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._errors import ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._raw.inject import Injector
from ntcpsock._raw.packet import build_syn_ack
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._servers.broker_core import BrokerCore, BrokerLimits
from ntcpsock._servers.datagrams import Ancillary, DatagramSocket, socket_address
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.spoofing import SpoofingDesk, SynAck
from ntcpsock._state import load_identity
from ntcpsock._traversal.broker.message import MAX_DATAGRAM, MAX_STUN_SERVERS

_logger = logging.getLogger("ntcpsock.broker")

# Read in a row before other tasks get their turn.
_BATCH = 64
# Some seconds of keep-alives of many nodes may arrive while a batch is worked on. The kernel caps it.
_RECEIVE_BUFFER = 4 * 1024 * 1024
_EXPIRY_INTERVAL = 5.0
# Segments that wait to be built and sent.
_MAX_SYN_ACKS = 256


@dataclass(frozen=True, slots=True)
class BrokerServer:
    """A running broker: where it is bound (first), and its public key."""

    address: Endpoint
    key: bytes
    core: BrokerCore
    #: Datagrams that the socket did not take, by errno text.
    unsent: Counter[str]

    @property
    def uri(self) -> str:
        """`ntcp://HOST:PORT?key=KEY`, as nodes are told it."""
        return str(BrokerAddress(self.address.host, self.address.port, self.key))


_Way = tuple[DatagramSocket, Ancillary]


class _Source(Endpoint):
    """Where a datagram came from. Its class says how to send there from the address that was asked: the core keeps one
    for each node, and an attribute would take three times as much as the rest."""

    __slots__ = ()
    way: ClassVar[_Way]


def _sources_by(way: _Way) -> type[_Source]:
    return type("_SourceByWay", (_Source,), {"__slots__": (), "way": way})


# Our addresses times interfaces; beyond that somebody adds and removes them, and classes are made anew.
_MOST_WAYS = 1024


async def serve_udp_broker(
    listen: str | Sequence[str],
    port: int,
    *,
    state_dir: Path | None,
    stun: Sequence[Endpoint] = (),
    elsewhere: Sequence[str] = (),
    limits: BrokerLimits | None = None,
    allow_spoofing: bool = False,
    task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` gets the BrokerServer once it is bound.

    `listen` is one or more numeric IPv4 or IPv6 addresses ("::" alone takes IPv4 too); port 0 lets the system choose.
    `state_dir` None keeps key and names in memory only. `stun` is the list that nodes are told; a host that is
    0.0.0.0 or :: in it means "this broker's own, IPv4 or IPv6". `elsewhere`: this host's addresses; a node is told
    those of the other family than the one in which it came. `allow_spoofing` lets two nodes that both ask for it
    have SYN-ACKs under each other's address (`_servers.spoofing`); it needs CAP_NET_RAW and scapy.
    Raises OSError where it cannot bind, ValueError for STUN servers that cannot be told to nodes,
    ConfigurationError for an unusable state directory, and where it may not spoof.
    """
    if len(stun) > MAX_STUN_SERVERS:
        raise ValueError(f"at most {MAX_STUN_SERVERS} STUN servers")
    for server_address in stun:
        # Nodes refuse a Welcome with anything else in it.
        ipaddress.ip_address(server_address.host)
    identity = Identity.generate() if state_dir is None else load_identity(state_dir / "broker.key")
    names = NameStore(None if state_dir is None else state_dir / "names.sqlite")
    spoofer: _Spoofer | None = None
    try:
        spoofer = _Spoofer() if allow_spoofing else None
        with ExitStack() as stack:
            sockets: list[DatagramSocket] = []
            hosts = (listen,) if isinstance(listen, str) else listen
            for host in hosts:
                number = sockets[0].local.port if sockets else port
                bound = stack.enter_context(_bind(host, number, dual=hosts == ("::",)))
                sockets.append(DatagramSocket(bound))
            address = sockets[0].local
            places = [Endpoint(host, address.port) for host in elsewhere]
            spoofing = SpoofingDesk() if allow_spoofing else None
            core = BrokerCore(identity, names, stun=stun, elsewhere=places, limits=limits, spoofing=spoofing)
            server = BrokerServer(address, core.key, core, Counter())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expire, core)
                if spoofer is not None:
                    nursery.start_soon(spoofer.run)
                for sock in sockets:
                    nursery.start_soon(_serve, sock, core, server.unsent, spoofer)
                task_status.started(server)
    finally:
        names.close()
        if spoofer is not None:
            spoofer.close()
    raise AssertionError("unreachable")


def _bind(listen: str, port: int, *, dual: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((listen, port))
    except BaseException:
        sock.close()
        raise
    return sock


class _Spoofer:
    """Sends what the core's rules let through. Raises ConfigurationError where this process may not."""

    def __init__(self) -> None:
        if lack := missing_for_raw(capturing=False):
            raise ConfigurationError(f"--allow-spoofing lacks {lack}")
        self._injector = Injector()
        self._send, self._receive = trio.open_memory_channel[SynAck](_MAX_SYN_ACKS)

    def put(self, segments: list[SynAck]) -> None:
        """Never waits: what finds no room is lost as if on the way, and asked for again."""
        for segment in segments:
            with suppress(trio.WouldBlock):
                self._send.send_nowait(segment)
        segments.clear()

    async def run(self) -> None:
        async for segment in self._receive:
            make = partial(build_syn_ack, segment.source, segment.target, segment.ours, segment.theirs)
            try:
                await self._injector.send(make, segment.target.host)
            except OSError as error:
                _logger.warning("cannot send a SYN-ACK to %s: %s", segment.target, error)
            else:
                _logger.info("sent a SYN-ACK of %s to %s", segment.source, segment.target)

    def close(self) -> None:
        self._injector.close()


async def _serve(
    sock: DatagramSocket, core: BrokerCore, unsent: Counter[str], spoofer: _Spoofer | None
) -> NoReturn:
    sources: dict[tuple[tuple[int, int, bytes], ...], type[_Source]] = {}
    while True:
        await trio.lowlevel.wait_readable(sock.fileno())
        for _ in range(_BATCH):
            try:
                datagram, source, asked = sock.receive(MAX_DATAGRAM + 1)
            except BlockingIOError:
                break
            except OSError as error:
                # What the network says of an earlier datagram of ours (WSAECONNRESET) concerns nobody here.
                _logger.debug("recvfrom: %s", error)
                break
            known = sources.get(tuple(asked))
            if known is None:
                if len(sources) >= _MOST_WAYS:
                    sources.clear()
                known = sources[tuple(asked)] = _sources_by((sock, asked))
            came_from = known(*source)
            for answer, destination in core.receive(datagram, came_from, trio.current_time()):
                # A node's address was given in by us with the way to it, whoever's datagram makes us send there.
                assert isinstance(destination, _Source)
                out, own_address = destination.way
                try:
                    out.send(answer, socket_address(destination, out.ipv6), own_address)
                except OSError as error:
                    # A full buffer or no route: lost like any datagram, and asked for again.
                    unsent[str(error.strerror)] += 1
            if spoofer is not None:
                spoofer.put(core.syn_acks)


async def _expire(core: BrokerCore) -> NoReturn:
    while True:
        await trio.sleep(_EXPIRY_INTERVAL)
        core.expire(trio.current_time())
