"""The wire of the lab: a helper process that carries packets between pairs of devices, each after a delay.

Run as `python -m ntcpsock.testing.natlab.wire SPECIFICATION`. It says `ready` on stdout when the devices exist.
It ends when its standard input ends or when its parent dies, however that died, and then removes the lab's
namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import time
from collections import deque
from typing import Any

from ntcpsock.testing.natlab.device import Device, choose_kind, enter_new_namespace, open_link
from ntcpsock.testing.natlab.namespace import LabUnavailable, remove_namespaces

QUEUE_LIMIT = 64 * 1024 * 1024
"""Bytes that one direction of a link holds; what comes beyond is dropped and counted."""

_READS_IN_A_ROW = 64
_PR_SET_TIMERSLACK = 29


class Direction:
    """One direction of a link: a queue of packets with the time at which each is due."""

    def __init__(self, source: Device, target: Device, delay: float) -> None:
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
            packet = self.source.read()
            if packet is None:
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
                self.target.write(packet)
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
    by_source = {direction.source.fileno(): direction for direction in directions}
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


def open_directions(kind: str, links: list[dict[str, Any]]) -> list[Direction]:
    """Make the devices of each link; two directions a link, from its first end first."""
    if kind == "auto":
        kind = choose_kind()
    if kind == "packet":
        enter_new_namespace()
    directions = []
    for link in links:
        one, other = open_link(kind, link["ends"])
        directions += [Direction(one, other, link["delay"]), Direction(other, one, link["delay"])]
    return directions


def be_punctual() -> None:
    """Ask the kernel for exact timers and, where it is allowed, for a higher priority."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    gc.disable()


def main(specification: dict[str, Any]) -> None:
    # Ctrl-C is for the owner, whose end is the end of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        parent = os.pidfd_open(specification["owner"])
        if os.getppid() != specification["owner"]:
            return
        try:
            directions = open_directions(specification["device"], specification["links"])
        except (OSError, LabUnavailable) as error:
            print(f"{error}", flush=True)
            return
        be_punctual()
        print("ready", flush=True)
        forward(directions, sys.stdin.fileno(), parent)
    finally:
        remove_namespaces(specification["namespaces"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
