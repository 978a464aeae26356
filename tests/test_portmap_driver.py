"""NAT-PMP, PCP and UPnP against gateways on loopback that answer well, badly, late or not at all."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from portmap_support import LOOPBACK, Gateway, open_gateway

from ntcpsock._address import Endpoint
from ntcpsock._traversal.mapping_probe import probe_port_mapping
from ntcpsock._traversal.portmap import upnp
from ntcpsock._traversal.portmap.driver import Grant, MappingRefused, NatPmp, Pcp, RouterProtocol
from ntcpsock._traversal.portmap.upnp import Upnp

PATIENCE = 60.0  # seconds until a wait is given up
PORT = 20001

MAKERS = [Pcp, NatPmp]
VERSION = {"pcp": 2, "nat-pmp": 0}

both = pytest.mark.parametrize("make", MAKERS)


@both
async def test_map_renew_and_unmap(make: Callable[[str, int], Pcp | NatPmp]) -> None:
    async with open_gateway(Gateway(grants=600)) as gateway:
        protocol = make(LOOPBACK, gateway.port)
        assert await protocol.probe() in (None, "192.0.2.1")
        granted = Grant(Endpoint("192.0.2.1", 4000), 600)
        assert await protocol.map(PORT, 4000, 1200) == granted
        assert await protocol.check(PORT)
        assert await protocol.map(PORT, 4000, 1200) == granted
        assert gateway.table == {(VERSION[protocol.name], PORT): 4000}
        await protocol.unmap(PORT)
        assert gateway.table == {}
        # RFC 6887 section 11.2: renewals and the deletion bear the nonce of the first request.
        assert len(gateway.nonces) == (protocol.name == "pcp")


@both
async def test_a_restart_is_noticed_for_each_mapping(make: Callable[[str, int], Pcp | NatPmp]) -> None:
    async with open_gateway(Gateway()) as gateway:
        protocol = make(LOOPBACK, gateway.port)
        for port in (PORT, PORT + 1):
            await protocol.map(port, port, 1200)
        gateway.epoch = 1
        assert not await protocol.check(PORT)
        assert not await protocol.check(PORT + 1)
        await protocol.map(PORT, PORT, 1200)
        assert await protocol.check(PORT)
        assert not await protocol.check(PORT + 1)


@both
@pytest.mark.parametrize(("result", "word"), [(2, "not authorized"), (99, "error 99")])
async def test_a_refusal_is_said(make: Callable[[str, int], Pcp | NatPmp], result: int, word: str) -> None:
    async with open_gateway(Gateway(result=result)) as gateway:
        with pytest.raises(MappingRefused, match=word) as caught:
            await make(LOOPBACK, gateway.port).map(PORT, PORT, 1200)
        assert caught.value.errno == errno.EPERM
        assert caught.value.code == result


@both
async def test_garbage_is_dropped_and_counted(make: Callable[[str, int], Pcp | NatPmp]) -> None:
    junk = (b"", b"\0", b"\xff" * 60, b"\0\x82\0\0" + bytes(4) + b"\1\1\2\2\0\0\0\1", b"\2\x81" + bytes(58))
    async with open_gateway(Gateway(junk=junk)) as gateway:
        protocol = make(LOOPBACK, gateway.port)
        assert (await protocol.map(PORT, 4000, 1200)).external == Endpoint("192.0.2.1", 4000)
        # NAT-PMP asks for the external address as well.
        assert protocol.dropped == len(junk) * len(gateway.requests)


@both
async def test_only_the_gateway_is_heard(make: Callable[[str, int], Pcp | NatPmp]) -> None:
    """Somebody else who sees the request answers first, with an address of his own."""
    async with open_gateway(Gateway(speaks=frozenset())) as gateway:
        protocol = make(LOOPBACK, gateway.port)
        heard: list[Grant] = []

        async def ask() -> None:
            heard.append(await protocol.map(PORT, 4000, 1200))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.fail_after(PATIENCE):
                while not gateway.requests:
                    await trio.sleep(0.01)
            liar = Gateway()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((LOOPBACK, 0))
                for client in _udp_ports_connected_to(gateway.port):
                    for answer in liar.answers(gateway.requests[0]):
                        sock.sendto(answer, (LOOPBACK, client))
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert liar.requests
        assert heard == []


def _udp_ports_connected_to(port: int) -> Iterator[int]:
    with open("/proc/net/udp", encoding="ascii") as table:
        for line in list(table)[1:]:
            local, remote = (int(field.split(":")[1], 16) for field in line.split()[1:3])
            if remote == port:
                yield local


@both
async def test_silence_is_known_within_a_second(
    make: Callable[[str, int], Pcp | NatPmp], autojump_clock: trio.testing.MockClock
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((LOOPBACK, 0))
        started = trio.current_time()
        with pytest.raises(TimeoutError):
            await make(LOOPBACK, silent.getsockname()[1]).probe()
        assert trio.current_time() - started == pytest.approx(1.0)


@both
async def test_nobody_at_the_port_is_known_at_once(
    make: Callable[[str, int], Pcp | NatPmp], autojump_clock: trio.testing.MockClock
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((LOOPBACK, 0))
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await make(LOOPBACK, port).probe()
    assert trio.current_time() == pytest.approx(0.0, abs=0.9)


@both
async def test_a_lost_datagram_is_sent_again(
    make: Callable[[str, int], Pcp | NatPmp], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_gateway(Gateway(losses=1)) as gateway:
        assert (await make(LOOPBACK, gateway.port).map(PORT, 4000, 1200)).lifetime == 1200
        assert gateway.requests[0] == gateway.requests[1]


async def test_a_gateway_of_one_version_tells_so() -> None:
    """Either kind answers the other's requests with an error (RFC 6886 section 3.5, RFC 6887 section 9)."""

    class Natpmp(Gateway):
        def _pcp(self, request: bytes) -> bytes:
            return b"\0\x80\0\1" + bytes(4)

    class PcpAlone(Gateway):
        def _natpmp(self, request: bytes) -> bytes:
            return b"\2\x80\0\1" + bytes(20)

    for gateway, stranger in ((Natpmp(), Pcp), (PcpAlone(), NatPmp)):
        async with open_gateway(gateway):
            with pytest.raises(MappingRefused, match="unsupp"):
                await stranger(LOOPBACK, gateway.port).probe()


async def test_probe_of_what_a_gateway_speaks() -> None:
    async with open_gateway(Gateway(speaks=frozenset({0}))) as gateway:
        protocols: list[RouterProtocol] = [Pcp(LOOPBACK, gateway.port), NatPmp(LOOPBACK, gateway.port)]
        probe = await probe_port_mapping(["192.0.2.1"], protocols)
        assert probe.external == {"nat-pmp": "192.0.2.1"}
        assert probe.failures == {"pcp": "no answer"}
        assert probe.verdict == "public"
        assert (await probe_port_mapping(["198.51.100.1"], protocols)).verdict == "elsewhere"
        assert gateway.table == {}


# UPnP: the search is ours, the rest a library that blocks.


class Device:
    """What miniupnpc's UPnP object does, as told."""

    lanaddr = "192.168.1.2"

    def __init__(self) -> None:
        self.table: dict[int, tuple[str, int, int]] = {}
        self.failures: list[str] = []
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()

    def UPnP(self) -> Device:
        return self

    def selectigd(self, location: str) -> None:
        if not location.endswith("/rootDesc.xml"):
            raise Exception("No UPnP device discovered")

    def externalipaddress(self) -> str:
        return "192.0.2.1"

    def addportmapping(self, external: int, protocol: str, host: str, port: int, *rest: Any) -> bool:
        self.entered.set()
        assert self.proceed.wait(PATIENCE)
        if self.failures:
            raise Exception(self.failures.pop(0))
        self.table[external] = (host, port, rest[2])
        return True

    def getspecificportmapping(self, external: int, protocol: str) -> tuple[str, int, str, bool, int] | None:
        entry = self.table.get(external)
        return None if entry is None else (entry[0], entry[1], "", True, entry[2])

    def deleteportmapping(self, external: int, protocol: str) -> bool:
        if self.table.pop(external, None) is None:
            raise Exception("NoSuchEntryInArray")
        return True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(upnp, "_library", lambda: made)
    return made


SSDP_ANSWER = (
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"LOCATION: http://%b:5000/rootDesc.xml\r\n\r\n"
)


class SearchedGateway(Gateway):
    """Answers searches: first nonsense, then where a third machine's description is, then its own."""

    def answers(self, request: bytes) -> Iterator[bytes]:
        self.requests.append(request)
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        yield SSDP_ANSWER % b"192.0.2.99"
        yield SSDP_ANSWER % LOOPBACK.encode()


async def test_upnp_map_check_and_unmap(device: Device) -> None:
    async with open_gateway(SearchedGateway()) as gateway:
        protocol = Upnp(LOOPBACK, gateway.port)
        assert await protocol.probe() == "192.0.2.1"
        assert protocol.dropped == 2
        assert await protocol.map(PORT, 4000, 1200) == Grant(Endpoint("192.0.2.1", 4000), 1200)
        assert device.table == {4000: ("192.168.1.2", PORT, 1200)}
        assert await protocol.check(PORT)
        device.table[4000] = ("192.168.1.77", PORT, 1200)
        assert not await protocol.check(PORT)
        await protocol.unmap(PORT)
        assert device.table == {}
        await protocol.unmap(PORT)


async def test_upnp_hears_no_third_machine(device: Device, autojump_clock: trio.testing.MockClock) -> None:
    """Whoever answers instead of the gateway is left aside."""
    # Bound to all addresses, it is asked at one and answers from another.
    async with open_gateway(SearchedGateway(), "0.0.0.0") as other:
        protocol = Upnp("127.0.0.2", other.port)
        with pytest.raises(TimeoutError):
            await protocol.probe()
        assert protocol.dropped == 3 * len(other.requests) > 0


async def test_upnp_takes_another_port_and_leases_without_end(device: Device) -> None:
    async with open_gateway(SearchedGateway()) as gateway:
        protocol = Upnp(LOOPBACK, gateway.port)
        await protocol.probe()
        device.failures = ["ConflictInMappingEntry", "OnlyPermanentLeasesSupported"]
        grant = await protocol.map(PORT, 4000, 1200)
        assert grant.external.port != 4000
        assert grant.lifetime == 0
        assert device.table == {grant.external.port: ("192.168.1.2", PORT, 0)}
        device.failures = ["Action Not Authorized"]
        with pytest.raises(MappingRefused, match="Not Authorized"):
            await protocol.map(PORT + 1, 4001, 1200)


async def test_an_abandoned_thread_takes_back_what_it_has_mapped(device: Device) -> None:
    async with open_gateway(SearchedGateway()) as gateway:
        protocol = Upnp(LOOPBACK, gateway.port)
        await protocol.probe()
        device.proceed.clear()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(protocol.map, PORT, 4000, 1200)
                await trio.to_thread.run_sync(device.entered.wait)
                nursery.cancel_scope.cancel()
            assert device.table == {}
            device.proceed.set()
            # Behind the abandoned thread, which is done when this one has its turn.
            await protocol.unmap(PORT)
        assert device.table == {}


async def test_without_the_library_upnp_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "miniupnpc", None)
    with pytest.raises(OSError, match="pip install miniupnpc"):
        await Upnp(LOOPBACK).probe()
