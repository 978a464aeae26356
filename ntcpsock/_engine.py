"""What runs in the portal's thread: nodes, dialled streams, listeners, and the pumps of all of them.

At most two nodes. A process without a name dials with a throw-away identity; a name needs the permanent
one of the state directory. So the engine opens a nameless node when somebody dials, and a named one when
a name is configured or bound; where a named one is open, it dials too.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import trio

from ntcpsock import _inquiry, _known, _names, _portal
from ntcpsock._arrivals import Arrival, Arrivals
from ntcpsock._config import Config
from ntcpsock._desk import Desk
from ntcpsock._errors import ConfigurationError, NameTaken, TraversalTimeout
from ntcpsock._hop import Dialled, Door, connect_hop, open_hops
from ntcpsock._node_slot import NodeOpener, NodeSlot
from ntcpsock._parking import FILL_PAUSE, CarPark, Parked, waiting
from ntcpsock._pump import Pump, Stream, reset
from ntcpsock._pump_loop import LoopPump, PumpLoop, suits_loop

log = logging.getLogger("ntcpsock")

# How often pumps that do not read are asked whether their application was reset, in seconds.
CHECK_INTERVAL = 1.0
# How long `listen` waits for a listener of the same port that is just being closed.
CLOSE_DEADLINE = 2.0
# How long a new connection waits for a place in the program's accept queue; Linux retries SYNs so long.
ACCEPT_QUEUE_DEADLINE = 60.0
# Publishing what the program binds anyway is tried again after such pauses, in seconds.
FIRST_PUBLISH_PAUSE = 1.0
LONGEST_PUBLISH_PAUSE = 60.0
# At the end of the program, connections that are just coming in over loopback are given so long.
LAST_ARRIVALS = 0.2


class Listening:
    """A port of a name under which connections arrive, and the program's loopback socket behind it."""

    def __init__(
        self,
        name: str,
        port: int,
        backlog: int,
        family: int,
        target: Any,
        on_failure: Callable[[BaseException], None],
    ):
        self.name = name
        self.port = port
        self.family = family
        self.target = target
        self.on_failure = on_failure
        self.backlog = backlog
        self.arrivals = Arrivals(backlog)
        self.inquiry: _inquiry.Inquiry | None = None
        # Kept for objects that are made for the listening descriptor later (see `_known`).
        self.named: Any = None
        self.scope = trio.CancelScope()
        self.publishing = trio.CancelScope()
        self.ended = trio.Event()


class Engine:
    """Everything that `.ntcp` names need behind the sockets of one process. Lives in the portal's thread."""

    def __init__(self, nursery: trio.Nursery, opener: NodeOpener) -> None:
        self._nursery = nursery
        self._config: Config | None = None
        self._nameless = NodeSlot(nursery, opener)
        self._named = NodeSlot(nursery, opener)
        self._named_label: str | None = None
        self._doors: dict[int, Door] = {}
        self._desk: Desk | None = None
        self._pumps: set[Pump | LoopPump] = set()
        self._loop: PumpLoop | None = None
        self._listening: dict[tuple[str, int], Listening] = {}
        self._checking = False
        self._parking = trio.Lock()
        self.car_parks: dict[int, CarPark] = {}
        self._handing_over: set[Dialled] = set()
        self._bringing_in: set[trio.CancelScope] = set()
        self._finishing = False
        self._exiting = False

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
            node = await self._dialling_node()
            await node.wait_warm()

    async def _dialling_node(self) -> Any:
        if self.config.name is not None:
            return await self._node_of(self.config.name)
        if self._named.node is not None:
            return self._named.node
        return await self._nameless.get(replace(self.config, name=None))

    async def _node_of(self, label: str) -> Any:
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
        self, config: Config | None, label: str, port: int, timeout: float | None, family: int
    ) -> Dialled:
        """Open a stream to `label`; it then waits for the application's socket at `.address`.

        timeout: seconds for all stages together; None: the node's own limits.
        """
        node, stream = await self._open_stream(config, label, port, timeout)
        try:
            dialled = Dialled(stream, _label(node), self._door(family))
        except BaseException:
            await trio.aclose_forcefully(stream)  # type: ignore[arg-type]
            raise
        self._nursery.start_soon(self._hand_over, dialled)
        return dialled

    async def _open_stream(
        self, config: Config | None, label: str, port: int, timeout: float | None
    ) -> tuple[Any, Stream]:
        deadline = trio.current_time() + (math.inf if timeout is None else timeout)
        if config is not None:
            await self.configure(config)
        with _limit(deadline, "timed out while opening the node"):
            node = await self._dialling_node()
        left = None if timeout is None else max(0.0, deadline - trio.current_time())
        return node, await node.open_stream(label, port, timeout=left)

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
        on_connect: Callable[[str, Stream], None],
        on_failure: Callable[[OSError], None],
    ) -> None:
        """Dial in the background; the outcome is seen on the parked descriptor."""
        self._nursery.start_soon(self._dial_parked, parked, config, label, port, on_connect, on_failure)

    async def _dial_parked(
        self,
        parked: Parked,
        config: Config | None,
        label: str,
        port: int,
        on_connect: Callable[[str, Stream], None],
        on_failure: Callable[[OSError], None],
    ) -> None:
        hop: socket.socket | None = None
        stream: Stream | None = None
        with trio.CancelScope() as parked.scope:
            try:
                node, stream = await self._open_stream(config, label, port, None)
            except Exception as error:
                failure = _portal.translated(error)
                on_failure(failure)
                parked.fail(failure)
                return
            # Before the descriptor becomes writable: then the program may ask who its peer is.
            on_connect(_label(node), stream)
            ends = parked.ends()
            _known.enter(ends, stream, _label(node), None)
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
                await self._pump(hop, stream)
            finally:
                _known.leave(ends)

    def _door(self, family: int) -> Door:
        door = self._doors.get(family)
        if door is None:
            door = self._doors[family] = Door(family)
            self._nursery.start_soon(door.run)
        return door

    async def _hand_over(self, dialled: Dialled) -> None:
        self._handing_over.add(dialled)
        try:
            hop = await dialled.take()
            if hop is None:
                await reset(dialled.stream)
            else:
                await self._pump(hop, dialled.stream)
        finally:
            _known.leave(dialled.ends)
            self._handing_over.discard(dialled)

    # -- in

    async def listen(
        self,
        config: Config | None,
        label: str,
        port: int,
        backlog: int,
        family: int,
        target: Any,
        on_failure: Callable[[BaseException], None],
    ) -> Listening:
        """Register name and port, and connect each arriving stream to `target`.

        Raises NameTaken, BrokerUnreachable, and OSError (EADDRINUSE) for a port that is listened on.
        """
        if config is not None:
            await self.configure(config)
        listening = Listening(label, port, backlog, family, target, on_failure)
        listener = await self._register(listening)
        listening.inquiry = self._inquiry(listening)
        self._nursery.start_soon(self._serve, listening, listener)
        return listening

    async def publish(
        self,
        label: str,
        port: int,
        backlog: int,
        family: int,
        target: Any,
    ) -> Listening:
        """As `listen`, in the background: what the network does is no matter to a program that listens on
        ordinary addresses. While it cannot be done it is tried again; what cannot change is logged."""
        listening = Listening(label, port, backlog, family, target, lambda error: None)
        listening.inquiry = self._inquiry(listening)
        self._nursery.start_soon(self._publish, listening)
        return listening

    async def _publish(self, listening: Listening) -> None:
        pause = 0.0
        where = f"{listening.name}.ntcp:{listening.port}"
        with listening.publishing:
            while True:
                try:
                    listener = await self._register(listening)
                    pause = 0.0
                    await self._serve(listening, listener)
                    if listening.scope.cancel_called:
                        return
                    listening.scope, listening.ended = trio.CancelScope(), trio.Event()
                except (NameTaken, ConfigurationError) as error:
                    log.error("%s is not published: %s", where, error)
                    break
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        break  # the program listens on the same port in several ways; the first one is it
                    if not pause:
                        log.warning("%s cannot be published yet: %s", where, error)
                pause = min(max(FIRST_PUBLISH_PAUSE, 2 * pause), LONGEST_PUBLISH_PAUSE)
                await trio.sleep(pause)
        listening.named = None
        listening.ended.set()

    def _inquiry(self, listening: Listening) -> _inquiry.Inquiry | None:
        """How other processes that share the program's listening socket ask who has arrived."""
        if not _inquiry.is_available():
            return None
        if self._desk is None:
            self._desk = Desk()
            self._nursery.start_soon(self._desk.run)
        return self._desk.open(listening.arrivals)

    async def _register(self, listening: Listening) -> Any:
        """The node's listener; the port is this one's until `_serve` ends."""
        label, port = listening.name, listening.port
        before = self._listening.get((label, port))
        if before is not None:
            # Its socket may have been closed a moment ago, by another thread or by the collector.
            with trio.move_on_after(CLOSE_DEADLINE if before.scope.cancel_called else 0):
                await before.ended.wait()
            if (label, port) in self._listening:
                raise OSError(errno.EADDRINUSE, "Address already in use")
        self._listening[label, port] = listening
        try:
            node = await self._node_of(label)
            own = label if label != node.name else None
            listener = await node.open_listener(port, name=own, backlog=listening.backlog)
        except BaseException:
            del self._listening[label, port]
            raise
        return listener

    async def end(self, listening: Listening) -> None:
        """Stop listening; returns when the port is free again."""
        self.end_soon(listening)
        await listening.ended.wait()

    def end_soon(self, listening: Listening) -> None:
        listening.publishing.cancel()
        listening.scope.cancel()

    async def _serve(self, listening: Listening, listener: Any) -> None:
        """Accept until the program closes its socket. The places in its accept queue limit what is under way."""
        places = trio.CapacityLimiter(max(1, listening.backlog))
        try:
            with listening.scope:
                while True:
                    stream = await listener.accept()
                    token = object()
                    await _or_close(places.acquire_on_behalf_of, token, stream=stream)
                    self._nursery.start_soon(self._bring_in, listening, stream, places, token)
        except Exception as error:
            log.warning("listening on %s:%s ended", listening.name, listening.port, exc_info=error)
            listening.on_failure(error)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_DEADLINE), suppress(Exception):
                await listener.aclose()
            self._listening.pop((listening.name, listening.port), None)
            if self._desk is not None and listening.inquiry is not None:
                self._desk.close(listening.inquiry)
            listening.named = None
            listening.ended.set()

    async def _bring_in(
        self, listening: Listening, stream: Stream, places: trio.CapacityLimiter, token: object
    ) -> None:
        """Connect one stream to the program's listening socket, as its kernel would an arriving SYN."""
        arrival = Arrival(stream.peer, stream.path, stream.report)
        peer = stream.peer.name or stream.peer.node_id
        hop = None
        try:
            with trio.move_on_after(ACCEPT_QUEUE_DEADLINE) as scope:
                self._bringing_in.add(scope)
                number = _names.number(peer)
                hop = await connect_hop(listening, number, arrival)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                # The descriptor was closed where we did not see it: nobody listens any more.
                listening.scope.cancel()
            else:
                log.warning("%s cannot be brought to %s:%s: %s", peer, listening.name, listening.port, error)
        finally:
            self._bringing_in.discard(scope)
            places.release_on_behalf_of(token)
        if hop is None:
            await reset(stream)
            return
        source = hop.getsockname()[:2]
        try:
            await self._pump(hop, stream)
        finally:
            listening.arrivals.ended(source, arrival)
            _known.leave(_known.ends(listening.target, source))

    # -- pumps

    async def _pump(self, hop: socket.socket, stream: Stream) -> None:
        pump = self._new_pump(hop, stream)
        self._pumps.add(pump)
        if self._finishing:
            pump.finish(keep_hop=self._exiting)
        if not self._checking:
            self._checking = True
            self._nursery.start_soon(self._check)
        try:
            await pump.run()
        except Exception as error:  # one connection's fault must not end the others
            log.error("a connection with %s failed", stream.peer, exc_info=error)
        finally:
            self._pumps.discard(pump)

    def _new_pump(self, hop: socket.socket, stream: Stream) -> Pump | LoopPump:
        if not suits_loop(stream):
            return Pump(hop, stream)
        if self._loop is None:
            self._loop = PumpLoop()
            self._nursery.start_soon(self._keep_loop, self._loop)
        return LoopPump(hop, stream, self._loop)

    async def _keep_loop(self, loop: PumpLoop) -> None:
        try:
            await trio.sleep_forever()
        finally:
            loop.stop()

    async def _check(self) -> None:
        while self._pumps:
            await trio.sleep(CHECK_INTERVAL)
            for pump in tuple(self._pumps):
                pump.check()
        self._checking = False

    # -- the end

    async def finish(self, *, exiting: bool) -> None:
        """Close listeners, bring out what programs have written, close the nodes. The caller sets a limit.

        exiting: leave the hops as they are, for threads that still use the sockets: the interpreter
        stops such a thread without a word, so it must not be woken by an end of its connection either.
        """
        self._finishing = True
        self._exiting = exiting
        for listening in tuple(self._listening.values()):
            listening.scope.cancel()
        for dialled in tuple(self._handing_over):
            if not dialled.confirmed:
                dialled.give_up()
        for scope in tuple(self._bringing_in):
            scope.deadline = min(scope.deadline, trio.current_time() + LAST_ARRIVALS)
        for pump in tuple(self._pumps):
            pump.finish(keep_hop=exiting)
        while self._pumps or self._handing_over or self._bringing_in:
            await trio.sleep(0.002)
        await self._named.close()
        await self._nameless.close()

    def close_copies(self) -> None:
        """In a forked child: close its copies of the engine's sockets, which belong to the parent."""
        for parked_one in tuple(waiting):
            parked_one.leave_to_parent()
        parked = [sock for park in self.car_parks.values() for sock in park.sockets]
        carriers = [pump.carrier.socket for pump in self._pumps if isinstance(pump, LoopPump)]
        if self._loop is not None:
            self._loop.close()
        for hop in (*open_hops, *parked, *carriers):
            with suppress(OSError):
                hop.close()

    def close(self) -> None:
        """The last thing in the engine's thread."""
        for park in self.car_parks.values():
            park.close()


def _label(node: Any) -> str:
    """What the node is called: its name, or its node id."""
    return str(node.name or node.node_id)


async def _or_close(wait: Callable[[object], Awaitable[object]], token: object, *, stream: Any) -> None:
    try:
        await wait(token)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


@contextmanager
def _limit(deadline: float, text: str) -> Iterator[None]:
    """`trio.fail_at` with the exception of this library."""
    with trio.move_on_at(deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise TraversalTimeout(text)
