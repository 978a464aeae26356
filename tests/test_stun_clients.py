"""Other people's STUN clients are content with our server: aioice speaks RFC 5389, pystun3 RFC 3489."""

from __future__ import annotations

import asyncio
import importlib
import socket

import pytest
import trio
from stun_support import serving

from ntcpsock._address import Endpoint

aioice_ice = pytest.importorskip("aioice.ice")


def ask_by_aioice(server: Endpoint) -> tuple[Endpoint, Endpoint]:
    """The reflexive candidate that it finds, and where it asked from."""

    async def main() -> tuple[Endpoint, Endpoint]:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: aioice_ice.StunProtocol(None), local_addr=("127.0.0.1", 0)
        )
        try:
            own = Endpoint(*transport.get_extra_info("sockname"))
            protocol.local_candidate = aioice_ice.Candidate(
                "1", 1, "udp", 1, own.host, own.port, "host", generation=0
            )
            candidate, _ = await aioice_ice.server_reflexive_candidate(protocol, server)
            return Endpoint(candidate.host, candidate.port), own
        finally:
            transport.close()

    return asyncio.run(main())


@pytest.mark.parametrize("other", [None, "127.0.0.2"])
async def test_aioice_finds_its_reflexive_candidate(other: str | None) -> None:
    async with serving(other_address=other) as addresses:
        found, own = await trio.to_thread.run_sync(ask_by_aioice, addresses.primary)
        assert found == own


async def test_pystun3_discovers_as_rfc_3489_has_it() -> None:
    client = importlib.import_module("stun")

    def discover(server: Endpoint) -> tuple[str, str, int, int]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            kind, found = client.get_nat_type(sock, "127.0.0.1", port, server.host, server.port)
            return kind, found["ExternalIP"], found["ExternalPort"], port

    async with serving(other_address="127.0.0.2") as addresses:
        kind, host, mapped, port = await trio.to_thread.run_sync(discover, addresses.primary)
        assert (kind, host, mapped) == (client.OpenInternet, "127.0.0.1", port)
        assert addresses.counters.udp_dropped == 0


async def test_pystun3_and_a_server_with_one_address() -> None:
    client = importlib.import_module("stun")

    def ask(server: Endpoint) -> tuple[str, int, int]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            found = client.stun_test(sock, server.host, server.port, "127.0.0.1", port)
            assert found["Resp"]
            return found["ExternalIP"], found["ExternalPort"], port

    async with serving() as addresses:
        host, mapped, port = await trio.to_thread.run_sync(ask, addresses.primary)
        assert (host, mapped) == ("127.0.0.1", port)
