"""Where streams of peers come in: the ports of a process's names, and the program's sockets behind them.

In the engine's thread. The engine connects to the program's own loopback listener for each stream that
arrives, as the program's kernel would an arriving SYN.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import trio

from ntcpsock import _forwarding, _inquiry, _known, _names
from ntcpsock._arrivals import Arrival, Arrivals
from ntcpsock._config import Config
from ntcpsock._confirmation import confirm
from ntcpsock._desk import Desk
from ntcpsock._errors import ConfigurationError, NameTaken
from ntcpsock._hop import PlainSocket, connect_hop, open_hops
from ntcpsock._owner import Owner, listener_owner
from ntcpsock._pump import Stream, abort, reset
from ntcpsock._pumps import Pumps
from ntcpsock._punched import Claim
from ntcpsock.trio import PlainStream

log = logging.getLogger("ntcpsock")

# How long `listen` waits for a listener of the same port that is just being closed.
CLOSE_DEADLINE = 2.0
# How long a new connection waits for a place in the program's accept queue; Linux retries SYNs so long.
ACCEPT_QUEUE_DEADLINE = 60.0
# A program may say its port to a peer at once (FTP does, in active mode): its listen() waits so long, and no
# longer, until the port is one of the name's.
PUBLISH_PATIENCE = 0.5
# How long a connection without encryption waits for `accept`, before it is pumped through the loopback hop:
# where the program is known to call it, and until that is known.
CLAIM_PATIENCE = 2.0
FIRST_CLAIM_PATIENCE = 0.1
# Publishing what the program binds anyway is tried again after such pauses, in seconds.
FIRST_PUBLISH_PAUSE = 1.0
LONGEST_PUBLISH_PAUSE = 60.0
# At the end of the program, connections that are just coming in over loopback are given so long.
LAST_ARRIVALS = 0.2


class Nodes(Protocol):
    """What listening needs of the engine."""

    async def configure(self, config: Config) -> None: ...
    async def node_of(self, label: str) -> Any: ...


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
        *,
        shared: bool = False,
    ):
        self.name = name
        self.port = port
        self.family = family
        self.target = target
        self.on_failure = on_failure
        self.backlog = backlog
        # The program's socket, and whether it may be one of several at its address (SO_REUSEPORT).
        self._owner: Owner | None = None
        with suppress(OSError):
            self._owner = listener_owner(target[:2])
        self._shared = shared
        self.patience = FIRST_CLAIM_PATIENCE
        self.arrivals = Arrivals(backlog)
        self.inquiry: _inquiry.Inquiry | None = None
        # What its options mean for the connections that come in.
        self.wishes: _forwarding.Wishes = {}
        # Kept for objects that are made for the listening descriptor later (see `_known`).
        self.named: Any = None
        self.scope = trio.CancelScope()
        self.publishing = trio.CancelScope()
        self.tried = trio.Event()  # to publish it, with whatever outcome
        self.ended = trio.Event()

    def is_there(self) -> bool:
        """Whether it is the program's own socket that listens at `target`. It may have been closed where we did
        not see it, and its port taken by another program, of another user even. Raises OSError where that
        cannot be asked just now."""
        if self._owner is None:
            return True  # this system cannot tell
        found = listener_owner(self.target[:2])
        if found is None or found == self._owner:
            return found is not None
        return self._shared and found.user == self._owner.user


class Listeners:
    """All ports on which a process is reached by name. Lives in the portal's thread."""

    def __init__(self, nursery: trio.Nursery, nodes: Nodes, pumps: Pumps) -> None:
        self._nursery = nursery
        self._nodes = nodes
        self._pumps = pumps
        self._desk: Desk | None = None
        #: By label and port.
        self.ports: dict[tuple[str, int], Listening] = {}
        self._bringing_in: set[trio.CancelScope] = set()

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
            await self._nodes.configure(config)
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
        """As `listen`, but what the network does is no matter to a program that listens on ordinary addresses:
        after a moment it goes on in the background. While it cannot be done it is tried again; what cannot
        change is logged."""
        listening = Listening(label, port, backlog, family, target, lambda error: None, shared=True)
        listening.inquiry = self._inquiry(listening)
        self._nursery.start_soon(self._publish, listening)
        with trio.move_on_after(PUBLISH_PATIENCE):
            await listening.tried.wait()
        return listening

    async def _publish(self, listening: Listening) -> None:
        pause = 0.0
        where = f"{listening.name}.ntcp:{listening.port}"
        with listening.publishing:
            while True:
                try:
                    listener = await self._register(listening)
                    listening.tried.set()
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
                listening.tried.set()
                pause = min(max(FIRST_PUBLISH_PAUSE, 2 * pause), LONGEST_PUBLISH_PAUSE)
                await trio.sleep(pause)
        listening.named = None
        listening.tried.set()
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
        before = self.ports.get((label, port))
        if before is not None:
            # Its socket may have been closed a moment ago, by another thread or by the collector.
            with trio.move_on_after(CLOSE_DEADLINE if before.scope.cancel_called else 0):
                await before.ended.wait()
            if (label, port) in self.ports:
                raise OSError(errno.EADDRINUSE, "Address already in use")
        self.ports[label, port] = listening
        try:
            node = await self._nodes.node_of(label)
            own = label if label != node.name else None
            listener = await node.open_listener(port, name=own, backlog=listening.backlog)
            listener.confirms = False  # what it has is not in the program's own queue yet
        except BaseException:
            del self.ports[label, port]
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
            self.ports.pop((listening.name, listening.port), None)
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
        offered: _Offered | None = None
        try:
            with trio.move_on_after(ACCEPT_QUEUE_DEADLINE) as scope:
                self._bringing_in.add(scope)
                number = _names.number(peer)
                if (
                    isinstance(stream, PlainStream)
                    and listening.family == stream.kernel_socket.family == socket.AF_INET
                ):
                    offered = _Offered(stream)
                hop = await connect_hop(listening, number, arrival, offered.claim if offered else None)
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
            if offered is not None:
                offered.claim.decline()
            await reset(stream)
            return
        source = hop.getsockname()[:2]
        _forwarding.expect(_known.ends(listening.target, source), listening.wishes)
        confirm(stream)
        try:
            if offered is not None and await self._is_claimed(listening, hop, offered):
                abort(hop)
                await stream.aclose()
                return
            await self._pumps.run(hop, stream)
        finally:
            listening.arrivals.claim(source)
            listening.arrivals.ended(source, arrival)
            _known.leave(_known.ends(listening.target, source))

    async def _is_claimed(self, listening: Listening, hop: socket.socket, offered: _Offered) -> bool:
        """Whether `accept` has taken the connection itself; if not, nobody can any more.

        A program that accepts in C is not seen to. It has accepted when it writes or closes; one that only
        reads would wait for us, so our patience is short until `NTCPSocket.accept` was called.
        """
        patience = CLAIM_PATIENCE if listening.arrivals.asked else listening.patience
        try:
            with trio.move_on_after(patience) as scope:
                self._bringing_in.add(scope)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_when_readable, hop, nursery.cancel_scope)
                    await offered.settled.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self._bringing_in.discard(scope)
            offered.claim.decline()
        if not offered.claim.taken:
            listening.patience = 0.0
        return offered.claim.taken

    # -- the end

    def finish(self) -> None:
        """End all listeners; what is just coming in over loopback gets a moment. Does not wait."""
        for listening in tuple(self.ports.values()):
            listening.scope.cancel()
        for scope in tuple(self._bringing_in):
            scope.deadline = min(scope.deadline, trio.current_time() + LAST_ARRIVALS)

    @property
    def busy(self) -> bool:
        """Whether something is just coming in over loopback."""
        return bool(self._bringing_in)


class _Offered:
    """The claim to a plain connection, and when it is settled."""

    def __init__(self, stream: PlainStream) -> None:
        self.settled = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def settle() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self.settled.set)

        copy = PlainSocket(fileno=os.dup(stream.kernel_socket.fileno()))
        open_hops.add(copy)
        self.claim = Claim(copy, settle)


async def _cancel_when_readable(hop: socket.socket, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(hop)
    scope.cancel()


async def _or_close(wait: Callable[[object], Awaitable[object]], token: object, *, stream: Any) -> None:
    try:
        await wait(token)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
