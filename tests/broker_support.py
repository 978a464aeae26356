"""A broker and its nodes joined by a simulated network with virtual time: no socket, no clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ntcpsock._address import Endpoint
from ntcpsock._identity import Identity
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.broker_state import BrokerLimits
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.sources import endpoint_of
from ntcpsock._servers.spoofing import SpoofingDesk
from ntcpsock._traversal.broker.allow_list import encode_allow
from ntcpsock._traversal.broker.events import Answered, Connected, Delivered, Event, KeyShown
from ntcpsock._traversal.broker.frame import OVERHEAD, Sealer
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import (
    Deliver,
    FromBroker,
    Introduce,
    Lookup,
    Register,
    Spoof,
    Welcome,
)

BROKER = Endpoint("198.51.100.1", 6060)
LATENCY = 0.025
SEALED = b"s" * OVERHEAD


def make_identity(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "big"))


def registration(
    *names: str,
    ports: tuple[int, ...] = (80,),
    card: bytes | None = b"card",
    allow: tuple[str, ...] | None = None,
) -> Register:
    if allow is None:
        return Register(names, ports, 60, card)
    return Register(names, ports, 60, None, encode_allow(allow))


@dataclass
class SimulatedNode:
    """A client machine at an address; its events are collected."""

    network: SimulatedNetwork
    identity: Identity
    machine: ClientMachine
    address: Endpoint
    received: list[Event] = field(default_factory=list)
    #: Where it proves to be as well.
    others: list[Endpoint] = field(default_factory=list)

    def collect(self) -> None:
        for event in self.machine.events():
            self.received.append(event)
            if isinstance(event, KeyShown):
                self.machine.accept_key(event.key, self.network.now)
        for datagram in self.machine.datagrams_to_send():
            self.network.send(datagram, self.address, BROKER)
        for number, datagram in self.machine.proofs_to_send():
            self.network.send(datagram, self.others[number], BROKER)

    def prove(self, *others: Endpoint) -> None:
        """From now on."""
        self.others = list(others)
        self.network.nodes.update(dict.fromkeys(others, self))
        self.machine.prove(len(others), self.network.now)

    @property
    def deliveries(self) -> list[Deliver]:
        return [event.message for event in self.received if isinstance(event, Delivered)]

    @property
    def welcomes(self) -> list[Welcome]:
        return [event.welcome for event in self.received if isinstance(event, Connected)]

    def ask(self, body: Lookup | Introduce | Register | Spoof) -> FromBroker | None:
        """The answer, or None when the request timed out."""
        machine, now = self.machine, self.network.now
        number = machine.register(body, now) if isinstance(body, Register) else machine.request(body, now)
        self.collect()
        self.network.run(until=lambda: number not in machine._requests, seconds=30)
        for event in self.received:
            if isinstance(event, Answered) and event.request == number:
                return event.body
        return None

    def lookup(self, name: str) -> FromBroker | None:
        return self.ask(Lookup(name))

    def introduce(self, to: bytes, port: int = 80, *, name: str | None = None) -> FromBroker | None:
        return self.ask(Introduce(to, port, SEALED, name))


class SimulatedNetwork:
    """Delivers after `LATENCY`; `loss`, `duplication` and `reordering` are probabilities."""

    def __init__(
        self,
        *,
        seed: int = 0,
        loss: float = 0.0,
        duplication: float = 0.0,
        reordering: float = 0.0,
        names: NameStore | None = None,
        limits: BrokerLimits | None = None,
        allow_spoofing: bool = False,
    ) -> None:
        self.now = 1000.0
        self.chance = random.Random(seed)
        self.loss, self.duplication, self.reordering = loss, duplication, reordering
        self.broker_identity = make_identity(999)
        self.names = names if names is not None else NameStore(None)
        self.limits = limits
        self.allow_spoofing = allow_spoofing
        self.core = self.new_core()
        self.broker_is_up = True
        self.nodes: dict[Endpoint, SimulatedNode] = {}
        #: Everything that was sent: (datagram, source, destination).
        self.log: list[tuple[bytes, Endpoint, Endpoint]] = []
        self._queue: list[tuple[float, int, bytes, Endpoint, Endpoint]] = []
        self._order = itertools.count()

    def new_core(self) -> BrokerCore:
        return BrokerCore(
            self.broker_identity,
            self.names,
            stun=[Endpoint("198.51.100.1", 3478)],
            limits=self.limits,
            spoofing=SpoofingDesk() if self.allow_spoofing else None,
            random_bytes=self.chance.randbytes,
        )

    def restart_broker(self) -> None:
        """All soft state is gone; key and names stay."""
        self.core = self.new_core()

    def add(
        self,
        number: int,
        *,
        identity: Identity | None = None,
        token: str | None = None,
        know_key: bool = True,
        keep_alive_interval: float = 20.0,
        start: bool = True,
    ) -> SimulatedNode:
        """A node at its own address; connected when this returns, or refused, unless `start` is false."""
        identity = identity or make_identity(number)
        machine = ClientMachine(
            Sealer(identity),
            self.broker_identity.public_key if know_key else None,
            keep_alive_interval=keep_alive_interval,
            token=token,
            random_bytes=self.chance.randbytes,
        )
        node = SimulatedNode(self, identity, machine, Endpoint(f"203.0.113.{number}", 40000 + number))
        self.nodes[node.address] = node
        if start:
            machine.start(self.now)
            node.collect()
            self.run(until=lambda: machine.connected or machine.rejection is not None, seconds=30)
            assert machine.connected or machine.rejection is not None
        return node

    def move(self, node: SimulatedNode, address: Endpoint) -> None:
        """Its NAT has given it another mapping."""
        del self.nodes[node.address]
        node.address = address
        self.nodes[address] = node

    def send(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        self.log.append((datagram, source, destination))
        copies = 2 if self.chance.random() < self.duplication else 1
        for _ in range(copies):
            if self.chance.random() < self.loss:
                continue
            delay = LATENCY
            if self.chance.random() < self.reordering:
                delay += self.chance.random() * 0.2
            item = (self.now + delay, next(self._order), datagram, source, destination)
            heapq.heappush(self._queue, item)

    def run(self, *, until: Callable[[], bool] = lambda: False, seconds: float) -> None:
        """Let time pass, from event to event, until the condition holds or `seconds` are over."""
        end = self.now + seconds
        while not until():
            timers = [node.machine.next_timer() for node in self.nodes.values()]
            times = [time for time in timers if time is not None]
            if self._queue:
                times.append(self._queue[0][0])
            upcoming = min(times, default=math.inf)
            if upcoming > end:
                self.now = end
                return
            self.now = max(self.now, upcoming)
            self._deliver()
            for node in list(self.nodes.values()):
                node.machine.handle_timer(self.now)
                node.collect()

    def _deliver(self) -> None:
        while self._queue and self._queue[0][0] <= self.now:
            _, _, datagram, source, destination = heapq.heappop(self._queue)
            if destination == BROKER:
                if self.broker_is_up:
                    for answer, target in self.core.receive(datagram, source, self.now):
                        self.send(answer, BROKER, endpoint_of(target))
            elif destination in self.nodes:
                node = self.nodes[destination]
                node.machine.receive_datagram(datagram, self.now)
                node.collect()

    def replay(self, datagram: bytes, source: Endpoint) -> list[tuple[bytes, Endpoint]]:
        """Hand a recorded datagram to the broker again, at once."""
        answers = self.core.receive(datagram, source, self.now)
        return [(answer, endpoint_of(target)) for answer, target in answers]
