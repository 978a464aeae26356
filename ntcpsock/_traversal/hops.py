"""How far away the outermost NAT of our own side is: the TTL of a segment that passes it and goes no further.

Routers answer a packet whose TTL ends with them by ICMP time exceeded (RFC 792). Those before our outermost NAT have
private addresses, or its public one; the first with another address is behind it.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from ipaddress import IPv4Address

import trio

from ntcpsock._address import is_private_address

# Hops that are looked at. No packet gets further, so a peer that lies about its address can aim these few at nobody
# but our own provider's routers.
MAX_HOPS = 8

# Seconds for the answers: routers are slow to write them. Those near are there earlier.
PROBE_DEADLINE = 0.6

# The ports of traceroute, where nobody listens: the port of an answer tells which probe it is about.
_FIRST_PORT = 33434

# linux/in.h, linux/errqueue.h; the socket module of Python 3.11 does not export them.
IP_MINTTL = 21
_IP_RECVERR = 11
_MSG_ERRQUEUE = 0x2000
_ORIGIN_ICMP = 2
_TIME_EXCEEDED = 11
# struct sock_extended_err (errno, origin, type, code, pad, info, data), then the sockaddr_in of who complains.
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_OFFENDER = struct.Struct("=2x2x4s8x")


async def find_low_ttl(remote_host: str, own_hosts: frozenset[str]) -> int | None:
    """The smallest TTL with which a packet towards `remote_host` passes the outermost NAT of this side.

    own_hosts: the public addresses of that NAT. None where nothing tells: no answers, UDP blocked, not Linux. Sends
    MAX_HOPS empty datagrams. Cancelling is safe.
    """
    if not sys.platform.startswith("linux") or ":" in remote_host:
        return None
    answered: dict[int, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        with trio.move_on_after(PROBE_DEADLINE):
            for ttl in range(1, MAX_HOPS + 1):
                _send(sock, remote_host, ttl)
            while (found := choose_low_ttl(answered, own_hosts | {remote_host})) is None or any(
                ttl not in answered for ttl in range(1, found)
            ):
                # An entry in the error queue makes a socket readable.
                await trio.lowlevel.wait_readable(sock)
                _read_errors(sock, answered)
    return choose_low_ttl(answered, own_hosts | {remote_host})


def choose_low_ttl(answered: dict[int, str], ends: frozenset[str]) -> int | None:
    """Of the TTLs and who complained about each, the first that ended between both sides' NATs, whose addresses are
    `ends`."""
    for ttl in sorted(answered):
        if not is_private_address(answered[ttl]) and answered[ttl] not in ends:
            return ttl
    return None


def _send(sock: socket.socket, host: str, ttl: int) -> None:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    for _ in range(2):
        try:
            sock.sendto(b"", (host, _FIRST_PORT + ttl))
        except OSError:
            continue  # the answer to an earlier probe is told here too; or no network, and then nothing answers
        return


def _read_errors(sock: socket.socket, answered: dict[int, str]) -> None:
    while True:
        try:
            _, ancillary, _, address = sock.recvmsg(64, 256, _MSG_ERRQUEUE)
        except OSError:  # EAGAIN: that was all of them
            break
        for level, kind, data in ancillary:
            if (level, kind) != (socket.IPPROTO_IP, _IP_RECVERR):
                continue
            if len(data) < _EXTENDED_ERROR.size + _OFFENDER.size:
                continue
            _, origin, icmp_type, *_ = _EXTENDED_ERROR.unpack_from(data)
            if (origin, icmp_type) == (_ORIGIN_ICMP, _TIME_EXCEEDED):
                (offender,) = _OFFENDER.unpack_from(data, _EXTENDED_ERROR.size)
                answered[address[1] - _FIRST_PORT] = str(IPv4Address(offender))
    with suppress(OSError):
        sock.recv(1)  # what somebody sent us, which is nothing
