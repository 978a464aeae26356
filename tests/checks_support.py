"""Two sides of checks, and a network between them that a test controls: NATs, losses, delays."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.machine import ChecksMachine
from ntcpsock._traversal.checks.message import derive_credentials, encode_request, new_transaction_id
from ntcpsock._traversal.checks.pairs import Event, Outgoing

TOKEN = bytes(range(32))
A = Endpoint("192.0.2.1", 1111)
B = Endpoint("198.51.100.2", 2222)
STRANGER = Endpoint("203.0.113.9", 666)
DIALER = derive_credentials(TOKEN, 1, "dialer")
LISTENER = derive_credentials(TOKEN, 1, "listener")


def request(
    transaction_id: bytes | None = None, *, controlling: bool = True, nominate: bool = False
) -> bytes:
    """A check of the dialer's."""
    return encode_request(
        DIALER,
        transaction_id or new_transaction_id(),
        priority=1,
        controlling=controlling,
        tie_breaker=5,
        nominate=nominate,
    )


def machine(side: str, **settings: object) -> ChecksMachine:
    """A side's checks, started at 0."""
    assert side in ("dialer", "listener")
    arguments: dict[str, object] = {"controlling": side == "dialer", "now": 0.0, "rtt": 0.1, **settings}
    return ChecksMachine(
        derive_credentials(TOKEN, 1, "dialer" if side == "dialer" else "listener"),
        **arguments,  # type: ignore[arg-type]
    )


@dataclass
class Side:
    """One machine at an address. events: what it said, and when."""

    machine: ChecksMachine
    address: Endpoint
    started: float = 0.0
    events: list[tuple[float, Event]] = field(default_factory=list)
    sent: list[tuple[float, Outgoing]] = field(default_factory=list)

    def saw(self, kind: type) -> list[float]:
        return [when for when, event in self.events if isinstance(event, kind)]


#: Whether a datagram leaves (when, sender, what), or is let in (when, receiver, what).
Passes = Callable[[float, Side, Outgoing], bool]


@dataclass
class Wire:
    """delay: one way, in seconds."""

    a: Side
    b: Side
    delay: float = 0.05
    passes: Passes = lambda now, side, out: True
    admits: Passes = lambda now, side, out: True
    now: float = 0.0

    def __post_init__(self) -> None:
        self._flying: list[tuple[float, int, Side, Side, Outgoing]] = []
        self._count = 0

    def run(self, until: float) -> None:
        """Let time pass, each thing at its moment."""
        while True:
            for side, other in ((self.a, self.b), (self.b, self.a)):
                if self.now >= side.started:
                    self._turn(side, other)
            moments = [self._flying[0][0]] if self._flying else []
            for side in (self.a, self.b):
                due = side.machine.next_timeout()
                if due is not None:
                    moments.append(max(due, side.started))
            after = min(moments, default=math.inf)
            if after > until:
                self.now = until
                return
            self.now = max(self.now, after)
            while self._flying and self._flying[0][0] <= self.now:
                _, _, sender, receiver, out = heapq.heappop(self._flying)
                if self.admits(self.now, receiver, out):
                    receiver.machine.handle_datagram(0, out.data, sender.address, self.now)

    def _turn(self, side: Side, other: Side) -> None:
        side.machine.handle_timeout(self.now)
        while (event := side.machine.next_event()) is not None:
            side.events.append((self.now, event))
        for out in side.machine.datagrams_to_send():
            side.sent.append((self.now, out))
            if out.remote == other.address and self.passes(self.now, side, out):
                self._count += 1
                heapq.heappush(self._flying, (self.now + self.delay, self._count, side, other, out))


def pair(**settings: object) -> Wire:
    """Both sides know each other's address, and start at 0."""
    a, b = Side(machine("dialer", **settings), A), Side(machine("listener", **settings), B)
    a.machine.add_pair(0, B, now=0.0)
    b.machine.add_pair(0, A, now=0.0)
    return Wire(a, b)


def filtering_nats(wire: Wire, starts: dict[Endpoint, float] | None = None) -> None:
    """Each side's NAT lets in only what its own side has sent to before."""
    opened: dict[Endpoint, float] = {}

    def passes(now: float, side: Side, out: Outgoing) -> bool:
        opened.setdefault(side.address, now)
        return out.ttl is None

    wire.passes = passes
    wire.admits = lambda now, receiver, out: receiver.address in opened
    for side in (wire.a, wire.b):
        side.started = (starts or {}).get(side.address, 0.0)


def nominated() -> Wire:
    wire = pair()
    wire.run(until=1.0)
    assert wire.a.machine.selected
    assert wire.b.machine.selected
    return wire
