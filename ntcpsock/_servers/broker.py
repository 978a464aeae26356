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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._errors import ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._raw.inject import Injector
from ntcpsock._raw.packet import build_syn_ack
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._servers.broker_core import BrokerCore, BrokerLimits
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
    """A running broker: where it is bound, and its public key."""

    address: Endpoint
    key: bytes
    core: BrokerCore
    #: Datagrams that the socket did not take, by errno text.
    unsent: Counter[str]

    @property
    def uri(self) -> str:
        """`ntcp://HOST:PORT?key=KEY`, as nodes are told it."""
        return str(BrokerAddress(self.address.host, self.address.port, self.key))


async def serve_udp_broker(
    listen: str,
    port: int,
    *,
    state_dir: Path | None,
    stun: Sequence[Endpoint] = (),
    limits: BrokerLimits | None = None,
    allow_spoofing: bool = False,
    task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` gets the BrokerServer once it is bound.

    `listen` is a numeric IPv4 or IPv6 address ("::" takes IPv4 too); port 0 lets the system choose.
    `state_dir` None keeps key and names in memory only. `stun` is the list that nodes are told; the host
    0.0.0.0 or :: in it means "where you reached this broker". `allow_spoofing` lets two nodes that both ask for it
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
        with _bind(listen, port) as sock:
            host, bound_port = sock.getsockname()[:2]
            spoofing = SpoofingDesk() if allow_spoofing else None
            core = BrokerCore(identity, names, stun=stun, limits=limits, spoofing=spoofing)
            server = BrokerServer(Endpoint(host, bound_port), core.key, core, Counter())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expire, core)
                if spoofer is not None:
                    nursery.start_soon(spoofer.run)
                task_status.started(server)
                await _serve(sock, core, server.unsent, spoofer)
    finally:
        names.close()
        if spoofer is not None:
            spoofer.close()
    raise AssertionError("unreachable")


def _bind(listen: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if listen == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.setblocking(False)
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
    sock: socket.socket, core: BrokerCore, unsent: Counter[str], spoofer: _Spoofer | None
) -> NoReturn:
    ipv6 = sock.family == socket.AF_INET6
    while True:
        await trio.lowlevel.wait_readable(sock)
        for _ in range(_BATCH):
            try:
                datagram, address = sock.recvfrom(MAX_DATAGRAM + 1)
            except BlockingIOError:
                break
            except OSError as error:
                # What the network says of an earlier datagram of ours (WSAECONNRESET) concerns nobody here.
                _logger.debug("recvfrom: %s", error)
                break
            now = trio.current_time()
            for answer, destination in core.receive(datagram, _endpoint(address), now):
                try:
                    sock.sendto(answer, _socket_address(destination, ipv6))
                except OSError as error:
                    # A full buffer or no route: lost like any datagram, and asked for again.
                    unsent[str(error.strerror)] += 1
            if spoofer is not None:
                spoofer.put(core.syn_acks)


async def _expire(core: BrokerCore) -> NoReturn:
    while True:
        await trio.sleep(_EXPIRY_INTERVAL)
        core.expire(trio.current_time())


def _endpoint(address: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """The source as nodes should see it: mapped IPv4 as IPv4, a link-local address with its scope."""
    host = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    if len(address) == 4 and address[3] and "%" not in host:
        host = f"{host}%{address[3]}"
    return Endpoint(host, address[1])


def _socket_address(endpoint: Endpoint, ipv6: bool) -> tuple[str, int] | tuple[str, int, int, int]:
    if not ipv6:
        return endpoint.host, endpoint.port
    host, _, scope = endpoint.host.partition("%")
    if ":" not in host:
        host = f"::ffff:{host}"
    return host, endpoint.port, 0, int(scope) if scope.isdecimal() else 0
