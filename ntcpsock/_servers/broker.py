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
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import trio

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._identity import Identity
from ntcpsock._servers.broker_core import BrokerCore, BrokerLimits
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.outlets import Outlets
from ntcpsock._servers.pages import make_pages
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.signal_desk import SignalDesk
from ntcpsock._servers.web import WebLimits, WebServer, open_listener, source_endpoint
from ntcpsock._state import load_identity
from ntcpsock._traversal.broker.message import MAX_DATAGRAM, MAX_RELAYS, MAX_STUN_SERVERS

_logger = logging.getLogger("ntcpsock.broker")

# Read in a row before other tasks get their turn.
_BATCH = 64
# Some seconds of keep-alives of many nodes may arrive while a batch is worked on. The kernel caps it.
_RECEIVE_BUFFER = 4 * 1024 * 1024
_EXPIRY_INTERVAL = 5.0
# Tries to find a port that is free for UDP and TCP, when the kernel may choose.
_BIND_ATTEMPTS = 32


@dataclass(frozen=True, slots=True)
class BrokerServer:
    """A running broker: where it is bound, and its public key. web, relay: what its TCP port has, or None."""

    address: Endpoint
    key: bytes
    core: BrokerCore
    #: Frames that did not leave, by reason.
    unsent: Counter[str]
    web: WebServer | None = None
    relay: RelayDesk | None = None

    @property
    def uri(self) -> str:
        """`ntcp://HOST:PORT?key=KEY`, as nodes are told it."""
        return str(BrokerAddress(self.address.host, self.address.port, self.key))


async def serve_broker(
    listen: str,
    port: int,
    *,
    state_dir: Path | None,
    udp: bool = True,
    tcp: bool = True,
    stun: Sequence[Endpoint] = (),
    relays: Sequence[Endpoint] | None = None,
    limits: BrokerLimits | None = None,
    web_limits: WebLimits | None = None,
    relay_limits: RelayLimits | None = None,
    behind: Collection[str] = (),
    task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` gets the BrokerServer once it is bound.

    `listen` is a numeric IPv4 or IPv6 address ("::" takes IPv4 too); port 0 lets the system choose one, the same
    for UDP and TCP. `state_dir` None keeps keys and names in memory only. `stun` and `relays` are what nodes are
    told; the host 0.0.0.0 or :: in them means "where you reached this broker". `relays` None is the relay on our own
    TCP port, where we have one; any other relay needs our `relay.key`. `behind`: addresses of reverse proxies before
    the TCP port, which tell in X-Forwarded-For whom they bring.
    Raises OSError where it cannot bind, ValueError for servers that cannot be told to nodes, ConfigurationError for
    an unusable state directory.
    """
    _check_told(stun, relays)
    identity = Identity.generate() if state_dir is None else load_identity(state_dir / "broker.key")
    secret = Identity.generate() if state_dir is None else load_identity(state_dir / "relay.key")
    names = NameStore(None if state_dir is None else state_dir / "names.sqlite")
    web: WebServer | None = None
    relay: RelayDesk | None = None
    try:
        with _bound(listen, port, udp=udp, tcp=tcp) as (datagrams, listener, address):
            if relays is None:
                relays = [Endpoint("0.0.0.0", address.port)] if tcp else []
            core = BrokerCore(
                identity, names, stun=stun, relays=relays, relay_secret=secret.seed, limits=limits
            )
            outlets = Outlets()
            outlets.datagrams = datagrams
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expire, core)
                if listener is not None:
                    relay = RelayDesk(secret.seed, relay_limits)
                    web = WebServer(
                        {
                            "/signal": SignalDesk(core, outlets).serve,
                            "/relay": relay.serve,
                            **make_pages(core.key, stun, relays),
                        },
                        web_limits,
                        behind=behind,
                    )
                    nursery.start_soon(relay.sweep)
                    nursery.start_soon(web.serve, listener)
                task_status.started(BrokerServer(address, core.key, core, outlets.unsent, web, relay))
                if datagrams is not None:
                    await _serve_datagrams(datagrams, core, outlets)
                await trio.sleep_forever()
    finally:
        names.close()
        if relay is not None:
            relay.close()
    raise AssertionError("unreachable")


async def serve_udp_broker(
    listen: str,
    port: int,
    *,
    state_dir: Path | None,
    stun: Sequence[Endpoint] = (),
    relays: Sequence[Endpoint] = (),
    limits: BrokerLimits | None = None,
    task_status: trio.TaskStatus[BrokerServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """`serve_broker` over UDP alone, with the relays that are given."""
    await serve_broker(
        listen,
        port,
        state_dir=state_dir,
        tcp=False,
        stun=stun,
        relays=relays,
        limits=limits,
        task_status=task_status,
    )


def _check_told(stun: Sequence[Endpoint], relays: Sequence[Endpoint] | None) -> None:
    """Nodes refuse a Welcome with anything else in it."""
    if len(stun) > MAX_STUN_SERVERS:
        raise ValueError(f"at most {MAX_STUN_SERVERS} STUN servers")
    if len(relays or ()) > MAX_RELAYS:
        raise ValueError(f"at most {MAX_RELAYS} relays")
    for server in (*stun, *(relays or ())):
        ipaddress.ip_address(server.host)


@contextmanager
def _bound(
    listen: str, port: int, *, udp: bool, tcp: bool
) -> Iterator[tuple[socket.socket | None, trio.SocketListener | None, Endpoint]]:
    """The UDP socket and the TCP listener, on one port; closed at the end."""
    for attempt in range(_BIND_ATTEMPTS):
        with ExitStack() as stack:
            datagrams = listener = None
            address: Endpoint | None = None
            if udp:
                datagrams = stack.enter_context(_bind_datagrams(listen, port))
                address = Endpoint(*datagrams.getsockname()[:2])
            if tcp:
                try:
                    listener = open_listener(listen, address.port if address else port)
                except OSError:
                    if port or attempt == _BIND_ATTEMPTS - 1:
                        raise
                    continue
                stack.callback(listener.socket.close)
                address = Endpoint(*listener.socket.getsockname()[:2])
            if address is None:
                raise ValueError("a broker needs UDP or TCP")
            yield datagrams, listener, address
            return


def _bind_datagrams(listen: str, port: int) -> socket.socket:
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


async def _serve_datagrams(sock: socket.socket, core: BrokerCore, outlets: Outlets) -> NoReturn:
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
            outlets.send(core.receive(datagram, source_endpoint(address), trio.current_time()))


async def _expire(core: BrokerCore) -> NoReturn:
    while True:
        await trio.sleep(_EXPIRY_INTERVAL)
        core.expire(trio.current_time())
