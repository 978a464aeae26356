"""The STUN server over UDP and TCP: sockets, limits and counters around the pure `BindingServer`."""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import trio

from ntcpsock._address import DEFAULT_STUN_PORT, Endpoint
from ntcpsock._errors import BadMessage, ConfigurationError
from ntcpsock._servers import mmsg
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.connect_back import ConnectBacks
from ntcpsock._servers.datagrams import (
    Ancillary,
    DatagramSocket,
    endpoint_of,
    turn_round,
    unpack_address,
)
from ntcpsock._servers.descriptors import descriptor_limit
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.listener import open_listener
from ntcpsock._servers.socket_filter import Unread, enlarge, only_binding_requests
from ntcpsock._servers.stun_batch import Pattern, StunBatch
from ntcpsock._servers.tls_stream import TLS_HANDSHAKE, TlsStream
from ntcpsock._traversal.stun.connect_back import ConnectBackOutcome
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.link import FIRST_OCTET, Link, Order
from ntcpsock._traversal.stun.server import BindingServer, ConnectBackOrder, Reply

DEFAULT_OTHER_PORT = DEFAULT_STUN_PORT + 1

# Longer datagrams arrive cut, do not match their own length, and are dropped.
_LONGEST_DATAGRAM = 2048
# Datagrams to answer before the other tasks get their turn.
_UDP_BATCH = 64
# The same where many come with one call: so many calls, of so many datagrams each.
_MMSG_BATCHES = 8
_MMSG_BATCH = 128
# What waits while a batch is worked on.
_RECEIVE_BUFFER = 4 * 1024 * 1024
_TCP_RECEIVE_SIZE = 4096
_LONGEST_TCP_REQUEST = 2048
_TCP_BACKLOG = 1024
#: Seconds without a whole request before a connection is closed: six keep-alives of a node's warm port.
IDLE_TIMEOUT = 120.0
# Seconds that a client may leave its answers unread.
_SEND_TIMEOUT = 10.0
_MOST_CONNECTIONS = 10_000
_MOST_CONNECTIONS_OF_A_HOST = 256
#: A second, over UDP, while more come than can be answered: a great many users behind one address.
REQUESTS_OF_AN_ADDRESS = 2000.0
_ORDER = bytes((FIRST_OCTET,))
# Answers from the other server's address, for each client address: many users may be behind one NAT.
_LINK_RATE, _LINK_BURST = 8.0, 64.0
# Tries to find a port that is free on every address, for UDP and TCP, when the kernel may choose.
_BIND_ATTEMPTS = 32


@dataclass(slots=True)
class StunCounters:
    """What the server has done since it started."""

    udp_requests: int = 0
    udp_dropped: int = 0  # no valid Binding request
    udp_unread: int = 0  # no Binding request by their first octets, or no room: the kernel dropped them
    udp_excessive: int = 0  # of addresses that sent too many
    udp_errors: int = 0  # error responses
    udp_unsent: int = 0  # the kernel would not take the answer
    tcp_requests: int = 0
    tcp_accepted: int = 0
    tcp_refused: int = 0  # over a limit
    tcp_broken: int = 0  # no STUN, reset, or answers left unread
    tcp_idle: int = 0
    tcp_tls: int = 0  # of the accepted, those that began with TLS
    tcp_open: int = 0
    connect_backs: int = 0  # tried, whatever came of them
    connect_backs_refused: int = 0  # over a limit
    link_sent: int = 0  # answers that the other server was ordered to send
    link_refused: int = 0  # over a limit
    link_carried_out: int = 0  # of the other server's orders
    link_dropped: int = 0  # what was no order, too old, or came twice


@dataclass(frozen=True, slots=True)
class StunAddresses:
    """Where a started server listens, UDP and TCP alike.

    `other` is the endpoint that RFC 5780 clients are told of, None on a server with one address.
    """

    primary: Endpoint
    other: Endpoint | None
    endpoints: tuple[Endpoint, ...]
    counters: StunCounters = field(compare=False)
    #: The port for TLS, where there is one.
    tls: Endpoint | None = None


async def serve_stun(
    listen: str,
    port: int,
    *,
    other_address: str | None = None,
    other_port: int | None = None,
    idle_timeout: float = IDLE_TIMEOUT,
    most_connections: int | None = None,
    connect_back: bool = True,
    link_key: bytes | None = None,
    certificate: CertificateFiles | None = None,
    tls_port: int | None = None,
    share: bool = False,
    requests_of_an_address: float = REQUESTS_OF_AN_ADDRESS,
    task_status: trio.TaskStatus[StunAddresses] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve STUN on the numeric address `listen`, UDP and TCP, until cancelled.

    With `other_address` it is an RFC 5780 server on four endpoints; `other_port` then defaults to 3479
    beside 3478, else to the next port. With `other_port` alone it answers on two ports, and changes the port
    on request. Port 0 lets the kernel choose. `most_connections` defaults to half of the process's file
    descriptors, at most 10,000. "::" serves IPv6 only. `connect_back`: whether TCP clients that ask for it are
    connected to (`_traversal/stun/connect_back.py`), a few at a time. `link_key`: `other_address` is another machine,
    where the same runs with the same key, the same two ports, and our address as its other one; the clocks of both are
    right within some seconds. `certificate`: the TCP ports speak TLS, too, to whoever begins with it, and `tls_port`
    (RFC 8489 section 6.2.3: 5349) is one more of them. `share`: other processes of this user may serve the same port.
    `requests_of_an_address`: so many a second are answered over UDP while more come than can be, of an IPv4 address or
    an IPv6 /64; 0: all.

    Started with a StunAddresses. Raises ConfigurationError for impossible addresses, OSError for those that
    cannot be bound.
    """
    if other_address is not None and other_port is None:
        other_port = DEFAULT_OTHER_PORT if port == DEFAULT_STUN_PORT else port + bool(port)
    _check_addresses(listen, port, other_address, other_port)
    if link_key is not None and (other_address is None or not port or not other_port):
        raise ConfigurationError("a link needs the other server's address, and ports that both know")
    own_other = None if link_key is not None else other_address
    with _bound(listen, port, own_other, other_port, share, link_key is not None) as (
        datagram_sockets,
        listeners,
    ):
        first, last = datagram_sockets[0].local, datagram_sockets[-1].local
        if link_key is not None and other_address is not None:
            last = Endpoint(other_address, last.port)
        core = BindingServer(
            first,
            last.host if other_address else None,
            None if other_port is None else last.port,
            connects_back=connect_back,
            other_is_remote=link_key is not None,
        )
        server = _StunServer(
            core,
            datagram_sockets,
            idle_timeout,
            most_connections or min(_MOST_CONNECTIONS, descriptor_limit() // 2),
            link_key,
            certificate,
            requests_of_an_address or math.inf,
        )
        endpoints = tuple(sock.local for sock in datagram_sockets)
        async with trio.open_nursery() as nursery:
            for sock in datagram_sockets:
                nursery.start_soon(server.serve_datagrams, sock)
            if certificate is not None and tls_port is not None:
                listeners.append(open_listener(listen, tls_port, share=share))
            nursery.start_soon(trio.serve_listeners, server.serve_connection, listeners)
            tls = None if tls_port is None else Endpoint(*listeners[-1].socket.getsockname()[:2])
            task_status.started(
                StunAddresses(first, last if other_address else None, endpoints, server.counters, tls)
            )
    raise AssertionError("the tasks of a server end only by cancellation")


class _StunServer:
    def __init__(
        self,
        core: BindingServer,
        datagram_sockets: list[DatagramSocket],
        idle_timeout: float,
        most_connections: int,
        link_key: bytes | None = None,
        certificate: CertificateFiles | None = None,
        requests_of_an_address: float = math.inf,
    ) -> None:
        self._requests_of_an_address = requests_of_an_address
        self.counters = StunCounters()
        self._core = core
        self._by_endpoint = {sock.local: sock for sock in datagram_sockets}
        self._idle_timeout = idle_timeout
        self._most_connections = most_connections
        self._connections_of: Counter[str] = Counter()
        self._connect_backs = ConnectBacks()
        self._certificate = certificate
        self._link = None if link_key is None else Link(link_key)
        self._link_limit = RateLimit(_LINK_RATE, _LINK_BURST)

    async def serve_datagrams(self, sock: DatagramSocket) -> NoReturn:
        pattern = Pattern.of(partial(self._answer_of, sock.local), ipv6=sock.ipv6) if mmsg.AVAILABLE else None
        if pattern is not None:
            await self._serve_batches(sock, pattern)
        # One wait, many datagrams: a trip through the scheduler costs more than an answer.
        unread = Unread(sock)
        while True:
            await trio.lowlevel.wait_readable(sock.fileno())
            self.counters.udp_unread += unread.new()
            for _ in range(_UDP_BATCH):
                try:
                    data, source, asked = sock.receive(_LONGEST_DATAGRAM)
                except OSError:  # nothing left, or an ICMP error of an earlier answer
                    break
                self._answer_datagram(sock, data, source, asked)

    def _answer_of(self, local: Endpoint, request: bytes, source: Endpoint) -> bytes | None:
        """What goes from `local` back to `source`."""
        reply = self._core.handle_datagram(request, source, local)
        return (
            reply.data
            if reply is not None and (reply.source, reply.destination, reply.error) == (local, source, None)
            else None
        )

    async def _serve_batches(self, sock: DatagramSocket, pattern: Pattern) -> NoReturn:
        kept = _ORDER if self._link is not None else b""
        batch = StunBatch(
            pattern,
            count=_MMSG_BATCH,
            longest=_LONGEST_DATAGRAM,
            ipv6=sock.ipv6,
            wildcard=sock.is_wildcard,
            kept=kept,
            rate=self._requests_of_an_address,
        )
        moderation = mmsg.Moderation()
        unread = Unread(sock)
        while True:
            await trio.lowlevel.wait_readable(sock.fileno())
            self.counters.udp_unread += unread.new()
            began = trio.current_time()
            for _ in range(_MMSG_BATCHES):
                done = batch.exchange(sock.fileno(), began)
                if done is None:
                    break
                self.counters.udp_requests += done.answered
                self.counters.udp_unsent += done.refused
                self.counters.udp_dropped += done.dropped
                self.counters.udp_excessive += done.excessive
                for datagram, source, control in done.rest:
                    asked = [turn_round(*entry) for entry in mmsg.unpack_control(control)]
                    self._answer_datagram(sock, datagram, endpoint_of(unpack_address(source)), asked)
            if pause := moderation.pause(began, trio.current_time(), full=done is not None):
                await trio.sleep(pause)

    def _answer_datagram(self, sock: DatagramSocket, data: bytes, source: Endpoint, asked: Ancillary) -> None:
        if self._link is not None and data[:1] == _ORDER:
            self._carry_out(self._link, data)
            return
        reply = self._core.handle_datagram(data, source, sock.local)
        if reply is None:
            self.counters.udp_dropped += 1
            return
        self.counters.udp_requests += 1
        self.counters.udp_errors += reply.error is not None
        if reply.source not in self._by_endpoint:
            self._have_sent(reply, sock)
            return
        try:
            self._by_endpoint[reply.source].send(reply.data, reply.destination, asked)
        except OSError:
            # A full queue, no route, a firewall, port 0: to the client all of it is a lost packet.
            self.counters.udp_unsent += 1

    def _have_sent(self, reply: Reply, sock: DatagramSocket) -> None:
        """The other server's address is to answer."""
        assert self._link is not None, "there is no other address without it"
        if not self._link_limit.take(reply.destination.host, trio.current_time()):
            self.counters.link_refused += 1
            return
        order = Order(reply.source.port, reply.destination, reply.data)
        try:
            there = self._core.primary._replace(host=reply.source.host)
            sock.send(self._link.seal(order, time.time()), there, [])
            self.counters.link_sent += 1
        except OSError:
            self.counters.udp_unsent += 1

    def _carry_out(self, link: Link, data: bytes) -> None:
        """Send what the other server has us send. Whatever is wrong with its order is counted, never raised."""
        try:
            order = link.open_untrusted(data, time.time())
            sock = self._by_endpoint.get(Endpoint(self._core.primary.host, order.port))
            if sock is None:
                raise BadMessage("the other server has other ports")
        except BadMessage:
            self.counters.link_dropped += 1
            return
        try:
            sock.send(order.response, order.destination, [])
            self.counters.link_carried_out += 1
        except OSError:
            self.counters.udp_unsent += 1

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        try:
            remote, local = stream.socket.getpeername(), stream.socket.getsockname()
        except OSError:  # gone before it was accepted
            return
        host = remote[0]
        if (
            self.counters.tcp_open >= self._most_connections
            or self._connections_of[host] >= _MOST_CONNECTIONS_OF_A_HOST
        ):
            self.counters.tcp_refused += 1
            return
        self.counters.tcp_accepted += 1
        self.counters.tcp_open += 1
        self._connections_of[host] += 1
        tls: TlsStream | None = None
        try:
            if self._certificate is not None:
                with trio.fail_after(self._idle_timeout):
                    if await stream.socket.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
                        self.counters.tcp_tls += 1
                        tls = TlsStream.take_over(stream, self._certificate.context)
                        await tls.do_handshake()
            await self._answer_stream(tls or stream, Endpoint(host, remote[1]), Endpoint(local[0], local[1]))
        except (BadMessage, OSError, trio.BrokenResourceError, trio.TooSlowError):
            self.counters.tcp_broken += 1
        finally:
            if tls is not None:
                tls.close()
            self.counters.tcp_open -= 1
            self._connections_of[host] -= 1
            if not self._connections_of[host]:
                del self._connections_of[host]

    async def _answer_stream(self, stream: trio.abc.Stream, remote: Endpoint, local: Endpoint) -> None:
        splitter = MessageSplitter(_LONGEST_TCP_REQUEST)
        while True:
            messages: list[bytes] = []
            # The time runs until a request is whole: single octets do not keep a connection alive.
            with trio.move_on_after(self._idle_timeout) as waiting:
                while not messages:
                    data = await stream.receive_some(_TCP_RECEIVE_SIZE)
                    if not data:
                        return
                    messages = splitter.receive_data(bytes(data))
            if waiting.cancelled_caught:
                self.counters.tcp_idle += 1
                return
            answers = bytearray()
            for message in messages:
                self.counters.tcp_requests += 1
                answer = self._core.handle_stream_message(message, remote, local)
                if isinstance(answer, ConnectBackOrder):
                    answer = await self._connect_back(answer)
                answers += answer or b""
            if answers:
                with trio.fail_after(_SEND_TIMEOUT):
                    await stream.send_all(answers)

    async def _connect_back(self, order: ConnectBackOrder) -> bytes:
        outcome, origin = await self._connect_backs.carry_out(order)
        self.counters.connect_backs += outcome is not ConnectBackOutcome.NOT_TRIED
        self.counters.connect_backs_refused += outcome is ConnectBackOutcome.NOT_TRIED
        return self._core.connect_back_response(order, outcome, origin)


def _check_addresses(listen: str, port: int, other_address: str | None, other_port: int | None) -> None:
    if other_port is not None and other_port == port != 0:
        raise ConfigurationError("the other port must differ from the port")
    if other_address is not None:
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in (listen, other_address)]
        if addresses[0] == addresses[1] or addresses[0].version != addresses[1].version:
            raise ConfigurationError("the other address must be a different one of the same family")
        if any(address.is_unspecified for address in addresses):
            # The answer must come from the address that the client is told, so both must be known.
            raise ConfigurationError("with another address, both must be given, and not as a wildcard")


@contextmanager
def _bound(
    listen: str, port: int, other_address: str | None, other_port: int | None, share: bool, linked: bool
) -> Iterator[tuple[list[DatagramSocket], list[trio.SocketListener]]]:
    """The sockets of every endpoint, the primary first, the other one last; closed at the end."""
    for attempt in range(_BIND_ATTEMPTS):
        with ExitStack() as stack:
            hosts = [listen] if other_address is None else [listen, other_address]
            ports = [port] if other_port is None else [port, other_port]
            datagram_sockets: list[DatagramSocket] = []
            listeners: list[trio.SocketListener] = []
            try:
                for host in hosts:
                    for index, number in enumerate(ports):
                        sock = DatagramSocket(
                            stack.enter_context(
                                _open(host, number, socket.SOCK_DGRAM, share=share, linked=linked)
                            )
                        )
                        ports[index] = sock.local.port
                        listener = stack.enter_context(
                            _open(host, sock.local.port, socket.SOCK_STREAM, share=share, linked=False)
                        )
                        listener.listen(_TCP_BACKLOG)
                        datagram_sockets.append(sock)
                        listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(listener)))
            except OSError as error:
                kernel_chooses = port == 0 or other_port == 0
                if error.errno == errno.EADDRINUSE and kernel_chooses and attempt < _BIND_ATTEMPTS - 1:
                    continue
                raise
            yield datagram_sockets, listeners
            return


def _open(host: str, port: int, kind: socket.SocketKind, *, share: bool, linked: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            enlarge(sock, _RECEIVE_BUFFER)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            only_binding_requests(sock, _ORDER if linked else b"")
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
