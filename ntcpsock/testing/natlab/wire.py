"""The wire of the lab: a helper process that carries packets between pairs of devices, each after a delay.

A user-space NAT stands at the first end of its router's link. Run as `python -m ntcpsock.testing.natlab.wire`, with
the specification as first line on standard input. It says `ready` on stdout when the devices exist. It ends when its
standard input ends or when its parent dies, however that died, and then removes the lab's namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pickle
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from ntcpsock.testing.natlab.device import Device, choose_kind, enter_new_namespace, open_link
from ntcpsock.testing.natlab.link import Link, Queue
from ntcpsock.testing.natlab.namespace import LabUnavailable, remove_namespaces
from ntcpsock.testing.natlab.router.machine import Nat, Output
from ntcpsock.testing.natlab.sighting import MOST_SIGHTINGS, SEEN_BYTES

_READS_IN_A_ROW = 64
_PR_SET_TIMERSLACK = 29
_VNET_HEADER = 10
_NEEDS_CHECKSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM


class Direction:
    """One direction of a link, from one device to the other."""

    def __init__(self, source: Device, target: Device, link: Link, rng: random.Random) -> None:
        self.source = source
        self.target = target
        self.queue = Queue(link, rng)
        self.carried_packets = 0
        self.carried_bytes = 0
        self.dropped_packets = 0
        self.worst_lateness = 0.0
        self.record: Callable[[str, bytes, float], None] | None = None
        """Is told what has "entered" and "left" the link, where somebody wants to know."""
        self.entrance: Callable[[bytes, float], None] = self.enter
        """What becomes of a packet that the source device gives."""
        self.exit: Callable[[bytes, float], None] = self.deliver
        """What becomes of a packet that has crossed the link."""

    def read(self) -> None:
        """Take what the source device has now; each packet is due `delay` after it was read."""
        for _ in range(_READS_IN_A_ROW):
            packet = self.source.read()
            if packet is None:
                return
            self.entrance(packet, time.monotonic())

    def enter(self, packet: bytes, now: float) -> None:
        """A packet begins to cross the link."""
        if self.record is not None:
            self.record("entered", packet, now)
        self.queue.put(packet, now)

    def write_due(self) -> None:
        """Give the target device what is due."""
        while (due := self.queue.due()) is not None:
            now = time.monotonic()
            if due > now:
                return
            due, packet = self.queue.take()
            self.worst_lateness = max(self.worst_lateness, now - due)
            if self.record is not None:
                self.record("left", packet, now)
            self.exit(packet, now)

    def deliver(self, packet: bytes, now: float) -> None:
        """Give the target device a packet."""
        try:
            self.target.write(packet)
        except OSError:  # the device is down, or the packet is none
            self.dropped_packets += 1
            return
        self.carried_packets += 1
        self.carried_bytes += len(packet)

    def counters(self) -> dict[str, float]:
        return {
            "carried_packets": self.carried_packets,
            "carried_bytes": self.carried_bytes,
            "dropped_packets": self.dropped_packets + self.queue.dropped,
            "worst_lateness": self.worst_lateness,
        }


class NatStation:
    """A user-space NAT between the first device of a link and the link."""

    def __init__(self, nat: Nat, out: Direction, back: Direction) -> None:
        self.nat = nat
        self._out = out
        self._back = back
        self._link_header = _VNET_HEADER + out.source.link_header_size
        out.entrance = self._leave
        back.exit = self._arrive

    def _leave(self, packet: bytes, now: float) -> None:
        self._pass(packet, now, self.nat.outbound)

    def _arrive(self, packet: bytes, now: float) -> None:
        self._pass(packet, now, self.nat.inbound)

    def _pass(self, packet: bytes, now: float, translate: Callable[..., list[Output]]) -> None:
        head = self._link_header
        partial = bool(packet[0] & _NEEDS_CHECKSUM)
        for output in translate(bytearray(packet[head:]), now, partial=partial):
            # Both ends of a link have the same hardware address, so a header is right in either direction.
            header = bytes(_VNET_HEADER) + packet[_VNET_HEADER:head] if output.fresh else packet[:head]
            if output.outward:
                self._out.enter(header + output.data, now)
            else:
                self._back.deliver(header + output.data, now)


class Record:
    """What crosses the links, from the first packet on; see `sighting`."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, str, str, bool, str]] = []

    def listen(self, direction: Direction, router: str, *, outward: bool) -> None:
        """Note what crosses in this direction."""
        header = _VNET_HEADER + direction.source.link_header_size

        def note(event: str, packet: bytes, now: float) -> None:
            if len(self.rows) < MOST_SIGHTINGS and packet[header] >> 4 == 4:
                seen = packet[header : header + SEEN_BYTES].hex()
                self.rows.append((now, router, event, outward, seen))

        direction.record = note


class Wire:
    """All links of a lab."""

    def __init__(
        self, directions: list[Direction], stations: dict[str, NatStation], record: Record | None = None
    ) -> None:
        self.directions = directions
        self.stations = stations
        self._record = record or Record()

    def answer(self, request: dict[str, Any]) -> Any:
        """What the lab's owner asks."""
        if request["ask"] == "counters":
            return [direction.counters() for direction in self.directions]
        if request["ask"] == "sightings":
            return self._record.rows
        nat = self.stations[request["router"]].nat
        if request["ask"] == "forget":
            nat.forget()
            return None
        if request["ask"] == "forward":
            inner = request["inner"]
            nat.forward(request["port"], None if inner is None else tuple(inner))
            return None
        if request["ask"] == "dropped":
            return dict(nat.dropped)
        return nat.mappings(time.monotonic())

    def carry(self, control: int, parent: int) -> None:
        """Carry packets until `control` ends or `parent` (a pidfd) becomes readable."""
        by_source = {direction.source.fileno(): direction for direction in self.directions}
        watched = [control, parent, *by_source]
        pending = b""
        while True:
            timeout = None
            for direction in self.directions:
                if (due := direction.queue.due()) is not None:
                    wait = due - time.monotonic()
                    timeout = wait if timeout is None else min(timeout, wait)
            # select, because its time-out has microseconds; epoll's has milliseconds.
            readable, _, _ = select.select(watched, [], [], None if timeout is None else max(timeout, 0.0))
            for fd in readable:
                if fd == parent:
                    return
                if fd == control:
                    data = os.read(control, 4096)
                    if not data:
                        return
                    *requests, pending = (pending + data).split(b"\n")
                    for request in requests:
                        print(json.dumps(self.answer(json.loads(request))), flush=True)
                else:
                    by_source[fd].read()
            for direction in self.directions:
                direction.write_due()


def open_wire(specification: dict[str, Any]) -> Wire:
    """Make the devices of each link; two directions a link, from its first end first."""
    kind = specification["device"]
    if kind == "auto":
        kind = choose_kind()
    if kind == "packet":
        enter_new_namespace()
    rng = random.Random(specification["seed"])
    directions: list[Direction] = []
    stations = {}
    record = Record()
    for entry in specification["links"]:
        link: Link = entry["link"]
        one, other = open_link(kind, entry["ends"], whole_streams=not link.counts_packets)
        out, back = Direction(one, other, link, rng), Direction(other, one, link, rng)
        directions += [out, back]
        if specification["record"]:
            record.listen(out, entry["router"], outward=True)
            record.listen(back, entry["router"], outward=False)
        if entry["nat"] is not None:
            behaviour, public, gateway, blackholes = entry["nat"]
            nat = Nat(behaviour, public, gateway, blackholes, seed=rng.randrange(1 << 32))
            stations[entry["router"]] = NatStation(nat, out, back)
    return Wire(directions, stations, record)


def be_punctual() -> None:
    """Ask the kernel for exact timers and, where it is allowed, for a higher priority."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    gc.disable()


def main() -> None:
    # Ctrl-C is for the owner, whose end is the end of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    specification = pickle.loads(bytes.fromhex(_read_line(sys.stdin.fileno())))
    try:
        parent = os.pidfd_open(specification["owner"])
        if os.getppid() != specification["owner"]:
            return
        try:
            wire = open_wire(specification)
        except (OSError, LabUnavailable) as error:
            print(f"{error}", flush=True)
            return
        be_punctual()
        print("ready", flush=True)
        wire.carry(sys.stdin.fileno(), parent)
    finally:
        remove_namespaces(specification["namespaces"])


def _read_line(fd: int) -> str:
    """One line, and not a byte more: what follows is for `select`."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            raise SystemExit("the lab's owner is gone")
        line += byte
    return line.decode()


if __name__ == "__main__":
    main()
