"""Sockets that punch: an explicit port shared by all of them, and the connect() loop."""

from __future__ import annotations

import _socket
import errno
import os
import random
import socket as stdlib_socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.machine import PunchMachine

T = TypeVar("T")

# Below Linux's and IANA's ephemeral ranges (32768, 49152), so that no automatic port meets ours.
PORT_RANGE = (20000, 32767)
_BIND_TRIES = 200
_LISTEN_BACKLOG = 64

# Seconds of idleness before the first probe, seconds between probes, and how many unanswered ones end it.
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}

# Offset of tcpi_rtt (u32, microseconds) in Linux's struct tcp_info.
_TCP_INFO_RTT = struct.Struct("=68xI")

# Seconds until the next accept() when the system is out of descriptors or memory.
ACCEPT_PAUSE = 0.1
_ACCEPT_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_rng = random.SystemRandom()


def choose_port() -> int:
    """A TCP port of PORT_RANGE that nothing on this machine uses now. Raises OSError (EADDRINUSE).

    Never 0: a socket bound to port 0 loses its port when a connect() fails.
    """
    for _ in range(_BIND_TRIES):
        port = _rng.randint(*PORT_RANGE)
        # Without SO_REUSEPORT the bind fails even beside sockets that would share the port.
        with stdlib_socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return port
    raise OSError(errno.EADDRINUSE, f"no free TCP port between {PORT_RANGE[0]} and {PORT_RANGE[1]}")


def open_punch_socket(port: int) -> trio.socket.SocketType:
    """A TCP socket bound to `port` on all addresses, sharing it with every other socket made here.

    Every socket of the port needs both options *before* bind(), the one that asks the STUN server included.
    Where there is no SO_REUSEPORT (Windows), SO_REUSEADDR alone shares.
    """
    return _to_trio(_bound_socket(port))


def open_punch_listener(port: int) -> trio.socket.SocketType:
    """A listening socket on the shared port: it takes the SYN that comes before, or between, our connect()s."""
    sock = _bound_socket(port)
    try:
        # The kernel's own listen(): in a patched process the class's would publish a wildcard listener.
        _socket.socket.listen(sock, _LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return _to_trio(sock)


def _bound_socket(port: int) -> stdlib_socket.socket:
    sock = stdlib_socket.socket()
    try:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if hasattr(stdlib_socket, "SO_REUSEPORT"):
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEPORT, 1)
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        sock.bind(("0.0.0.0", port))
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


async def punch(port: int, remote: Endpoint, machine: PunchMachine) -> trio.socket.SocketType:
    """Call connect() from `port` to `remote` as the machine says until it succeeds, each time on a fresh socket.

    Raises OSError when the machine gives up; without a caller's deadline a silent path waits for the kernel's
    own time-out (about two minutes). Cancelling closes the socket.
    """
    return await _punch(lambda: _connect_once(port, remote), machine)


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


async def _connect_once(port: int, remote: Endpoint) -> trio.socket.SocketType:
    sock = open_punch_socket(port)
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
        probe.connect(destination)
        return str(probe.getsockname()[0])


def local_addresses() -> tuple[str, ...]:
    """This machine's IPv4 addresses, loopback left out. Empty where the platform does not tell."""
    if not sys.platform.startswith("linux"):
        return ()
    import fcntl

    siocgifaddr = 0x8915
    found: list[str] = []
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as sock:
        for _, name in stdlib_socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(sock, siocgifaddr, request)
            except OSError:  # an interface without an IPv4 address
                continue
            found.append(stdlib_socket.inet_ntoa(answer[20:24]))
    return tuple(address for address in found if not address.startswith("127."))
