"""How a NAT maps fresh local UDP ports right now, and the sockets of these ports: as `observe.py` does it for TCP."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.pairs import Outgoing
from ntcpsock._traversal.checks.port import UdpPort, open_udp_ports
from ntcpsock._traversal.checks.sockets import reopen_sockets
from ntcpsock._traversal.observe import FIRST_SAMPLES, GRACE, NOBODY, SHORTEST_GRACE, descriptor_budget
from ntcpsock._traversal.prediction import (
    BAND_SAMPLES,
    Observation,
    Prediction,
    knows_band,
    left_between,
    predict,
)

# Seconds for one observation: a lost request is repeated once or twice.
OBSERVATION_DEADLINE = 1.5
STUN_RTO = 0.4

#: The socket whose packet goes to the other side during a look.
KNOCKING = FIRST_SAMPLES + BAND_SAMPLES


@dataclass
class HeldDatagramPorts:
    """The observations, oldest first, and the sockets that they were made with, as one port.

    The last socket is a fresh one that no NAT has seen yet; `fresh` opens more.
    """

    port: UdpPort
    observations: list[Observation] = field(default_factory=list)
    budget: int = 0
    #: The packet to the other side left between the observations of these two local ports.
    between: tuple[int, int] | None = None

    def leaves(self, prediction: Prediction) -> bool | None:
        """As `HeldPorts.leaves`."""
        return left_between(self.observations, self.between, prediction)

    def base_of(self, local_port: int) -> int:
        """The socket that has a local port."""
        return next(base for base in range(len(self.port.sockets)) if self.port.number_of(base) == local_port)

    @property
    def spare(self) -> int:
        """A local port that no NAT has seen yet."""
        return self.port.number_of(len(self.port.sockets) - 1)

    def fresh(self, count: int) -> range:
        """The numbers of so many more sockets. Raises OSError without free ports or descriptors."""
        return self.port.add(open_udp_ports(count).sockets)

    def again(self, numbers: Sequence[int]) -> dict[int, int]:
        """The sockets of local ports that were used before, by these; without those that somebody else has now."""
        sockets = reopen_sockets(numbers)
        bases = self.port.add(list(sockets.values()))
        return dict(zip(sockets, bases, strict=True))


@asynccontextmanager
async def hold_datagram_ports(
    servers: Sequence[Endpoint], nursery: trio.Nursery, taken: Collection[int] = (), *, towards: str = ""
) -> AsyncIterator[HeldDatagramPorts]:
    """Observe the NAT in this moment. Servers that do not answer are left out.

    nursery: reads the sockets; taken, towards: as for `hold_ports`. The sockets are closed with the block,
    unless a path has taken them (`port.retire`). Raises OSError without a free port.
    """
    servers = [server for server in servers if not server.is_ipv6]
    count = KNOCKING + 2 if servers else 1
    held = HeldDatagramPorts(open_udp_ports(count), budget=descriptor_budget())
    try:
        nursery.start_soon(held.port.run)
        if servers:
            await _look(held, servers, range(FIRST_SAMPLES), towards)
            prediction = predict(held.observations, held.spare)
            is_band = prediction is not None and prediction.shape == "band"
            if is_band and not knows_band(held.observations, taken):
                await _look(held, servers[:1], range(FIRST_SAMPLES, FIRST_SAMPLES + BAND_SAMPLES))
        yield held
    finally:
        held.port.retire()


async def _look(
    held: HeldDatagramPorts, servers: Sequence[Endpoint], bases: range, towards: str = ""
) -> None:
    """Observe these sockets at the first server, in order, and the last one at the second too; in the midst of them a
    datagram goes to nobody at `towards`."""
    found: dict[int, Observation] = {}
    asked = [(base, servers[0]) for base in bases]
    if len(servers) > 1:
        asked.append((asked[-1][0], servers[1]))
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = begin + OBSERVATION_DEADLINE

        async def ask(base: int, server: Endpoint, number: int) -> None:
            mapped = await held.port.ask(server, rto=STUN_RTO, base=base)
            if mapped is not None:
                found[number] = Observation(held.port.number_of(base), server, mapped)
                if len(found) == math.ceil(len(asked) * 2 / 3):
                    now = trio.current_time()
                    nursery.cancel_scope.deadline = now + max(SHORTEST_GRACE, GRACE * (now - begin))

        async def knock() -> None:
            held.port.send(Outgoing(KNOCKING, Endpoint(towards, NOBODY), b"\0"))

        for number, (base, server) in enumerate(asked):
            if towards and number == len(bases) // 2:
                held.between = held.port.number_of(asked[number - 1][0]), held.port.number_of(base)
                nursery.start_soon(knock)
                await trio.lowlevel.checkpoint()
            nursery.start_soon(ask, base, server, number)
            # The request leaves when the task runs for the first time: one after the other.
            await trio.lowlevel.checkpoint()
    held.observations += [found[number] for number in sorted(found)]
