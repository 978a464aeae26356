"""NATs and STUN servers that answer a discovery's questions by their words, without a network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ntcpsock._address import Endpoint
from ntcpsock._diagnosis import Discovery
from ntcpsock._traversal.discovery.evidence import Outcome, Probe
from ntcpsock._traversal.discovery.findings import conclude
from ntcpsock._traversal.discovery.machine import DiscoveryMachine
from ntcpsock._traversal.stun.connect_back import ConnectBackOutcome

EIM, ADM, APDM = "endpoint-independent", "address-dependent", "address-and-port-dependent"
FIRST, OTHER = Endpoint("198.51.100.1", 3478), Endpoint("198.51.100.2", 3479)
PUBLIC, INNER = "203.0.113.9", "192.168.1.7"

STRAY = {
    "drop": ConnectBackOutcome.TIMED_OUT,
    "reset": ConnectBackOutcome.RESET,
    "icmp": ConnectBackOutcome.ICMP,
}


@dataclass
class SimulatedNat:
    """A NAT in words, in front of which a server with `other` stands (None: it has one address and one port)."""

    mapping: str = EIM
    filtering: str = APDM
    allocation: str = "preserving"
    stray: str = "drop"
    hairpin: bool = False
    per_session: bool = False
    translates: bool = True
    other: Endpoint | None = OTHER
    silent: tuple[str, ...] = ()
    connects_back: bool = True
    seed: int = 1
    _mappings: dict[object, int] = field(default_factory=dict)
    _last: int = 40000

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def answer(self, probe: Probe, port: int) -> Outcome:
        """What comes of `probe` from local `port`."""
        local = Endpoint(INNER if self.translates else PUBLIC, port)
        if probe.transport in self.silent:
            return Outcome(probe, "silence")
        mapped = Endpoint(PUBLIC, self._map(probe, port))
        answered = Outcome(
            probe, "answered", local=local, mapped=mapped, source=probe.server, other=self.other
        )
        if probe.question in ("filtering-address", "filtering-port"):
            return self._filtered(probe, answered)
        if probe.question == "hairpin":
            return Outcome(
                probe, "answered", local=local, mapped=mapped, source=probe.server, arrived=self.hairpin
            )
        if probe.question == "fragments":
            return Outcome(probe, "answered", local=local, mapped=mapped, source=probe.server, size=1600)
        if probe.question == "hops":
            return Outcome(probe, "answered", hops=("192.168.1.1", "198.51.100.77"))
        return answered

    def _filtered(self, probe: Probe, answered: Outcome) -> Outcome:
        by_address = probe.question == "filtering-address"
        admitted = self.filtering == EIM or (self.filtering == ADM and not by_address)
        host = OTHER.host if by_address else FIRST.host
        if probe.transport == "udp":
            if not admitted:
                return Outcome(probe, "silence")
            source = Endpoint(host, OTHER.port)
            return Outcome(probe, "answered", local=answered.local, mapped=answered.mapped, source=source)
        if not self.connects_back:
            return Outcome(probe, "error", text="error 420 Unknown Attribute")
        return Outcome(
            probe,
            "answered",
            local=answered.local,
            mapped=answered.mapped,
            source=Endpoint(host, 50000),
            connect_back=ConnectBackOutcome.CONNECTED if admitted else STRAY[self.stray],
            arrived=admitted,
        )

    def _map(self, probe: Probe, port: int) -> int:
        if not self.translates:
            return port
        key: tuple[object, ...] = (probe.transport, port)
        if self.mapping != EIM:
            key += (probe.server.host,)
        if self.mapping == APDM or self.per_session:
            key += (probe.server.port,)
        if self.per_session:
            key += (probe.question, probe.number)
        if key not in self._mappings:
            self._mappings[key] = self._allocate(port)
        return self._mappings[key]

    def _allocate(self, port: int) -> int:
        if self.allocation == "sequential":
            self._last += 2
            return self._last
        if self.allocation == "band":
            return 20480 + self._random.randrange(512)
        if self.allocation == "random":
            return self._random.randrange(1024, 65536)
        free = port + (7 if self.allocation == "offset" else 0)
        while free in self._mappings.values():
            free += 1
        return free


def ask(nat: SimulatedNat, servers: Sequence[Endpoint] = (FIRST,), *, trouble: bool = False) -> Discovery:
    """A whole discovery; every batch has the ports that a driver would give it."""
    machine = DiscoveryMachine(servers, trouble=trouble)
    chance = random.Random(7)
    while batches := machine.batches_to_start():
        for batch in batches:
            shared = chance.randrange(20000, 32767)
            for probe in batch:
                own = probe.question == "allocation"
                port = chance.randrange(20000, 32767) if own else shared
                machine.handle_outcome(nat.answer(probe, port))
    assert machine.is_done
    return conclude(machine.outcomes, servers=servers)
