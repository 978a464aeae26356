"""The wire of the lab: a helper process that carries packets between pairs of TUN devices, with a delay.

Each end of a link is a TUN device in some namespace. With a virtio-net header before each packet (the
kernel's `struct virtio_net_hdr`) the devices take and give unsegmented packets of up to 64 KiB with
unfinished checksums; the wire passes header and packet on untouched, so that Python carries hundreds of MB/s.

Run as `python -m ntcpsock.testing.natlab.wire SPECIFICATION`. It says `ready` on stdout when the devices
exist. It ends when its standard input ends or when its parent dies, however that died, and then removes the
lab's namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from ntcpsock.testing.natlab.namespace import DIRECTORY, remove_namespaces

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_CLONE_NEWNET = 0x40000000
_PR_SET_TIMERSLACK = 29

_LARGEST_READ = 65536 + 64
_READS_IN_A_ROW = 64
QUEUE_LIMIT = 64 * 1024 * 1024
"""Bytes that one direction of a link holds; what comes beyond is dropped and counted."""

_libc = ctypes.CDLL(None, use_errno=True)


class Direction:
    """One direction of a link: a queue of packets with the time at which each is due."""

    def __init__(self, source: int, target: int, delay: float) -> None:
        self.source = source
        self.target = target
        self.delay = delay
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued_bytes = 0
        self.carried_packets = 0
        self.carried_bytes = 0
        self.dropped_packets = 0
        self.worst_lateness = 0.0

    def read(self) -> None:
        """Take what the source device has now; each packet is due `delay` after it was read."""
        for _ in range(_READS_IN_A_ROW):
            try:
                packet = os.read(self.source, _LARGEST_READ)
            except BlockingIOError:
                return
            if self.queued_bytes + len(packet) > QUEUE_LIMIT:
                self.dropped_packets += 1
                continue
            self.queue.append((time.monotonic() + self.delay, packet))
            self.queued_bytes += len(packet)

    def write_due(self) -> None:
        """Give the target device what is due."""
        queue = self.queue
        while queue:
            due, packet = queue[0]
            now = time.monotonic()
            if due > now:
                return
            queue.popleft()
            self.queued_bytes -= len(packet)
            try:
                os.write(self.target, packet)
            except OSError:  # the device is down, or the packet is none
                self.dropped_packets += 1
                continue
            self.carried_packets += 1
            self.carried_bytes += len(packet)
            self.worst_lateness = max(self.worst_lateness, now - due)

    def counters(self) -> dict[str, float]:
        return {
            "carried_packets": self.carried_packets,
            "carried_bytes": self.carried_bytes,
            "dropped_packets": self.dropped_packets,
            "worst_lateness": self.worst_lateness,
        }


def forward(directions: list[Direction], control: int, parent: int) -> None:
    """Carry packets until `control` ends or `parent` (a pidfd) becomes readable."""
    by_source = {direction.source: direction for direction in directions}
    watched = [control, parent, *by_source]
    while True:
        timeout = None
        for direction in directions:
            if direction.queue:
                wait = direction.queue[0][0] - time.monotonic()
                timeout = wait if timeout is None else min(timeout, wait)
        # select, because its time-out has microseconds; epoll's has milliseconds.
        readable, _, _ = select.select(watched, [], [], None if timeout is None else max(timeout, 0.0))
        for fd in readable:
            if fd == parent:
                return
            if fd == control:
                if not os.read(control, 4096):
                    return
                print(json.dumps([direction.counters() for direction in directions]), flush=True)
            else:
                by_source[fd].read()
        for direction in directions:
            direction.write_due()


def open_tun(namespace: str, device: str) -> int:
    """Make the TUN device inside `namespace` and return its non-blocking descriptor."""
    with _inside(namespace):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    # Without offloads the header stays, all zero, and packets are segmented: slower, but the same.
    for offloads in (_TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN, _TUN_F_CSUM):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
        except OSError:
            continue
        break
    return fd


def open_links(links: list[dict[str, Any]]) -> list[Direction]:
    """Make the devices of each link; two directions a link, from its first end first."""
    directions = []
    for link in links:
        one, other = (open_tun(namespace, device) for namespace, device in link["ends"])
        directions += [Direction(one, other, link["delay"]), Direction(other, one, link["delay"])]
    return directions


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
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


def main(specification: dict[str, Any]) -> None:
    # Ctrl-C is for the owner, whose end is the end of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        parent = os.pidfd_open(specification["owner"])
        if os.getppid() != specification["owner"]:
            return
        try:
            directions = open_links(specification["links"])
        except OSError as error:
            print(f"{error} (opening the TUN devices)", flush=True)
            return
        _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        gc.disable()
        print("ready", flush=True)
        forward(directions, sys.stdin.fileno(), parent)
    finally:
        remove_namespaces(specification["namespaces"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
