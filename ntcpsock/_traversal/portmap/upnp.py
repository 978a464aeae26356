"""UPnP-IGD: the gateway is found by SSDP, and miniupnpc, which blocks, talks to it in a worker thread."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.portmap import ssdp
from ntcpsock._traversal.portmap.driver import PROBE_DEADLINE, Grant, MappingRefused

R = TypeVar("R")

# What it is called in the router's list of mappings.
DESCRIPTION = "ntcpsock"

# Seconds for the description, or for one action. miniupnpc itself gives up each connection after 3.
ACTION_DEADLINE = 5.0

# The M-SEARCH is repeated once: a datagram may be lost (UPnP Device Architecture 1.1 section 1.3.2).
_SEARCHES = 2

# External ports that are tried where somebody has the wished one.
_PORT_TRIES = 4
_PORTS = (20000, 60000)

_LARGEST_DATAGRAM = 4096


class Upnp:
    """One gateway. Its threads run one after the other; an abandoned one ends by itself, and takes back what it has
    mapped when nobody is left to take it."""

    name = "upnp"

    def __init__(self, gateway: str, port: int = ssdp.PORT) -> None:
        self._gateway = gateway
        self._port = port
        self._turn = trio.CapacityLimiter(1)
        self._location: str | None = None
        self._device: Any = None
        self._external: dict[int, int] = {}
        self.dropped = 0

    async def probe(self) -> str | None:
        _library()
        self._location = await self._search()
        return await self._call(self._find_device)

    async def map(self, port: int, external_port: int, lifetime: int) -> Grant:
        renewal = port in self._external
        try:
            return await self._map(port, external_port or port, lifetime)
        except MappingRefused:
            if not renewal:
                raise
            # A router that was restarted may have its description elsewhere.
            await self.probe()
            return await self._map(port, external_port or port, lifetime)

    async def _map(self, port: int, external_port: int, lifetime: int) -> Grant:
        wish = self._external.get(port, external_port)
        abandoned = threading.Event()
        try:
            external, granted, address = await self._call(lambda: self._add(port, wish, lifetime, abandoned))
        except BaseException:
            abandoned.set()
            raise
        return Grant(Endpoint(address, external), granted)

    async def check(self, port: int) -> bool:
        external = self._external.get(port)

        def look() -> bool:
            entry = self._device.getspecificportmapping(external, "TCP")
            return entry is not None and tuple(entry[:2]) == (self._device.lanaddr, port)

        return external is not None and await self._call(look)

    async def unmap(self, port: int) -> None:
        def delete() -> None:
            # Looked up here: a thread before this one may have been the one to map.
            external = self._external.pop(port, None)
            if external is not None:
                self._device.deleteportmapping(external, "TCP")

        await self._call(delete)

    async def _search(self) -> str:
        """The URL of the gateway's description. Raises TimeoutError."""
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            local = await _source_address(self._gateway)
            await sock.bind((local, 0))
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_IF, _packed(local))
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_TTL, 2)
            with trio.move_on_after(PROBE_DEADLINE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._ask_everybody, sock)
                    location = await self._first_location(sock)
                    nursery.cancel_scope.cancel()
                return location
        raise TimeoutError(errno.ETIMEDOUT, "no answer")

    async def _ask_everybody(self, sock: trio.socket.SocketType) -> None:
        for _ in range(_SEARCHES):
            # Some networks swallow multicast, some routers answer nothing else.
            for host in (ssdp.MULTICAST_ADDRESS, self._gateway):
                for target in ssdp.SEARCH_TARGETS:
                    try:
                        await sock.sendto(ssdp.encode_search(host, target), (host, self._port))
                    except OSError:
                        continue
            await trio.sleep(PROBE_DEADLINE / 3)

    async def _first_location(self, sock: trio.socket.SocketType) -> str:
        while True:
            try:
                data, source = await sock.recvfrom(_LARGEST_DATAGRAM)
            except ConnectionError:  # the gateway's ICMP to what went before
                continue
            try:
                if source[0] != self._gateway:
                    raise BadMessage("SSDP: not from the gateway")
                return ssdp.decode_location_untrusted(data, self._gateway)
            except BadMessage:
                self.dropped += 1

    async def _call(self, action: Callable[[], R]) -> R:
        """Run a blocking action in a thread. Cancelling, and the deadline, leave it to itself."""

        def run() -> R:
            try:
                return action()
            except OSError:
                raise
            except Exception as error:  # miniupnpc knows no other class
                raise MappingRefused(str(error) or "no usable answer") from error

        with trio.move_on_after(ACTION_DEADLINE):
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._turn)
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {ACTION_DEADLINE:g} s")

    # In the thread.

    def _find_device(self) -> str | None:
        device = _library().UPnP()
        device.selectigd(self._location)
        address = str(device.externalipaddress())
        self._device = device
        return address or None

    def _add(
        self, port: int, external: int, lifetime: int, abandoned: threading.Event
    ) -> tuple[int, int, str]:
        device = self._device
        chance = random.SystemRandom()
        for number in range(_PORT_TRIES):
            try:
                device.addportmapping(external, "TCP", device.lanaddr, port, DESCRIPTION, "", lifetime)
            except Exception as error:
                word = str(error)
                if word == "OnlyPermanentLeasesSupported" and lifetime:
                    lifetime = 0
                elif word != "ConflictInMappingEntry" or number == _PORT_TRIES - 1:
                    raise
                else:
                    external = chance.randint(*_PORTS)
                continue
            break
        self._external[port] = external
        if abandoned.is_set():
            del self._external[port]
            device.deleteportmapping(external, "TCP")
        return external, lifetime, str(device.externalipaddress())


def _library() -> Any:
    """Raises OSError where it is missing: not every platform has a wheel of it."""
    try:
        import miniupnpc  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise OSError(
            errno.ENOPKG, "the library miniupnpc is not installed: pip install miniupnpc"
        ) from error
    return miniupnpc


async def _source_address(destination: str) -> str:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as probe:
        await probe.connect((destination, ssdp.PORT))
        return str(probe.getsockname()[0])


def _packed(host: str) -> bytes:
    return trio.socket.inet_aton(host)
