"""How far the broker's relays are: one request to each, where there is more than one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.http.driver import Connection, ask, open_connection, open_tls
from ntcpsock._traversal.http.message import Request
from ntcpsock._traversal.http.proxy import find_proxy
from ntcpsock._traversal.relay.told import told_as
from ntcpsock._traversal.relay.tunnel import TlsRelay

#: Seconds between two looks, and for one of them.
INTERVAL = 900.0
DEADLINE = 5.0


class RelayList(Protocol):
    """What is asked of the session with the broker."""

    @property
    def relays(self) -> Sequence[Endpoint]: ...
    @property
    def relays_changed(self) -> trio.Event: ...


class RelayTimes:
    """Of one node; `run` is its task. times: seconds, by the relays' words, of those that take connections."""

    def __init__(self, source: RelayList) -> None:
        self._source = source
        self.times: Mapping[str, float] = {}

    async def run(self) -> NoReturn:
        """Until cancelled: now, after each change, and now and then."""
        known: set[str] = set()
        while True:
            changed = self._source.relays_changed
            relays = tuple(self._source.relays)
            words = {told_as(relay) for relay in relays}
            # A load that has changed makes nobody nearer.
            if len(relays) > 1 and words != known:
                self.times = await measure_all(relays)
                known = words
            with trio.move_on_after(INTERVAL):
                await changed.wait()
                continue
            known = set()


async def measure_all(
    relays: Sequence[Endpoint], clock: Callable[[], float] = trio.current_time
) -> Mapping[str, float]:
    """Round trips in seconds, of those that answer in time that they are ready."""
    times: dict[str, float] = {}

    async def look(relay: Endpoint) -> None:
        with trio.move_on_after(DEADLINE), suppress(OSError):
            times[told_as(relay)] = await measure(relay, clock)

    async with trio.open_nursery() as nursery:
        for relay in relays:
            nursery.start_soon(look, relay)
    return times


async def measure(relay: Endpoint, clock: Callable[[], float] = trio.current_time) -> float:
    """Seconds from a question to its answer, over a connection that is open, as relayed bytes will go. Raises OSError
    where it cannot be reached, or takes no connections."""
    proxy = find_proxy(relay.host)
    connection: Connection
    if isinstance(relay, TlsRelay):
        connection = await open_tls(relay.host, relay.port, proxy, relay.context)
    else:
        connection = await open_connection(relay.host, relay.port, proxy)
    try:
        begin = clock()
        request = Request("HEAD", "/readyz", {"Host": str(Endpoint(*relay[:2])), "Connection": "close"}, 200)
        await ask(connection, request, f"the relay {relay}")
        return clock() - begin
    finally:
        connection.close()
