"""The two kinds of end that a wire's link can have: a TUN device, or a packet socket on a veth pair.

Both put a virtio-net header (the kernel's `struct virtio_net_hdr`, 10 bytes) before each packet, so they give and
take unsegmented packets of up to 64 KiB with unfinished checksums, and the wire passes header and packet on
untouched. TUN is the faster one; the veth pair works where /dev/net/tun is missing or not ours to open.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from typing import Protocol

from ntcpsock.testing.natlab.namespace import DIRECTORY, run_checked, tool

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_LARGEST_PACKET = 65536 + 64

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_VERSION = 10
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_TPACKET_V2 = 1
_TP_STATUS_KERNEL, _TP_STATUS_USER = 0, 1
_ETH_P_ALL = 3
_VNET_HEADER = 10
_STATUS = struct.Struct("=I")
_SLOT = struct.Struct("=IIIHH")  # tpacket2_hdr: status, len, snaplen, mac, net
_SLOT_SIZE = 69632  # 17 pages: the headers and a packet of 64 KiB
_BLOCK_SIZE = 1 << 20
_BLOCKS = 16

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


class Device(Protocol):
    """One end of a link."""

    link_header_size: int
    """Bytes between the virtio-net header and the IP packet."""

    def fileno(self) -> int: ...

    def read(self) -> bytes | None:
        """The next packet with its header; None when there is none now."""

    def write(self, packet: bytes) -> None:
        """Hand a packet with its header to the device. Raises OSError where it is not taken."""


class Tun:
    """A TUN device `name` inside `namespace`. `whole_streams`: it gives and takes unsegmented packets."""

    link_header_size = 0

    def __init__(self, namespace: str, name: str, *, whole_streams: bool) -> None:
        with inside(namespace):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
            fcntl.ioctl(self._fd, _TUNSETIFF, request)
        # Without offloads the header stays, all zero, and packets are segmented: slower, but the same.
        segments = _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN if whole_streams else 0
        for offloads in (_TUN_F_CSUM | segments, _TUN_F_CSUM):
            try:
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, offloads)
            except OSError:
                continue
            break

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes | None:
        try:
            return os.read(self._fd, _LARGEST_PACKET)
        except BlockingIOError:
            return None

    def write(self, packet: bytes) -> None:
        os.write(self._fd, packet)


class PacketEnd:
    """A veth device `name` inside `namespace`, whose peer is in the caller's namespace, under a packet socket.

    `hardware_address` must be the same at both ends of a link: neither end asks for neighbours (no ARP), and such
    a device sends to its own address.
    """

    link_header_size = 14

    def __init__(self, namespace: str, name: str, hardware_address: str, *, whole_streams: bool) -> None:
        near = f"end{next(_numbers)}"
        far = f"peer name {name} address {hardware_address} netns {namespace}"
        run_checked([tool("ip"), *f"link add {near} type veth {far}".split()])
        run_checked([tool("ip"), "-netns", namespace, *f"link set {name} arp off".split()])
        run_checked([tool("ip"), *f"link set {near} arp off up".split()])
        if not whole_streams:
            single = f"link set {name} gso_max_segs 1 gso_max_size 1500"
            run_checked([tool("ip"), "-netns", namespace, *single.split()])
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for option, value in (
            (_PACKET_VERSION, _TPACKET_V2),
            (_PACKET_VNET_HDR, 1),
            (_PACKET_IGNORE_OUTGOING, 1),
        ):
            self._socket.setsockopt(_SOL_PACKET, option, value)
        # A ring, because a receive buffer of the usual limit holds three such packets.
        slots = _BLOCK_SIZE // _SLOT_SIZE
        request = struct.pack("=IIII", _BLOCK_SIZE, _BLOCKS, _SLOT_SIZE, slots * _BLOCKS)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._ring = mmap.mmap(self._socket.fileno(), _BLOCK_SIZE * _BLOCKS)
        offsets = [
            block * _BLOCK_SIZE + slot * _SLOT_SIZE for block in range(_BLOCKS) for slot in range(slots)
        ]
        self._next = itertools.cycle(offsets)
        self._slot = next(self._next)
        self._socket.bind((near, _ETH_P_ALL))

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> bytes | None:
        status, _, length, mac, _ = _SLOT.unpack_from(self._ring, self._slot)
        if not status & _TP_STATUS_USER:
            return None
        start = self._slot + mac
        packet = self._ring[start - _VNET_HEADER : start + length]
        _STATUS.pack_into(self._ring, self._slot, _TP_STATUS_KERNEL)
        self._slot = next(self._next)
        return packet

    def write(self, packet: bytes) -> None:
        self._socket.send(packet)


def open_link(kind: str, ends: list[tuple[str, str]], *, whole_streams: bool = True) -> tuple[Device, Device]:
    """Make both devices, (namespace, name) each, of the kind "tun" or "packet".

    `whole_streams`: packets of up to 64 KiB, which the receiving kernel segments where it must; else each is as
    large as on a real link. Raises OSError, LabUnavailable.
    """
    if kind == "tun":
        one, other = (Tun(*end, whole_streams=whole_streams) for end in ends)
        return one, other
    address = f"02:6e:74:63:70:{next(_numbers):02x}"
    near, far = (PacketEnd(namespace, name, address, whole_streams=whole_streams) for namespace, name in ends)
    return near, far


def choose_kind() -> str:
    """The faster kind, "tun", where this process can open it, else "packet"."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError:  # no such file, no driver behind it, or not ours
        return "packet"
    return "tun"


def enter_new_namespace() -> None:
    """Give this process a nameless network namespace of its own, for the near ends of the veth pairs."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as switch:
        switch.write("1")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(DIRECTORY / namespace, os.O_RDONLY)
    try:
        _set_namespace(there)
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(there)
        os.close(home)


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
