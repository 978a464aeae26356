"""Many datagrams a system call: UDP_SEGMENT where the kernel cuts, UDP_GRO where it joins, one by one elsewhere.

A batch is one buffer and the size of its segments: every datagram in it has that size, the last one may be
shorter. Linux' include/uapi/linux/udp.h has the options, net/ipv4/udp_offload.c their limits.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
_SOL_UDP: Final = 17
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
# Sets "don't fragment" and ignores the kernel's memory of ICMP errors, which a stranger could have forged.
_PMTUDISC_PROBE: Final = 3

MOST_SEGMENTS: Final = 64  # UDP_MAX_SEGMENTS of older kernels
MOST_BYTES: Final = 65000  # of one IP packet, headers aside
RECEIVE_SIZE: Final = 65535
_CONTROL_SIZE: Final = socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0
_UINT16: Final = struct.Struct("=H")
_INT: Final = struct.Struct("=i")

# What the kernel or the driver says where it does not cut datagrams after all.
_NO_SEGMENTATION: Final = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
# A datagram that could not leave now is as one that was lost on the way.
_LOST: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EACCES})

Address = tuple[str, int] | tuple[str, int, int, int]


def prepare(sock: socket.socket, buffer: int) -> bool:
    """Set `sock` up for large batches, each part where the system has it; whether it joins what arrives (GRO).

    buffer: bytes of kernel memory wanted in each direction; the system may allow less.
    """
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        with suppress(OSError):
            if sock.getsockopt(socket.SOL_SOCKET, option) < buffer:
                sock.setsockopt(socket.SOL_SOCKET, option, buffer)
    if not hasattr(socket, "SO_BINDTODEVICE"):  # the numbers below are Linux'
        return False
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    try:
        sock.setsockopt(_SOL_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True


def can_segment(sock: socket.socket) -> bool:
    """Whether the kernel knows UDP_SEGMENT; a device may refuse it later."""
    try:
        sock.getsockopt(_SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return hasattr(socket, "CMSG_SPACE")


class Sender:
    """Sends batches over `sock`. lost: datagrams that the system refused to take."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments = can_segment(sock)
        self.lost = 0

    def send(self, datagrams: Sequence[bytes | memoryview], address: Address | None) -> int:
        """How many of `datagrams` have gone; fewer where the socket takes no more. Raises OSError."""
        sent = 0
        while sent < len(datagrams):
            end = self._run_end(datagrams, sent) if self._segments else sent + 1
            try:
                if end - sent == 1:
                    self._send_one(datagrams[sent], address)
                else:
                    self._send_run(datagrams[sent:end], address)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno == errno.EMSGSIZE or (end - sent > 1 and error.errno in _NO_SEGMENTATION):
                    # Too large for the device, perhaps only since the route changed, or ICMP's word about an earlier
                    # one, with which the kernel has sent nothing: one by one tells.
                    self._segments = error.errno == errno.EMSGSIZE
                    end = sent + self._send_each(datagrams[sent:end], address)
                elif error.errno in _LOST:
                    self.lost += end - sent
                else:
                    raise
            sent = end
        return sent

    def _send_one(self, datagram: bytes | memoryview, address: Address | None) -> None:
        if address is None:
            self._sock.send(datagram)
        else:
            self._sock.sendto(datagram, address)

    def _send_run(self, run: Sequence[bytes | memoryview], address: Address | None) -> None:
        control = [(_SOL_UDP, UDP_SEGMENT, _UINT16.pack(len(run[0])))]
        if address is None:
            self._sock.sendmsg(run, control)
        else:
            self._sock.sendmsg(run, control, 0, address)

    def _send_each(self, run: Sequence[bytes | memoryview], address: Address | None) -> int:
        for index, datagram in enumerate(run):
            try:
                self._send_one(datagram, address)
            except (BlockingIOError, InterruptedError):
                return index
            except OSError as error:
                if error.errno not in _LOST:
                    raise
                self.lost += 1
        return len(run)

    @staticmethod
    def _run_end(datagrams: Sequence[bytes | memoryview], start: int) -> int:
        """Where the run ends that begins at `start`: equal sizes, of which the last may be smaller."""
        size = len(datagrams[start])
        most = min(len(datagrams), start + min(MOST_SEGMENTS, max(1, MOST_BYTES // max(1, size))))
        end = start + 1
        while end < most:
            length = len(datagrams[end])
            if length > size or not length:
                break
            end += 1
            if length < size:
                break
        return end


def receive(sock: socket.socket, joins: bool) -> tuple[bytes, int, Address]:
    """One batch: buffer, segment size, and where it came from. Raises BlockingIOError where there is none.

    joins: whether UDP_GRO is set.
    """
    if not joins:
        data, address = sock.recvfrom(RECEIVE_SIZE)
        return data, len(data) or 1, address
    data, control, _, address = sock.recvmsg(RECEIVE_SIZE, _CONTROL_SIZE)
    for level, kind, value in control:
        if level == _SOL_UDP and kind == UDP_GRO:
            return data, _INT.unpack_from(value)[0] or 1, address
    return data, len(data) or 1, address
