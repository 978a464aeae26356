"""What runs in the portal's thread: nodes, dialled streams, listeners, and the pumps of all of them.

At most two nodes. A process without a name dials with a throw-away identity; a name needs the permanent
one of the state directory. So the engine opens a nameless node when somebody dials, and a named one when
a name is configured or bound; where a named one is open, it dials too.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import trio

from ntcpsock import _forwarding, _known, _portal
from ntcpsock._config import Config
from ntcpsock._confirmation import wait_confirmed
from ntcpsock._datagram_switch import Switch
from ntcpsock._errors import ConfigurationError, TraversalTimeout
from ntcpsock._gate import Gates
from ntcpsock._hop import Dialled, Door, open_hops
from ntcpsock._listening import Listeners
from ntcpsock._node_slot import NodeOpener, NodeSlot
from ntcpsock._parking import FILL_PAUSE, CarPark, Parked, waiting
from ntcpsock._pump import Stream, reset
from ntcpsock._pumps import Pumps
from ntcpsock._punched import Punched
from ntcpsock.trio import PlainStream


class Engine:
    """Everything that `.ntcp` names need behind the sockets of one process. Lives in the portal's thread."""

    def __init__(self, nursery: trio.Nursery, opener: NodeOpener) -> None:
        self._nursery = nursery
        self._config: Config | None = None
        self._nameless = NodeSlot(nursery, opener)
        self._named = NodeSlot(nursery, opener)
        self._named_label: str | None = None
        self._doors: dict[int, Door] = {}
        self._pumps = Pumps(nursery)
        self.listeners = Listeners(nursery, self, self._pumps)
        self.gates = Gates(nursery, self._dial_for_gate, self._pumps.run)
        self.datagrams = Switch(nursery, self)
        self._parking = trio.Lock()
        self.car_parks: dict[int, CarPark] = {}
        self._handing_over: set[Dialled] = set()

    # -- configuration and nodes

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = Config.load()
        return self._config

    async def configure(self, config: Config) -> None:
        """Use `config` from now on. Raises ConfigurationError where a node runs with another one."""
        if config == self._config:
            return
        if self._nameless.node is not None or self._named.node is not None:
            raise ConfigurationError("ntcpsock runs already, with another configuration")
        self._config = config

    async def start(self, config: Config | None) -> None:
        """Open the node and wait until it is registered and warm."""
        if config is not None:
            await self.configure(config)
        limit = self.config.broker_timeout + self.config.connect_timeout
        with _limit(trio.current_time() + limit, "the node did not get ready"):
            node = await self.dialling_node()
            await node.wait_warm()

    async def dialling_node(self) -> Any:
        """The node that is used where no name is bound."""
        if self.config.name is not None:
            return await self.node_of(self.config.name)
        if self._named.node is not None:
            return self._named.node
        return await self._nameless.get(replace(self.config, name=None))

    async def node_of(self, label: str) -> Any:
        """The named node. It is opened under the configured name, or the first one that is bound."""
        if self._named_label is None:
            self._named_label = self.config.name or label
        try:
            return await self._named.get(replace(self.config, name=self._named_label))
        except BaseException:
            if self._named.node is None:
                self._named_label = None
            raise

    # -- out

    async def dial(
        self,
        config: Config | None,
        label: str,
        port: int,
        timeout: float | None,
        family: int,
        source_port: int = 0,
        descriptor: int | None = None,
    ) -> Dialled | Punched:
        """Open a stream to `label`; it then waits for the application's socket at `.address`.

        timeout: seconds for all stages together; None: the node's own limits; source_port: what the application's
        socket says, or will say, as its port; descriptor: a duplicate of the application's, which then may be the
        connection itself (see `_punched`).
        """
        node, stream = await self._open_stream(config, label, port, timeout, source_port, descriptor)
        if isinstance(stream, PlainStream) and stream.is_given:
            stream.keep_given()
            return Punched(stream, _label(node))
        try:
            dialled = Dialled(stream, _label(node), self._door(family))
        except BaseException:
            await trio.aclose_forcefully(stream)  # type: ignore[arg-type]
            raise
        self._nursery.start_soon(self._hand_over, dialled)
        return dialled

    async def _open_stream(
        self,
        config: Config | None,
        label: str,
        port: int,
        timeout: float | None,
        source_port: int,
        descriptor: int | None = None,
    ) -> tuple[Any, Stream]:
        deadline = trio.current_time() + (math.inf if timeout is None else timeout)
        try:
            if config is not None:
                await self.configure(config)
            with _limit(deadline, "timed out while opening the node"):
                node = await self.dialling_node()
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        left = None if timeout is None else max(0.0, deadline - trio.current_time())
        lent = {} if descriptor is None else {"descriptor": descriptor}
        return node, await node.open_stream(label, port, timeout=left, source_port=source_port, **lent)

    async def open_gate(self, label: str, port: int) -> str | None:
        """Listen for C code at a number of `label`; returns it, or None where none can be had."""
        return self.gates.open(label, port)

    async def release_port(self, port: int) -> bool:
        """The program wants `port` for itself. Whether a gate was there."""
        released = self.datagrams.release(port)
        return self.gates.release(port) or released

    async def _dial_for_gate(self, label: str, port: int, source_port: int) -> tuple[str, Stream]:
        node, stream = await self._open_stream(None, label, port, None, source_port)
        return _label(node), stream

    async def car_park(self, family: int) -> CarPark:
        """Where non-blocking sockets wait while they are dialled for."""
        async with self._parking:
            park = self.car_parks.get(family)
            if park is None:
                park = CarPark(family)
                try:
                    while not park.fill_one():
                        await trio.sleep(FILL_PAUSE)
                except BaseException:
                    park.close()
                    raise
                self.car_parks[family] = park
        return park

    def dial_parked(
        self,
        parked: Parked,
        config: Config | None,
        label: str,
        port: int,
        source_port: int,
        on_connect: Callable[[str, Stream, _known.Ends | None], None],
        on_failure: Callable[[OSError], None],
    ) -> None:
        """Dial in the background; the outcome is seen on the parked descriptor."""
        self._nursery.start_soon(
            self._dial_parked, parked, config, label, port, source_port, on_connect, on_failure
        )

    async def _dial_parked(
        self,
        parked: Parked,
        config: Config | None,
        label: str,
        port: int,
        source_port: int,
        on_connect: Callable[[str, Stream, _known.Ends | None], None],
        on_failure: Callable[[OSError], None],
    ) -> None:
        hop: socket.socket | None = None
        stream: Stream | None = None
        with trio.CancelScope() as parked.scope:
            try:
                node, stream = await self._open_stream(config, label, port, None, source_port)
            except Exception as error:
                failure = _portal.translated(error)
                on_failure(failure)
                parked.fail(failure)
                return
            try:
                await wait_confirmed(stream)
            except BaseException:
                await trio.aclose_forcefully(stream)  # type: ignore[arg-type]
                stream = None
                raise
            # Before the descriptor becomes writable: then the program may ask who its peer is.
            ends = parked.ends()
            _known.enter(ends, stream, _label(node), None)
            if ends is not None:
                _forwarding.expect(ends, parked.wishes())
            on_connect(_label(node), stream, ends)
            try:
                hop = parked.meet()
            except OSError as error:
                on_failure(error)
                parked.fail(error)
        if stream is None:
            return  # the program closed its socket meanwhile
        if hop is None:
            _known.leave(ends)
            await reset(stream)
        else:
            open_hops.add(hop)
            try:
                await self._pumps.run(hop, stream)
            finally:
                _known.leave(ends)

    def _door(self, family: int) -> Door:
        door = self._doors.get(family)
        if door is None:
            door = self._doors[family] = Door(family)
            self._nursery.start_soon(door.run)
        return door

    async def _hand_over(self, dialled: Dialled) -> None:
        stream, hop = dialled.stream, None
        self._handing_over.add(dialled)
        try:
            hop = await dialled.take()
        finally:
            self._handing_over.discard(dialled)
            ends = dialled.ends
            if hop is None:
                _known.leave(ends)
        del dialled  # what waited for it is not kept as long as the connection
        if hop is None:
            await reset(stream)
            return
        try:
            await self._pumps.run(hop, stream)
        finally:
            _known.leave(ends)

    # -- the end

    async def finish(self, *, exiting: bool) -> None:
        """Close listeners, bring out what programs have written, close the nodes. The caller sets a limit.

        exiting: leave the hops as they are, for threads that still use the sockets: the interpreter
        stops such a thread without a word, so it must not be woken by an end of its connection either.
        """
        self.gates.close()
        self.listeners.finish()
        await self.datagrams.finish()
        for dialled in tuple(self._handing_over):
            if not dialled.confirmed:
                dialled.give_up()
        self._pumps.finish(keep_hops=exiting)
        while self._pumps or self._handing_over or self.listeners.busy:
            await trio.sleep(0.002)
        await self._named.close()
        await self._nameless.close()

    def close_copies(self) -> None:
        """In a forked child: close its copies of the engine's sockets, which belong to the parent."""
        for parked_one in tuple(waiting):
            parked_one.leave_to_parent()
        parked = [sock for park in self.car_parks.values() for sock in park.sockets]
        self._pumps.close_copies()
        for hop in (*open_hops, *parked):
            with suppress(OSError):
                hop.close()

    def close(self) -> None:
        """The last thing in the engine's thread."""
        for park in self.car_parks.values():
            park.close()


def _label(node: Any) -> str:
    """What the node is called: its name, or its node id."""
    return str(node.name or node.node_id)


@contextmanager
def _limit(deadline: float, text: str) -> Iterator[None]:
    """`trio.fail_at` with the exception of this library."""
    with trio.move_on_at(deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise TraversalTimeout(text)
