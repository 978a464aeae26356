"""Ports that the router forwards to us because we asked it: found, held, renewed and given back.

The three protocols are looked for at the same time, and the first that maps is used from then on. Routers keep one
table for all of them, so no two are asked for a mapping side by side: to give back the loser's would take the winner's.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from ntcpsock._address import Endpoint, may_be_dialled
from ntcpsock._traversal.portmap.driver import Grant, MappingRefused, NatPmp, Pcp, RouterProtocol
from ntcpsock._traversal.portmap.gateway import default_gateway
from ntcpsock._traversal.portmap.machine import Lease
from ntcpsock._traversal.portmap.upnp import Upnp

# Seconds for which a mapping is asked. Short enough that what a killed process leaves behind is soon gone, and
# long enough that renewals are no load; RFC 6886 section 3.3 recommends 7200.
LIFETIME = 1200

# Seconds for giving a mapping back, also when all else has been cancelled.
REMOVAL_DEADLINE = 3.0

# Seconds until the next try after failures: the first answer may have been lost, and people switch things on.
RETRY_PAUSES = (10.0, 60.0, 600.0)

# Seconds between two looks whether the connection that came by a dial's mapping is still open.
LOOK_INTERVAL = 15.0

# Seconds between two tries at least.
_SHORTEST_PAUSE = 1.0


class NoMapping(OSError):
    """No protocol has mapped the port; the text says what each of them answered."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where a local port is reached from outside, and by which protocol: "pcp", "nat-pmp" or "upnp"."""

    protocol: str
    external: Endpoint


#: Is told a mapping when it is made or has moved, and None when it is lost.
Changed = Callable[[Mapping | None], Awaitable[None]]


class HasDescriptor(Protocol):
    """A socket of any class: -1 says that it is closed."""

    def fileno(self) -> int: ...


def protocols_of(gateway: str) -> list[RouterProtocol]:
    """Every protocol that the router might speak."""
    return [Pcp(gateway), NatPmp(gateway), Upnp(gateway)]


class PortMapper:
    """Asks one router for one node, and remembers what it speaks. The router is first asked when a port is wanted.

    find: gives the protocols to try; raises OSError where there is nobody to ask.
    """

    def __init__(self, find: Callable[[], Sequence[RouterProtocol]] | None = None) -> None:
        self._find = find or (lambda: protocols_of(default_gateway()))
        self._speaking: RouterProtocol | None = None
        self._asking = trio.Lock()
        self._failures = 0
        self._failed: NoMapping | None = None
        self._silent_until = float("-inf")
        self._networks = 0

    def forget(self) -> None:
        """The network is another one: there may be another router, which speaks something else."""
        self._speaking = self._failed = None
        self._failures = 0
        self._silent_until = float("-inf")
        self._networks += 1

    def refusal(self) -> str | None:
        """Why nothing would be mapped now, without asking; None where it might be."""
        failed = self._failed is not None and trio.current_time() < self._silent_until
        return self._failed.strerror if failed and self._failed is not None else None

    async def keep(self, port: int, changed: Changed) -> None:
        """Have a local TCP port mapped, again and again, until cancelled; then it is given back, which takes
        REMOVAL_DEADLINE seconds at most."""
        while True:
            with suppress(OSError):
                await self.hold(port, changed)
            await trio.sleep_until(max(self._silent_until, trio.current_time() + _SHORTEST_PAUSE))

    async def hold(self, port: int, changed: Changed) -> None:
        """Have a port mapped and the lease renewed until it is lost or this is cancelled; then it is given back.

        Raises NoMapping; at once for some time after the router has mapped nothing.
        """
        protocol, grant = await self._map(port)
        try:
            await changed(Mapping(protocol.name, grant.external))
            await _renew(protocol, port, grant, changed)
            await changed(None)
        finally:
            await _give_back(protocol, port)

    async def _map(self, port: int) -> tuple[RouterProtocol, Grant]:
        async with self._asking:
            if self._speaking is not None:
                speaking = self._speaking
                with suppress(OSError):
                    return speaking, await _map_by(speaking, port)
                self._speaking = None
            refusal = self.refusal()
            if refusal is not None:
                raise NoMapping(errno.EOPNOTSUPP, refusal)
            network = self._networks
            try:
                speaking, grant = await self._map_by_first(port)
            except NoMapping as error:
                if network != self._networks:
                    raise
                pause = RETRY_PAUSES[min(self._failures, len(RETRY_PAUSES) - 1)]
                self._silent_until = trio.current_time() + pause
                self._failed = error
                self._failures += 1
                raise
            if network == self._networks:
                self._failures = 0
                self._speaking = speaking
            return speaking, grant

    async def _map_by_first(self, port: int) -> tuple[RouterProtocol, Grant]:
        failures: dict[str, str] = {}
        found: tuple[RouterProtocol, Grant] | None = None

        async def look_for(
            protocol: RouterProtocol, speaking: trio.MemorySendChannel[RouterProtocol]
        ) -> None:
            with speaking:
                try:
                    await protocol.probe()
                except OSError as error:
                    failures[protocol.name] = words(error)
                else:
                    with suppress(trio.BrokenResourceError):  # another one was as quick, and has mapped
                        speaking.send_nowait(protocol)

        try:
            protocols = self._find()
        except OSError as error:
            raise NoMapping(errno.EOPNOTSUPP, words(error)) from error
        try:
            async with trio.open_nursery() as nursery:
                sender, receiver = trio.open_memory_channel[RouterProtocol](len(protocols))
                with sender, receiver:
                    for protocol in protocols:
                        nursery.start_soon(look_for, protocol, sender.clone())
                    sender.close()
                    async for protocol in receiver:
                        try:
                            found = protocol, await _map_by(protocol, port)
                        except OSError as error:
                            failures[protocol.name] = words(error)
                        else:
                            nursery.cancel_scope.cancel()
                            break
        except BaseException:
            if found is not None:
                await _give_back(found[0], port)
            raise
        if found is None:
            text = "; ".join(f"{name}: {failure}" for name, failure in sorted(failures.items()))
            raise NoMapping(errno.EOPNOTSUPP, text)
        return found


class DialMapping:
    """The mapping of one dial's port, held by a task of `nursery` until `release`."""

    def __init__(self, mapper: PortMapper, port: int, nursery: trio.Nursery) -> None:
        self._mapper = mapper
        self.port = port
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._known = trio.Event()
        self._mapping: Mapping | None = None
        self._failure: OSError = NoMapping(errno.ECANCELED, "not asked")
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._mapper.hold(self.port, self._changed)
        except OSError as error:
            self._failure = error
        finally:
            self._known.set()

    async def wait(self) -> Mapping:
        """The mapping. Raises NoMapping."""
        await self._known.wait()
        if self._mapping is None:
            raise NoMapping(*self._failure.args)
        return self._mapping

    def release(self, sock: HasDescriptor | None = None) -> None:
        """Give the port back, in the background.

        sock: a connection that came by it, and ends first: some routers cut what a mapping has let in.
        """
        if sock is None:
            self._scope.cancel()
        else:
            self._nursery.start_soon(self._release_after, sock)

    async def _release_after(self, sock: HasDescriptor) -> None:
        while sock.fileno() != -1:
            await trio.sleep(LOOK_INTERVAL)
        self._scope.cancel()

    async def _changed(self, mapping: Mapping | None) -> None:
        self._mapping = mapping
        self._known.set()


def words(error: OSError) -> str:
    """What went wrong, for a report."""
    if isinstance(error, ConnectionRefusedError):
        return "not spoken"
    return error.strerror or str(error)


async def _map_by(protocol: RouterProtocol, port: int) -> Grant:
    try:
        # The port itself is wished: then peers that know it from STUN are not wrong.
        grant = await protocol.map(port, port, LIFETIME)
        _check(grant)
    except BaseException:
        # Whatever came back, there may be a mapping, and the protocol remembers the port.
        await _give_back(protocol, port)
        raise
    return grant


def _check(grant: Grant) -> None:
    """What a router says goes to peers. Raises MappingRefused where they could make nothing of it."""
    if grant.external.is_ipv6 or not may_be_dialled(grant.external):
        raise MappingRefused(f"it maps to {grant.external}, where nobody can be reached")


async def _renew(protocol: RouterProtocol, port: int, grant: Grant, changed: Changed) -> None:
    """Until the lease has ended."""
    lease = Lease(grant.lifetime, trio.current_time())
    while True:
        await trio.sleep_until(lease.next_timeout())
        what = lease.due(trio.current_time())
        if what == "ended":
            return
        if what == "check":
            intact = True
            with suppress(OSError):
                intact = await protocol.check(port)
            lease.checked(intact=intact, now=trio.current_time())
        elif what == "renew":
            try:
                renewed = await protocol.map(port, grant.external.port, LIFETIME)
                _check(renewed)
            except OSError:
                lease.renewal_failed(trio.current_time())
                continue
            lease.granted(renewed.lifetime, trio.current_time())
            moved, grant = renewed.external != grant.external, renewed
            if moved:
                await changed(Mapping(protocol.name, grant.external))


async def _give_back(protocol: RouterProtocol, port: int) -> None:
    with trio.move_on_after(REMOVAL_DEADLINE) as scope:
        scope.shield = True
        with suppress(OSError):
            await protocol.unmap(port)
