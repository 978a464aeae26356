"""The listener's port for one round: when there is one, how many at once, and who closes it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._traversal import round_port
from ntcpsock._traversal.checks.port import UdpPort, open_udp_port
from ntcpsock._traversal.gather_udp import WarmDatagramPort
from ntcpsock._traversal.punch.message import Candidate
from ntcpsock._traversal.round_port import MAX_ROUND_PORTS, RoundPorts

SERVER = Endpoint("203.0.113.1", 3478)
TRANSLATED = (Candidate("srflx", "udp", "203.0.113.9", 40000),)
HOST_ONLY = (Candidate("host", "udp", "198.51.100.7", 40000),)


def warm(candidates: tuple[Candidate, ...], server: Endpoint | None = SERVER) -> WarmDatagramPort:
    return WarmDatagramPort(open_udp_port(ipv6=False), server, candidates=candidates)


@pytest.fixture
def shared() -> WarmDatagramPort:
    return WarmDatagramPort(UdpPort([]), SERVER, candidates=TRANSLATED)


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[WarmDatagramPort]:
    """What the STUN server has seen of each port, in place of a server: a NAT has translated it."""
    made: list[WarmDatagramPort] = []

    async def gather_udp(servers: Sequence[Endpoint]) -> WarmDatagramPort:
        assert servers == [SERVER]
        made.append(warm(TRANSLATED))
        return made[-1]

    monkeypatch.setattr(round_port, "gather_udp", gather_udp)
    return made


async def test_a_port_for_a_block(shared: WarmDatagramPort, gathered: list[WarmDatagramPort]) -> None:
    async with RoundPorts().gather(shared) as fresh:
        assert fresh is gathered[0]
        assert not fresh.port.closed
    assert gathered[0].port.closed


@pytest.mark.parametrize("candidates", [HOST_ONLY, ()])
async def test_where_nothing_translates_there_is_nothing_to_be_had(
    candidates: tuple[Candidate, ...], gathered: list[WarmDatagramPort]
) -> None:
    """No NAT can have got the shared port wrong."""
    async with RoundPorts().gather(WarmDatagramPort(UdpPort([]), SERVER, candidates=candidates)) as fresh:
        assert fresh is None
    assert not gathered


async def test_without_an_answer_the_round_goes_on_with_the_shared_one(
    shared: WarmDatagramPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fresh port has host candidates alone, or there is none at all."""
    unseen = warm(HOST_ONLY, None)

    async def gather_in_vain(servers: Sequence[Endpoint]) -> WarmDatagramPort:
        return unseen

    async def gather_nothing(servers: Sequence[Endpoint]) -> WarmDatagramPort:
        raise OSError("no free UDP port")

    for gather in (gather_in_vain, gather_nothing):
        monkeypatch.setattr(round_port, "gather_udp", gather)
        async with RoundPorts().gather(shared) as fresh:
            assert fresh is None
    assert unseen.port.closed


async def test_no_more_than_so_many_at_once(
    shared: WarmDatagramPort, gathered: list[WarmDatagramPort]
) -> None:
    ports = RoundPorts()
    async with AsyncExitStack() as stack:
        for _ in range(MAX_ROUND_PORTS):
            assert await stack.enter_async_context(ports.gather(shared)) is not None
        assert await stack.enter_async_context(ports.gather(shared)) is None
    assert all(port.port.closed for port in gathered)
    async with ports.gather(shared) as fresh:
        assert fresh is not None
