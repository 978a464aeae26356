"""Several datagrams to one program in one system call: those of one size together, which the kernel cuts apart
(UDP_SEGMENT: include/uapi/linux/udp.h; limits: net/ipv4/udp.c)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_MOST_SEGMENTS: Final = 64  # UDP_MAX_SEGMENTS of older kernels
_MOST_BYTES: Final = 65000  # of one IP packet, headers aside
_UINT16 = struct.Struct("=H")

# What the kernel says where it does not cut them.
_NO_SEGMENTATION: Final = frozenset(
    {errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EMSGSIZE}
)
_NOT_NOW = (BlockingIOError, InterruptedError, ConnectionRefusedError)


def send_runs(
    sock: socket.socket,
    datagrams: Sequence[bytes],
    control: Sequence[tuple[int, int, bytes]],
    address: tuple[str, int],
) -> None:
    """Send datagrams in order, each with the ancillary data `control`. What `sock` does not take now is lost, as with
    a full buffer. Raises OSError."""
    for run in _runs(datagrams):
        try:
            if len(run) > 1:
                segment = (_SOL_UDP, _UDP_SEGMENT, _UINT16.pack(len(run[0])))
                sock.sendmsg(run, [*control, segment], 0, address)
            else:
                sock.sendmsg(run, control, 0, address)
        except _NOT_NOW:
            continue
        except OSError as error:
            if len(run) == 1 or error.errno not in _NO_SEGMENTATION:
                raise
            for datagram in run:
                with suppress(*_NOT_NOW):
                    sock.sendmsg([datagram], control, 0, address)


def _runs(datagrams: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut into runs of one size each, of which the last datagram may be smaller, and not empty."""
    start = 0
    while start < len(datagrams):
        size = len(datagrams[start])
        most = start + min(_MOST_SEGMENTS, max(1, _MOST_BYTES // max(1, size)))
        end = start + 1
        while end < min(most, len(datagrams)) and 0 < len(datagrams[end]) <= size:
            end += 1
            if len(datagrams[end - 1]) < size:
                break
        yield datagrams[start:end]
        start = end
