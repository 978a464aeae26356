"""Whose is the other end on loopback? TCP and UDP have no SO_PEERCRED; the kernel tells otherwise.

Linux is asked by sock_diag(7), which finds one socket among any number, and where that is not allowed by
/proc/net/tcp. Other systems cannot be asked: there the answer is None.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, NamedTuple

from ntcpsock._socket import NTCPSocket

_Plain: Any = NTCPSocket.__mro__[1]  # whatever the module calls `socket` now

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 before its id: family, protocol, ext, states
_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, INET_DIAG_NOCOOKIE twice
# struct inet_diag_msg: family, state, timer and retransmits, then its id, expires and two queues
_STATE_OFFSET = _HEADER.size + 1
_USER_OFFSET = _HEADER.size + 4 + 48 + 12
_USER = struct.Struct("=II")  # user id, inode
_ALL_STATES = 0xFFFFFFFF
_TCP_LISTEN = 10  # linux/include/net/tcp_states.h
_KERNEL_DEADLINE = 1.0  # it answers within the call

# Columns of /proc/net/tcp and tcp6.
_LOCAL, _REMOTE, _STATE, _UID, _INODE = 1, 2, 3, 7, 9

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


class Owner(NamedTuple):
    """user: the id of who made the socket; inode: what fstat says of its descriptor."""

    user: int
    inode: int


def owner(local: tuple[str, int], remote: tuple[str, int]) -> Owner | None:
    """Who holds the TCP socket at `local` that is connected to `remote` (both IPv4, or both IPv6).

    None: there is no such connection, its process has closed it, or the system cannot be asked.
    """
    with suppress(OSError):
        return _ask(local, remote, listening=False)
    return None


def listener_owner(local: tuple[str, int]) -> Owner | None:
    """Who listens at `local`; None: nobody. An address that listeners share is answered for one of them.

    Raises OSError where the system cannot be asked.
    """
    return _ask(local, ("::" if ":" in local[0] else "0.0.0.0", 0), listening=True)


def datagram_owner(local: tuple[str, int], remote: tuple[str, int]) -> Owner | None:
    """Who holds the UDP socket that gets what is sent from `remote` to `local`; None as for `owner`."""
    with suppress(OSError):
        return _ask(local, remote, protocol=socket.IPPROTO_UDP)
    return None


def _ask(
    local: tuple[str, int],
    remote: tuple[str, int],
    *,
    listening: bool = False,
    protocol: int = socket.IPPROTO_TCP,
) -> Owner | None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "this system does not say whose a socket is")
    try:
        found = by_diag(local, remote, listening=listening, protocol=protocol)
    except OSError:
        if protocol == socket.IPPROTO_UDP:
            found = datagrams_by_proc(local, remote)
        else:
            found = by_proc(local, remote, listening=listening)
    # What no process holds any more is shown as root's, without an inode.
    return found if found is not None and found.inode else None


def by_diag(
    local: tuple[str, int],
    remote: tuple[str, int],
    *,
    listening: bool = False,
    protocol: int = socket.IPPROTO_TCP,
) -> Owner | None:
    """Ask sock_diag. Raises OSError where it may not be asked; None: there is no such socket."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    if protocol == socket.IPPROTO_UDP:
        # net/ipv4/udp_diag.c: "src and dst are swapped" there, and the socket is looked up as for a packet.
        local, remote = remote, local
    addresses = b"".join(socket.inet_pton(family, host).ljust(16, b"\0") for host in (local[0], remote[0]))
    body = (
        _REQUEST.pack(family, protocol, 0, _ALL_STATES)
        + struct.pack("!HH", local[1], remote[1])
        + addresses
        + _NO_COOKIE
    )
    with _Plain(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(_KERNEL_DEADLINE)
        diag.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body)
        answer = diag.recv(4096)
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if code == errno.ENOENT:
            return None
        raise OSError(code, os.strerror(code))
    # For a connection that there is none of, the kernel shows who listens at its address.
    if protocol == socket.IPPROTO_TCP and (answer[_STATE_OFFSET] == _TCP_LISTEN) != listening:
        return None
    return Owner(*_USER.unpack_from(answer, _USER_OFFSET))


def by_proc(local: tuple[str, int], remote: tuple[str, int], *, listening: bool = False) -> Owner | None:
    """Look into /proc/net/tcp and tcp6, where IPv4 sockets of AF_INET6 are. Raises OSError where that is impossible."""
    for family, table in zip(_FAMILIES, ("/proc/net/tcp", "/proc/net/tcp6"), strict=True):
        if family == socket.AF_INET and ":" in local[0]:
            continue
        if family == socket.AF_INET6 and not os.path.exists(table):
            continue  # a system without IPv6
        wanted = [_hexadecimal(local, family), _hexadecimal(remote, family)]
        with open(table, encoding="ascii") as lines:
            for line in lines:
                columns = line.split()
                if columns[_LOCAL : _REMOTE + 1] == wanted and (columns[_STATE] == "0A") == listening:
                    return Owner(int(columns[_UID]), int(columns[_INODE]))
    return None


def datagrams_by_proc(local: tuple[str, int], remote: tuple[str, int]) -> Owner | None:
    """Look into /proc/net/udp and udp6. What is bound to this very address comes before what is bound to all."""
    best: tuple[int, Owner] | None = None
    for family, table in zip(_FAMILIES, ("/proc/net/udp", "/proc/net/udp6"), strict=True):
        if family == socket.AF_INET6 and not os.path.exists(table):
            continue
        own = (_hexadecimal(local, family), _hexadecimal((_ANY[family], local[1]), family))
        others = (_hexadecimal(remote, family), _hexadecimal((_ANY[family], 0), family))
        with open(table, encoding="ascii") as lines:
            for line in lines:
                columns = line.split()
                if columns[_LOCAL] not in own or columns[_REMOTE] not in others:
                    continue
                score = 2 * (columns[_REMOTE] == others[0]) + (columns[_LOCAL] == own[0])
                if best is None or score > best[0]:
                    best = score, Owner(int(columns[_UID]), int(columns[_INODE]))
    return None if best is None else best[1]


def _hexadecimal(address: tuple[str, int], family: int) -> str:
    """As the kernel prints it: 32 bits a time as numbers of this machine's byte order."""
    host = address[0]
    if family == socket.AF_INET6 and ":" not in host:
        host = "::ffff:" + host
    words = struct.iter_unpack("=I", socket.inet_pton(family, host))
    return "".join(f"{word:08X}" for (word,) in words) + f":{address[1]:04X}"
