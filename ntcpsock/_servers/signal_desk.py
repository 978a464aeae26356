"""`GET /signal`: the broker's frames over a WebSocket, into the same core as those over UDP."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Final

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.outlets import Outlets
from ntcpsock._servers.sources import Connection
from ntcpsock._servers.visitor import Visitor
from ntcpsock._traversal.broker.fields import MAX_TTL
from ntcpsock._traversal.broker.websocket import WebSocketMachine

_RECEIVE_SIZE: Final = 4096
# Frames that wait for one connection, 77 KB at most; nodes ask again for what finds no room.
_MOST_QUEUED: Final = 64
# Seconds that a node may leave its frames unread.
_SEND_DEADLINE: Final = 20.0
# Seconds without a frame: by then the core has forgotten the node.
_IDLE_DEADLINE: Final = float(MAX_TTL)


class SignalDesk:
    """The WebSockets of a broker."""

    def __init__(self, core: BrokerCore, outlets: Outlets) -> None:
        self._core = core
        self._outlets = outlets
        self._numbers = itertools.count()

    async def serve(self, visitor: Visitor) -> None:
        """One connection until it ends. The core's welcome is the proof that keeps it."""
        try:
            machine = WebSocketMachine.server(visitor.headers)
        except BadMessage:
            await visitor.answer(426, "A WebSocket is expected here.\n")
            return
        name = Connection(*visitor.source, next(self._numbers))
        rest = visitor.rest
        visitor.forget_request()
        broken = False
        try:
            async with trio.open_nursery() as nursery:
                line = _Line(visitor, machine, nursery)
                self._outlets.connections[name] = line.queue
                try:
                    await self._receive(visitor, machine, line, name, rest)
                except (BadMessage, trio.BrokenResourceError):
                    broken = True
                nursery.cancel_scope.cancel()
        finally:
            self._outlets.connections.pop(name, None)
        if broken:
            raise BadMessage("a broken WebSocket")

    async def _receive(
        self, visitor: Visitor, machine: WebSocketMachine, line: _Line, name: Connection, data: bytes
    ) -> None:
        while True:
            for frame in machine.receive(data) if data else ():
                self._outlets.answer(self._core, frame, name)
                if self._core.was_in_session:
                    visitor.proved()
                    visitor.scope.deadline = trio.current_time() + _IDLE_DEADLINE
            line.flush()
            if machine.is_over:
                return
            data = bytes(await visitor.stream.receive_some(_RECEIVE_SIZE))
            if not data:
                return


class _Line:
    """What goes out over one connection, in the order in which it was queued. A task sends it while there is something,
    and no longer: twenty thousand idle ones would take fifty megabytes."""

    def __init__(self, visitor: Visitor, machine: WebSocketMachine, nursery: trio.Nursery) -> None:
        self._visitor = visitor
        self._machine = machine
        self._nursery = nursery
        self._frames: deque[bytes] | None = None
        self._is_sending = False

    def queue(self, frame: bytes) -> bool:
        if self._frames is None:
            self._frames = deque()
        elif len(self._frames) >= _MOST_QUEUED:
            return False
        self._frames.append(frame)
        self.flush()
        return True

    def flush(self) -> None:
        """Have the machine's own words (the 101, pongs) sent too."""
        if not self._is_sending and (self._frames or self._machine.wants_to_send):
            self._is_sending = True
            self._nursery.start_soon(self._send)

    async def _send(self) -> None:
        try:
            while True:
                while self._frames and not self._machine.is_over:
                    self._machine.send(self._frames.popleft())
                data = self._machine.data_to_send()
                if not data:
                    break
                try:
                    with trio.fail_after(_SEND_DEADLINE):
                        await self._visitor.stream.send_all(data)
                except (trio.TooSlowError, trio.BrokenResourceError):
                    self._visitor.scope.cancel()
            self._frames = None
        finally:
            self._is_sending = False
