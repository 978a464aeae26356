"""Sockets that punch: an explicit port shared by all of them, and the connect() loop."""

from __future__ import annotations

import _socket
import errno
import functools
import os
import socket as stdlib_socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.interfaces import prefer_lasting_source
from ntcpsock._traversal.punch.fresh import PORT_RANGE, FreshPorts
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.machine import PunchMachine

T = TypeVar("T")

_BIND_TRIES = 200
_LISTEN_BACKLOG = 64

# Seconds of idleness before the first probe, seconds between probes, and how many unanswered ones end it.
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}

# Offset of tcpi_rtt (u32, microseconds) in Linux's struct tcp_info.
_TCP_INFO_RTT = struct.Struct("=68xI")

# Seconds until the next accept() when the system is out of descriptors or memory.
ACCEPT_PAUSE = 0.1
_ACCEPT_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_fresh = FreshPorts()


def choose_port(number: int = 0) -> int:
    """A TCP port of PORT_RANGE that nothing on this machine uses now, in either family: `number`, where that is one.
    Raises OSError (EADDRINUSE).

    Never 0: a socket bound to port 0 loses its port when a connect() fails.
    """
    for attempt in range(_BIND_TRIES):
        port = number if number and not attempt else _fresh.draw()
        # Without SO_REUSEPORT the bind fails even beside sockets that would share the port.
        try:
            for ipv6 in (False, True) if has_ipv6() else (False,):
                with _new_socket(ipv6) as probe:
                    probe.bind(_wildcard(ipv6, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return port
    raise OSError(errno.EADDRINUSE, f"no free TCP port between {PORT_RANGE[0]} and {PORT_RANGE[1]}")


@functools.cache
def has_ipv6() -> bool:
    """Whether the system has IPv6 at all; it may have no address."""
    try:
        _new_socket(ipv6=True).close()
    except OSError:
        return False
    return True


def open_punch_socket(port: int, *, ipv6: bool = False, source: str = "") -> trio.socket.SocketType:
    """A TCP socket bound to `port` on all addresses of a family, or on `source`, sharing it with every other socket
    made here.

    Every socket of the port needs both options *before* bind(), the one that asks the STUN server included.
    Where there is no SO_REUSEPORT (Windows), SO_REUSEADDR alone shares.
    """
    return _to_trio(_bound_socket(port, ipv6, source))


def open_punch_listener(port: int, *, ipv6: bool = False) -> trio.socket.SocketType:
    """A listening socket on the shared port: it takes the SYN that comes before, or between, our connect()s."""
    sock = _bound_socket(port, ipv6, "")
    try:
        # The kernel's own listen(): in a patched process the class's would publish a wildcard listener.
        _socket.socket.listen(sock, _LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return _to_trio(sock)


def _new_socket(ipv6: bool) -> stdlib_socket.socket:
    if not ipv6:
        return stdlib_socket.socket()
    sock = stdlib_socket.socket(stdlib_socket.AF_INET6)
    try:
        sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
        prefer_lasting_source(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def bound_to(port: int, remote: Endpoint, source: str) -> Endpoint:
    """Where a socket that punches towards `remote` is bound."""
    return Endpoint(source, port) if source else _wildcard(remote.is_ipv6, port)


def _wildcard(ipv6: bool, port: int) -> Endpoint:
    return Endpoint("::" if ipv6 else "0.0.0.0", port)


def _bound_socket(port: int, ipv6: bool, source: str) -> stdlib_socket.socket:
    sock = _new_socket(ipv6)
    try:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if hasattr(stdlib_socket, "SO_REUSEPORT"):
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEPORT, 1)
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        sock.bind((source, port) if source else _wildcard(ipv6, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _to_trio(sock: stdlib_socket.socket) -> trio.socket.SocketType:
    try:
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


async def punch(
    port: int, remote: Endpoint, machine: PunchMachine, source: str = ""
) -> trio.socket.SocketType:
    """Call connect() from `port` to `remote` as the machine says until it succeeds, each time on a fresh socket.
    source: the own address to come from; "": the one that leads there.

    Raises OSError when the machine gives up; without a caller's deadline a silent path waits for the kernel's
    own time-out (about two minutes). Cancelling closes the socket.
    """
    return await _punch(lambda: _connect_once(port, remote, source), machine)


async def punch_with(given: GivenSocket, remote: Endpoint, machine: PunchMachine) -> None:
    """As `punch`, with one and the same socket, which is bound already and stays open whatever happens."""
    await _punch(lambda: given.connect(remote), machine)


async def _punch(connect: Callable[[], Awaitable[T]], machine: PunchMachine) -> T:
    machine.start(trio.current_time())
    last = errno.ETIMEDOUT
    while (when := machine.next_timeout()) is not None:
        await trio.sleep_until(when)
        machine.connecting()
        try:
            return await connect()
        except OSError as error:
            last = error.errno or errno.EIO
            machine.failed(last, trio.current_time())
    raise OSError(last, f"{os.strerror(last)} ({machine.finished})")


async def _connect_once(port: int, remote: Endpoint, source: str) -> trio.socket.SocketType:
    sock = open_punch_socket(port, ipv6=remote.is_ipv6, source=source)
    try:
        await sock.connect(remote)
        if sock.getpeername()[:2] == sock.getsockname()[:2]:
            # A connect() to one's own address and port meets itself (RFC 9293 section 3.5, simultaneous open).
            raise OSError(errno.ECONNABORTED, "connected to itself")
    except BaseException:
        sock.close()
        raise
    return sock


async def accept_connections(
    listener: trio.socket.SocketType, handle: Callable[[trio.socket.SocketType, Endpoint], None]
) -> None:
    """Accept until the listener is closed; `handle` takes over each socket at once."""
    while True:
        try:
            sock, address = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            if error.errno == errno.EBADF:
                return
            # Out of descriptors or memory: the connection stays in the queue, so wait for better times. All
            # else (ECONNABORTED and other network errors that Linux passes through) concerns one connection.
            await trio.sleep(ACCEPT_PAUSE if error.errno in _ACCEPT_EXHAUSTED else 0)
            continue
        handle(sock, Endpoint(*address[:2]))


def keep_mapping_alive(sock: stdlib_socket.socket) -> None:
    """Have the kernel probe an idle connection, so that no NAT forgets it and a dead path is noticed.

    RFC 5382 REQ-5 asks NATs for 2 hours; many keep an idle connection for minutes only. An application that has
    chosen probes for its own socket keeps its choice.
    """
    if sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE):
        return
    sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(stdlib_socket, name):
            sock.setsockopt(stdlib_socket.IPPROTO_TCP, getattr(stdlib_socket, name), value)


def path_rtt(sock: stdlib_socket.socket) -> float | None:
    """The kernel's estimate of the path's round-trip time in seconds, where the platform tells."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, _TCP_INFO_RTT.size)
    except OSError:
        return None
    return float(_TCP_INFO_RTT.unpack(info)[0]) / 1e6 if len(info) == _TCP_INFO_RTT.size else None


def source_address(destination: Endpoint) -> str:
    """The local address from which the kernel would send to `destination`; nothing is sent. Raises OSError."""
    family = stdlib_socket.AF_INET6 if destination.is_ipv6 else stdlib_socket.AF_INET
    with stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM) as probe:
        if destination.is_ipv6:
            prefer_lasting_source(probe)
        probe.connect(destination)
        return str(probe.getsockname()[0])
