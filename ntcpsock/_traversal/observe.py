"""How a NAT maps fresh local ports right now: the evidence of `prediction.py`, and the ports to punch from."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.prediction import (
    BAND_SAMPLES,
    MAX_SESSIONS,
    Observation,
    Prediction,
    knows_band,
    left_between,
    predict,
)
from ntcpsock._traversal.punch.driver import choose_port, open_punch_socket
from ntcpsock._traversal.stun.driver import binding_over_tcp

# Seconds for one observation. When most have come, the rest get this many times what those took: on a path that
# loses packets one of many is always late.
OBSERVATION_DEADLINE = 2.0
SHORTEST_GRACE = 0.25
GRACE = 2.0

# Fresh ports that are looked at: enough for a step; more where that shows none, to see how wide a band is.
FIRST_SAMPLES = 4

#: Traceroute's first port: nobody listens there.
NOBODY = 33434

# Descriptors that stay free for everything else.
_SPARE_DESCRIPTORS = 128


@dataclass
class HeldPorts:
    """The observations, oldest first, and the connections to the STUN servers that keep them true.

    spare: a local port that no NAT has seen yet.
    """

    spare: int = field(default_factory=choose_port)
    observations: list[Observation] = field(default_factory=list)
    sockets: list[trio.socket.SocketType] = field(default_factory=list)
    budget: int = MAX_SESSIONS
    #: The packet to the other side left between the observations of these two local ports.
    between: tuple[int, int] | None = None

    def leaves(self, prediction: Prediction) -> bool | None:
        """Whether that packet got through our own network: a NAT that counts has counted it."""
        return left_between(self.observations, self.between, prediction)

    def fresh(self, count: int) -> list[int]:
        """`count` more local ports that no NAT has seen yet."""
        ports: dict[int, None] = {}
        while len(ports) < count:
            if (port := choose_port()) != self.spare:
                ports[port] = None
        return list(ports)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@asynccontextmanager
async def hold_ports(
    servers: Sequence[Endpoint], taken: Collection[int] = (), *, towards: str = ""
) -> AsyncIterator[HeldPorts]:
    """Observe the NAT in this moment. Servers that do not answer are left out; raises OSError without a free port.
    taken: ports that it has given us before; towards: where one packet goes on the way, to see whether it gets out."""
    servers = [server for server in servers if not server.is_ipv6]
    held = HeldPorts(budget=descriptor_budget())
    try:
        if servers:
            await _look(held, servers, FIRST_SAMPLES, towards)
            prediction = predict(held.observations, held.spare)
            is_band = prediction is not None and prediction.shape == "band"
            if is_band and not knows_band(held.observations, taken):
                await _look(held, servers[:1], BAND_SAMPLES)
        yield held
    finally:
        held.close()


async def _look(held: HeldPorts, servers: Sequence[Endpoint], count: int, towards: str = "") -> None:
    """Observe `count` fresh ports at the first server, started in order, and the last one at the second too; in the
    midst of them a SYN goes to nobody at `towards`."""
    found: dict[int, Observation] = {}
    asked = [(port, servers[0]) for port in held.fresh(count)]
    if len(servers) > 1:
        asked.append((asked[-1][0], servers[1]))
    begin = trio.current_time()
    async with trio.open_nursery() as knocking:
        async with trio.open_nursery() as nursery:

            async def ask(sock: trio.socket.SocketType, server: Endpoint, number: int) -> None:
                observation = await _ask(sock, server)
                if observation is not None:
                    found[number] = observation
                    if len(found) == math.ceil(len(asked) * 2 / 3):
                        now = trio.current_time()
                        nursery.cancel_scope.deadline = now + max(SHORTEST_GRACE, GRACE * (now - begin))

            async def knock(sock: trio.socket.SocketType) -> None:
                with suppress(OSError):
                    await sock.connect(Endpoint(towards, NOBODY))

            for number, (port, server) in enumerate(asked):
                if towards and number == count // 2:
                    held.between = asked[number - 1][0], port
                    held.sockets.append(open_punch_socket(choose_port()))
                    knocking.start_soon(knock, held.sockets[-1])
                    await trio.lowlevel.checkpoint()
                sock = open_punch_socket(port)
                held.sockets.append(sock)
                nursery.start_soon(ask, sock, server, number)
                # The SYN leaves when the task runs for the first time: one after the other.
                await trio.lowlevel.checkpoint()
        knocking.cancel_scope.cancel()
    held.observations += [found[number] for number in sorted(found)]


async def _ask(sock: trio.socket.SocketType, server: Endpoint) -> Observation | None:
    port = int(sock.getsockname()[1])
    try:
        with trio.fail_after(OBSERVATION_DEADLINE):
            await sock.connect(server)
            result = await binding_over_tcp(sock)
    except (OSError, trio.TooSlowError):
        return None
    return Observation(port, server, result.mapped)


def descriptor_budget() -> int:
    """Sockets that this process may still open, up to MAX_SESSIONS."""
    if sys.platform == "win32":
        return MAX_SESSIONS
    import os
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_SESSIONS
    used = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 64
    return max(1, min(MAX_SESSIONS, soft - used - _SPARE_DESCRIPTORS))
