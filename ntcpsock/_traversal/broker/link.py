"""A client machine on a UDP socket under trio: the loop of every session with a broker."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable
from typing import Any

import trio

from ntcpsock._address import BrokerAddress, Endpoint, encode_node_id
from ntcpsock._errors import BrokerUnreachable, IdentityMismatch
from ntcpsock._traversal.broker.events import Connected, Event, KeyShown, WrongKeyShown
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import MAX_DATAGRAM, Welcome

#: Address family and socket address, as `getaddrinfo` gives them.
Destination = tuple[int, tuple[Any, ...]]

# Seconds for which a refusal by ICMP, or a hint at another key, must stand uncontradicted.
_GRACE = 0.75


class Link:
    """One machine and the socket under it. `run` serves both; `flush` sends at once, from any task."""

    def __init__(self, machine: ClientMachine, address: BrokerAddress, destination: Destination) -> None:
        self.machine = machine
        self.address = address
        self._family, self._destination = destination
        self._socket: trio.socket.SocketType | None = None
        self._raw: socket.socket | None = None
        self._opened = trio.Event()
        self._wake = trio.Event()
        self._handle: Callable[[Event], None] = self._greeting_event
        self._greeted = trio.Event()
        self._suspicious = trio.Event()
        self._error: Exception | None = None

    @property
    def broker_key(self) -> bytes:
        """The key that the broker has proved, once greeted."""
        key = self.machine.broker_key
        assert key is not None
        return key

    @property
    def welcome(self) -> Welcome:
        """The latest Welcome; STUN servers and relays that share the broker's host have its address filled in."""
        welcome = self.machine.welcome
        assert welcome is not None
        stun, relays = (
            tuple(
                Endpoint(str(self._destination[0]), server.port)
                if ipaddress.ip_address(server.host).is_unspecified
                else server
                for server in servers
            )
            for servers in (welcome.stun, welcome.relays)
        )
        return Welcome(welcome.session, welcome.observed, stun, relays)

    def mismatch(self, key: bytes) -> IdentityMismatch:
        """What to raise where the broker shows `key` instead of the expected one."""
        expected = self.machine.broker_key
        known = "another key" if expected is None else encode_node_id(expected)
        return IdentityMismatch(
            f"the broker {self.address.host}:{self.address.port} shows key {encode_node_id(key)}, "
            f"expected is {known}"
        )

    # The socket.

    def reopen(self) -> None:
        """A new socket, from whatever own address now leads to the broker; none while nothing does."""
        self.close()
        raw = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            raw.setblocking(False)
            # Connected: the kernel drops what others send, and tells us of ICMP errors.
            raw.connect(self._destination)
        except OSError as error:
            raw.close()
            self._error = error
            return
        self._raw = raw
        self._socket = trio.socket.from_stdlib_socket(raw)
        self._opened.set()

    def close(self) -> None:
        """Close the socket; `flush` would open another one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._raw = None
        self._opened = trio.Event()

    def flush(self) -> None:
        """Send what the machine has, without waiting, and have its timers looked at anew."""
        for datagram in self.machine.datagrams_to_send():
            if self._raw is None:
                self.reopen()
            if self._raw is None:
                continue
            try:
                # Not through trio: `introduce` is on the critical path of every connect, and a UDP
                # socket's buffer has room. Where it has not, the datagram is lost like any other.
                self._raw.send(datagram)
            except OSError as error:
                self._suspect(error)
        self._wake.set()

    # The tasks.

    async def greet(self) -> None:
        """Run until the broker has welcomed us. Raises OSError or IdentityMismatch; waits for ever else."""
        self.machine.start(trio.current_time())
        self.flush()
        if self._raw is None and self._error is not None:
            raise self._error
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run, self._greeting_event)
            nursery.start_soon(self._judge)
            await self._greeted.wait()
            nursery.cancel_scope.cancel()
        if not self.machine.connected:
            raise self._error or BrokerUnreachable("no answer")

    async def run(self, handle: Callable[[Event], None]) -> None:
        """Serve the machine until cancelled; `handle` gets its events."""
        self._handle = handle
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._keep_time)

    async def _receive(self) -> None:
        while True:
            if self._socket is None:
                await self._opened.wait()
                continue
            try:
                datagram = await self._socket.recv(MAX_DATAGRAM + 1)
            except trio.ClosedResourceError:
                # `reopen` took it away.
                continue
            except OSError as error:
                self._suspect(error)
                continue
            self.machine.receive_datagram(datagram, trio.current_time())
            self._turn()

    async def _keep_time(self) -> None:
        while True:
            due = self.machine.next_timer()
            self._wake = trio.Event()
            with trio.CancelScope(deadline=math.inf if due is None else due):
                await self._wake.wait()
            self.machine.handle_timer(trio.current_time())
            self._turn()

    def _turn(self) -> None:
        for event in self.machine.events():
            self._handle(event)
        self.flush()

    # While greeting.

    def _greeting_event(self, event: Event) -> None:
        match event:
            case KeyShown(key):
                # Pinned when the broker has proved that it has the key, not when it says so.
                self.machine.accept_key(key, trio.current_time())
            case WrongKeyShown(key):
                self._error = self.mismatch(key)
                self._suspicious.set()
            case Connected():
                self._greeted.set()

    def _suspect(self, error: OSError) -> None:
        if not isinstance(self._error, IdentityMismatch):
            self._error = error
        self._suspicious.set()

    async def _judge(self) -> None:
        """A stranger's ICMP or KeyReply must not outrun the broker's own answer: give that a while."""
        await self._suspicious.wait()
        await trio.sleep(_GRACE)
        self._greeted.set()
