"""A UDP server socket that answers from the address that was asked.

Bound to a wildcard on a host with several addresses, a plain `sendto` answers from whichever address the
route prefers, and the client's NAT drops that. The kernel tells and takes the address as ancillary data.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

from ntcpsock._address import Endpoint

#: Linux, `linux/in.h`; the socket module of Python 3.11 does not export it.
_IP_PKTINFO = 8
# struct in_pktinfo: interface index, local address (ours for routing), destination of the header.
_PKTINFO_V4 = struct.Struct("=I4s4s")
_ANCILLARY_SIZE = 128
#: Octets of an address as the kernel has it: of a struct sockaddr_in6, the longer one.
ADDRESS_LENGTH = 28
# struct sockaddr_in and sockaddr_in6: family, port; address; flow and scope in the second.
_IPV4 = struct.Struct("=H2s4s")
_IPV6 = struct.Struct("=H2sI16sI")
_INET = struct.pack("=H", socket.AF_INET)

Ancillary = list[tuple[int, int, bytes]]


class Datagram(NamedTuple):
    """What came, from whom, and what `send` needs to answer from the address that was asked."""

    data: bytes
    source: Endpoint
    asked: Ancillary


class DatagramSocket:
    """A bound non-blocking UDP socket; wait for it with `trio.lowlevel.wait_readable(self.fileno())`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        host, port = sock.getsockname()[:2]
        self.local = Endpoint(host, port)
        self.ipv6 = sock.family == socket.AF_INET6
        self.is_wildcard = ipaddress.ip_address(host.partition("%")[0]).is_unspecified
        if self.is_wildcard and self.ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self.is_wildcard:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def fileno(self) -> int:
        return self._sock.fileno()

    def get_option(self, level: int, option: int, size: int) -> bytes:
        """`getsockopt`."""
        return self._sock.getsockopt(level, option, size)

    def receive(self, size: int) -> Datagram:
        """The next datagram, cut to `size`. Raises BlockingIOError when there is none, and OSError."""
        if not self.is_wildcard:
            data, source = self._sock.recvfrom(size)
            return Datagram(data, endpoint_of(source), [])
        data, ancillary, _flags, source = self._sock.recvmsg(size, _ANCILLARY_SIZE)
        return Datagram(data, endpoint_of(source), [turn_round(*entry) for entry in ancillary])

    def send(self, data: bytes, destination: tuple[str | int, ...], asked: Ancillary) -> None:
        """Send, from the address that was asked. Raises BlockingIOError when the kernel's queue is full (UDP
        may lose it, so the caller drops it), and OSError."""
        if asked:
            self._sock.sendmsg([data], asked, 0, destination)
        else:
            self._sock.sendto(data, destination)

    def close(self) -> None:
        self._sock.close()


def endpoint_of(address: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """A source as others should see it: mapped IPv4 as IPv4, a link-local address with its scope."""
    host = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    if len(address) == 4 and address[3] and "%" not in host:
        host = f"{host}%{address[3]}"
    return Endpoint(host, address[1])


def socket_address(endpoint: Endpoint, ipv6: bool) -> tuple[str, int] | tuple[str, int, int, int]:
    """The way back, for an IPv4 or an IPv6 socket."""
    if not ipv6:
        return endpoint.host, endpoint.port
    host, _, scope = endpoint.host.partition("%")
    if ":" not in host:
        host = f"::ffff:{host}"
    return host, endpoint.port, 0, int(scope) if scope.isdecimal() else 0


def pack_address(address: tuple[str, int] | tuple[str, int, int, int]) -> bytes:
    """The kernel's form of an address of the socket module, in 28 bytes."""
    port = address[1].to_bytes(2)
    if len(address) == 2:
        packed = _IPV4.pack(socket.AF_INET, port, socket.inet_pton(socket.AF_INET, address[0]))
    else:
        host = socket.inet_pton(socket.AF_INET6, address[0])
        packed = _IPV6.pack(socket.AF_INET6, port, address[2], host, address[3])
    return packed.ljust(ADDRESS_LENGTH, b"\0")


def unpack_address(packed: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """The way back."""
    if packed[:2] == _INET:
        _, port, address = _IPV4.unpack_from(packed)
        return socket.inet_ntop(socket.AF_INET, address), int.from_bytes(port)
    _, port, flow, address, scope = _IPV6.unpack_from(packed)
    return socket.inet_ntop(socket.AF_INET6, address), int.from_bytes(port), flow, scope


def turn_round(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The ancillary data of an answer, from that of the question."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) == _PKTINFO_V4.size:
        _interface, local, _destination = _PKTINFO_V4.unpack(data)
        # Interface 0: the route back decides, which need not be the way in.
        return level, kind, _PKTINFO_V4.pack(0, local, bytes(4))
    return level, kind, data
