"""Many datagrams in one system call: Linux's recvmmsg and sendmmsg, through cffi, which PyNaCl brings.

A call costs as much as all that a server does with a small datagram. The memory for a batch is laid out once; what has
come is copied out of it, what is to go is copied into it. `AVAILABLE` says whether this system has it.
"""

from __future__ import annotations

import errno
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Final

#: Octets for one address: its way's number (2), the kernel's struct (28); see `sources.py`.
NAME_LENGTH: Final = 30
NAME_STRIDE: Final = 32
_NAME_AT: Final = 2
#: Room for ancillary data of one datagram: an in_pktinfo or an in6_pktinfo with its header takes 28 or 40.
CONTROL_LENGTH: Final = 64

# Offsets and sizes of struct mmsghdr, in units of the views below.
_HEADER_SIZE: Final = 64
_LENGTH_AT: Final = 56 // 4
_NAME_LENGTH_AT: Final = 8 // 4
_CONTROL_LENGTH_AT: Final = 40 // 8
_MSG_DONTWAIT: Final = 0x40

_DECLARATIONS: Final = """
struct iovec { void *iov_base; size_t iov_len; };
struct msghdr {
    void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
    void *msg_control; size_t msg_controllen; int msg_flags;
};
struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
int recvmmsg(int, struct mmsghdr *, unsigned int, int, void *);
int sendmmsg(int, struct mmsghdr *, unsigned int, int);
"""

_ffi: Any = None
_libc: Any = None


def _load() -> bool:
    global _ffi, _libc
    if not sys.platform.startswith("linux"):
        return False
    try:
        from cffi import FFI  # type: ignore[import-untyped]

        ffi = FFI()
        ffi.cdef(_DECLARATIONS)
        libc = ffi.dlopen(None)
        if ffi.sizeof("struct mmsghdr") != _HEADER_SIZE:  # 32 bits
            return False
        libc.recvmmsg, libc.sendmmsg  # noqa: B018 - looked up now
    except (ImportError, OSError, AttributeError):
        return False
    _ffi, _libc = ffi, libc
    return True


AVAILABLE: Final = _load()


class Moderation:
    """When to let datagrams gather, as network cards do with interrupts: waking up costs as much as some answers.

    Where two batches follow each other closely, what comes next is read a millisecond later, all in one. What comes now
    and then is read at once.
    """

    def __init__(self, close: float = 0.0002, pause: float = 0.001) -> None:
        """close: seconds between the end of a batch and the next one that make a load; pause: seconds to gather."""
        self._close = close
        self._pause = pause
        self._ended = -1.0

    def pause(self, began: float, ended: float, *, full: bool) -> float:
        """Seconds to wait after a batch; 0: none. full: there is more already."""
        was_close = began - self._ended < self._close
        self._ended = ended
        if full or not was_close:
            return 0.0
        # The next one begins after the pause, and is close then as well.
        self._ended += self._pause
        return self._pause


class Headers:
    """`count` headers of messages over buffers of the caller's, which must be as long as `count` of their strides.

    parts: of each message, in order: a buffer, its stride, and how many octets of it are used; names: likewise, with
    the length of an address; controls: for ancillary data, `CONTROL_LENGTH` octets each, None: there is none.
    """

    def __init__(
        self,
        count: int,
        parts: list[tuple[bytearray, int, int]],
        names: tuple[bytearray, int, int],
        controls: bytearray | None,
        name_at: int = 0,
    ) -> None:
        self.count = count
        self._headers = _ffi.new("struct mmsghdr[]", count)
        self._vectors = _ffi.new("struct iovec[]", count * len(parts))
        # They must not move: a bytearray stays where it is while somebody has such a view of it.
        self._pins = [_ffi.from_buffer(buffer) for buffer, _, _ in parts]
        name_pin = _ffi.from_buffer(names[0])
        control_pin = _ffi.NULL if controls is None else _ffi.from_buffer(controls)
        self._other_pins = name_pin, control_pin
        for i in range(count):
            header = self._headers[i].msg_hdr
            header.msg_name = name_pin + i * names[1] + name_at
            header.msg_namelen = names[2]
            header.msg_iov = self._vectors + i * len(parts)
            header.msg_iovlen = len(parts)
            if controls is not None:
                header.msg_control = control_pin + i * CONTROL_LENGTH
            for j, (pin, (_, stride, length)) in enumerate(zip(self._pins, parts, strict=True)):
                vector = self._vectors[i * len(parts) + j]
                vector.iov_base = pin + i * stride
                vector.iov_len = length
        octets = memoryview(_ffi.buffer(self._headers))
        self.lengths = octets.cast("I")[_LENGTH_AT::16]
        self.control_lengths = octets.cast("Q")[_CONTROL_LENGTH_AT::8]
        self._name_lengths = octets.cast("I")[_NAME_LENGTH_AT::16]
        #: Octets of the first part.
        self.sizes = memoryview(_ffi.buffer(self._vectors)).cast("Q")[1 :: 2 * len(parts)]
        self._whole_names = array("I", [names[2]]) * count
        self._whole_controls = array("Q", [CONTROL_LENGTH]) * count if controls is not None else None

    def receive(self, descriptor: int) -> int:
        """How many datagrams have come, up to `count`; 0: none. What the network says of earlier ones is skipped."""
        if self._whole_controls is not None:
            self.control_lengths[:] = self._whole_controls
        self._name_lengths[:] = self._whole_names
        for _ in range(self.count):
            received: int = _libc.recvmmsg(descriptor, self._headers, self.count, _MSG_DONTWAIT, _ffi.NULL)
            if received >= 0:
                return received
            if _ffi.errno in (errno.EAGAIN, errno.EINTR):
                break
        return 0

    def send(self, descriptor: int, first: int, end: int) -> list[int]:
        """Send the datagrams from `first` to before `end`; the errnos of those that the kernel refused."""
        refused: list[int] = []
        while first < end:
            sent = _libc.sendmmsg(descriptor, self._headers + first, end - first, _MSG_DONTWAIT)
            if sent > 0:
                first += sent
                continue
            number = _ffi.errno
            if number == errno.EINTR:
                continue
            if number in (errno.EAGAIN, errno.ENOBUFS):
                # The queue is full: the rest finds no room either.
                return refused + [number] * (end - first)
            refused.append(number)
            first += 1
        return refused


class Batch(Headers):
    """Room for `count` datagrams of `size` octets, their addresses and ancillary data; for one socket's family."""

    def __init__(self, count: int, size: int, *, ipv6: bool, control: bool = False) -> None:
        self.datagrams = bytearray(count * size)
        self.names = bytearray(count * NAME_STRIDE)
        self.controls = bytearray(count * CONTROL_LENGTH)
        super().__init__(
            count,
            [(self.datagrams, size, size)],
            (self.names, NAME_STRIDE, 28 if ipv6 else 16),
            self.controls if control else None,
            _NAME_AT,
        )
        #: The datagrams; a slice of it is a copy.
        self.octets = _ffi.buffer(self._pins[0], len(self.datagrams))
        self._origins = struct.Struct(f"{NAME_LENGTH}s{NAME_STRIDE - NAME_LENGTH}x" * count)
        self._starts = range(0, count * size, size)

    def received(self, count: int) -> list[tuple[bytes, bytes]]:
        """So many datagrams, and the origin of each: the way's number, as it was put there, and the address."""
        octets = self.octets
        lengths = self.lengths[:count].tolist()
        datagrams = [
            octets[start : start + length] for start, length in zip(self._starts, lengths, strict=False)
        ]
        return list(zip(datagrams, self._origins.unpack(self.names), strict=False))

    def set_way(self, index: int, number: bytes) -> None:
        """Put the way's number before an address."""
        at = index * NAME_STRIDE
        self.names[at : at + _NAME_AT] = number

    def control(self, index: int) -> bytes:
        """The ancillary data of a received datagram, as the kernel wrote it."""
        at = index * CONTROL_LENGTH
        return bytes(self.controls[at : at + self.control_lengths[index]])


class Outbox:
    """Datagrams that leave a socket together."""

    def __init__(self, count: int, size: int, *, ipv6: bool) -> None:
        self._batch = Batch(count, size, ipv6=ipv6, control=True)
        self._count = count
        self._stride = size
        self._queued = 0
        # What stands in each place already.
        self._controls = [b""] * count
        self._batch.control_lengths[:] = array("Q", [0]) * count

    def queue(self, descriptor: int, datagram: bytes, address: bytes, control: bytes) -> list[int]:
        """Put one in; where there is no room, what is there leaves first. address: the kernel's struct, 28 octets;
        control: ancillary data. The errnos of those that did not leave. Raises ValueError for one that is too long."""
        if len(datagram) > self._stride:
            raise ValueError(f"a datagram of {len(datagram)} octets")
        refused = self.flush(descriptor) if self._queued == self._count else []
        index = self._queued
        batch = self._batch
        at = index * self._stride
        batch.datagrams[at : at + len(datagram)] = datagram
        batch.sizes[index] = len(datagram)
        at = index * NAME_STRIDE + _NAME_AT
        batch.names[at : at + len(address)] = address
        if self._controls[index] != control:
            self._control(index, control)
        self._queued = index + 1
        return refused

    def _control(self, index: int, control: bytes) -> None:
        """Ancillary data of the datagram in a place."""
        self._controls[index] = control
        at = index * CONTROL_LENGTH
        self._batch.controls[at : at + len(control)] = control
        self._batch.control_lengths[index] = len(control)

    def flush(self, descriptor: int) -> list[int]:
        """Send what is queued; the errnos of those that did not leave."""
        end, self._queued = self._queued, 0
        return self._batch.send(descriptor, 0, end) if end else []


class EvenOutbox(Headers):
    """Datagrams of one length that leave a socket by one way: all that is the same for them is laid out once."""

    def __init__(self, count: int, length: int, control: bytes, *, ipv6: bool) -> None:
        """control: the ancillary data of each."""
        self._octets = bytearray(count * length)
        self._names = bytearray(count * NAME_LENGTH)
        super().__init__(
            count,
            [(self._octets, length, length)],
            (self._names, NAME_LENGTH, 28 if ipv6 else 16),
            bytearray(control.ljust(CONTROL_LENGTH, b"\0") * count) if control else None,
            _NAME_AT,
        )
        self.control_lengths[:] = array("Q", [len(control)]) * count

    def send_all(
        self, descriptor: int, datagrams: Sequence[bytes], destinations: Sequence[bytes]
    ) -> list[int]:
        """destinations: with the way's number, as `Batch.received` has it. The errnos of those that did not leave."""
        refused: list[int] = []
        for first in range(0, len(datagrams), self.count):
            some = datagrams[first : first + self.count]
            octets, names = b"".join(some), b"".join(destinations[first : first + self.count])
            self._octets[: len(octets)] = octets
            self._names[: len(names)] = names
            refused += self.send(descriptor, 0, len(some))
        return refused


_CONTROL_HEADER = struct.Struct("=Qii")


def pack_control(entries: list[tuple[int, int, bytes]]) -> bytes:
    """Ancillary data in the kernel's form (cmsg(3)). Raises ValueError where it is longer than there is room for."""
    packed = b""
    for level, kind, data in entries:
        packed += _CONTROL_HEADER.pack(_CONTROL_HEADER.size + len(data), level, kind) + data
        packed += bytes(-len(packed) % 8)
    if len(packed) > CONTROL_LENGTH:
        raise ValueError("too much ancillary data")
    return packed


def unpack_control(packed: bytes) -> list[tuple[int, int, bytes]]:
    """The way back, from what the kernel wrote."""
    entries, at = [], 0
    while at + _CONTROL_HEADER.size <= len(packed):
        length, level, kind = _CONTROL_HEADER.unpack_from(packed, at)
        if length < _CONTROL_HEADER.size:
            break
        entries.append((level, kind, packed[at + _CONTROL_HEADER.size : at + length]))
        at += length + -length % 8
    return entries
