"""The STUN server connects to a TCP client that asked for it (see `_traversal/stun/connect_back.py`).

Only to the address and port that the request came from, a few at once, a few a client and second: what a client gets
out of it is one SYN to itself, and what a server's operator risks is bounded by the numbers below.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress

import trio

from ntcpsock._address import Endpoint
from ntcpsock._servers.limits import RateLimit
from ntcpsock._traversal.stun.connect_back import ConnectBackOutcome
from ntcpsock._traversal.stun.server import ConnectBackOrder

#: Seconds until a silent client counts as silent. The client waits for this long, so it is short.
CONNECT_BACK_TIMEOUT = 1.5
_MOST_AT_ONCE = 64
# For each client address: many users may be behind one NAT.
_RATE, _BURST = 4.0, 24.0
# Seconds for the client to take twelve octets.
_SEND_TIMEOUT = 1.0

# Linux: what arrived as an ICMP error is told apart from a RST by the socket's error queue.
_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_MSG_ERRQUEUE = 0x2000
_FROM_ICMP = (2, 3)
# struct sock_extended_err: errno, origin, type, code, pad, info, data.
_EXTENDED_ERROR = struct.Struct("=IBBBBII")


class ConnectBacks:
    """The connections to clients that are under way."""

    def __init__(self) -> None:
        self._limit = RateLimit(_RATE, _BURST)
        self._under_way = 0

    async def carry_out(self, order: ConnectBackOrder) -> tuple[ConnectBackOutcome, Endpoint | None]:
        """Connect, say the transaction id, close. The outcome, and from where; None where nothing was sent."""
        if self._under_way >= _MOST_AT_ONCE or not self._limit.take(order.target.host, trio.current_time()):
            return ConnectBackOutcome.NOT_TRIED, None
        self._under_way += 1
        try:
            return await _connect(order)
        finally:
            self._under_way -= 1


async def _connect(order: ConnectBackOrder) -> tuple[ConnectBackOutcome, Endpoint | None]:
    family = socket.AF_INET6 if order.target.is_ipv6 else socket.AF_INET
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError:  # out of descriptors
        return ConnectBackOutcome.NOT_TRIED, None
    with sock:
        try:
            _prepare(sock, family)
            await sock.bind((order.host, 0))
        except OSError:
            return ConnectBackOutcome.NOT_TRIED, None
        origin = Endpoint(*sock.getsockname()[:2])
        try:
            with trio.fail_after(CONNECT_BACK_TIMEOUT):
                await sock.connect(tuple(order.target))
        except (trio.TooSlowError, TimeoutError):
            return ConnectBackOutcome.TIMED_OUT, origin
        except OSError as error:
            if _icmp_said_so(sock):
                return ConnectBackOutcome.ICMP, origin
            refused = isinstance(error, ConnectionRefusedError)
            # Anything else is trouble of this machine (no route, a full table), and says nothing of the client.
            return (ConnectBackOutcome.RESET if refused else ConnectBackOutcome.NOT_TRIED), origin
        with trio.move_on_after(_SEND_TIMEOUT), suppress(OSError):  # the handshake was the answer
            await sock.send(order.request.transaction_id)
        return ConnectBackOutcome.CONNECTED, origin


def _prepare(sock: trio.socket.SocketType, family: int) -> None:
    if sys.platform.startswith("linux"):
        sock.setsockopt(*_RECVERR[socket.AddressFamily(family)], 1)


def _icmp_said_so(sock: trio.socket.SocketType) -> bool:
    """Whether the error that ended the connect was an ICMP message; False too where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return False
    with socket.socket(fileno=socket.dup(sock.fileno())) as plain:
        try:
            _, ancillary, _, _ = plain.recvmsg(512, 512, _MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            return False
    return any(
        len(data) >= _EXTENDED_ERROR.size and _EXTENDED_ERROR.unpack_from(data)[1] in _FROM_ICMP
        for _, _, data in ancillary
    )
