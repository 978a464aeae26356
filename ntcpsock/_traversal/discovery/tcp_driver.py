"""Questions over TCP: from ports as they punch, each kept until the discovery is over."""

from __future__ import annotations

import random
import secrets
import socket as stdlib_socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.discovery.answers import outcome_of_event
from ntcpsock._traversal.discovery.evidence import Outcome, Probe
from ntcpsock._traversal.discovery.machine import Batch
from ntcpsock._traversal.punch.driver import choose_port, open_punch_listener, open_punch_socket
from ntcpsock._traversal.stun.attributes import Attribute
from ntcpsock._traversal.stun.constants import TRANSACTION_ID_LENGTH
from ntcpsock._traversal.stun.driver import NotStun, exchange_over_tcp
from ntcpsock._traversal.stun.message import binding_request
from ntcpsock._traversal.stun.usages import ChangeRequest

# Seconds: the kernel repeats a SYN after one.
PATIENCE = 2.2
_ALLOCATION_PATIENCE = 1.2
# The server itself waits for 1.5 s until it calls us silent.
_CONNECT_BACK_PATIENCE = 3.0
# Seconds in which a connection that the server calls open must have come here.
_ARRIVAL_GRACE = 0.3

_HAIRPIN_TIME, _HAIRPIN_PAUSE = 1.2, 0.1

# l_onoff, l_linger: close() sends a RST, and leaves no TIME-WAIT.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProber:
    """Asks over TCP; `report` takes each outcome. `close` when all is over: a mapping lasts as long as its socket."""

    def __init__(self, report: Callable[[Outcome], None]) -> None:
        self._report = report
        self._kept: list[trio.socket.SocketType] = []

    def close(self) -> None:
        for sock in self._kept:
            sock.close()
        self._kept.clear()

    async def ask(self, batch: Batch) -> None:
        """Ask all of a batch. Raises OSError where there is no port or no socket."""
        question = batch[0].question
        if question == "mapping":
            port = choose_port()
            async with trio.open_nursery() as nursery:
                for probe in batch:
                    nursery.start_soon(self._ask_and_report, probe, port, PATIENCE)
        elif question == "allocation":
            await self._ask_in_order(batch)
        elif question == "session":
            await self._ask_twice(batch)
        elif question == "https":
            self._report(await self._knock(batch[0]))
        elif question == "hairpin":
            self._report(await self._hairpin(batch[0]))
        elif question == "reach":
            await self._ask_and_report(batch[0], choose_port(), PATIENCE)
        else:
            self._report(await self._filtering(batch[0]))

    async def _ask_in_order(self, batch: Batch) -> None:
        ports: dict[int, None] = {}
        while len(ports) < len(batch):
            ports[choose_port()] = None
        async with trio.open_nursery() as nursery:
            for probe, port in zip(batch, ports, strict=True):
                nursery.start_soon(self._ask_and_report, probe, port, _ALLOCATION_PATIENCE)
                # The SYN leaves when the task runs for the first time: one after the other.
                await trio.lowlevel.checkpoint()

    async def _ask_twice(self, batch: Batch) -> None:
        """The same two endpoints again, after a reset has ended the connection for everybody on the way."""
        port = choose_port()
        for probe in batch:
            with _open(port, probe.server) as sock:
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, _RESET_ON_CLOSE)
                self._report(await _ask(sock, probe, PATIENCE))

    async def _ask_and_report(self, probe: Probe, port: int, patience: float) -> None:
        sock = _open(port, probe.server)
        self._kept.append(sock)
        self._report(await _ask(sock, probe, patience))

    async def _knock(self, probe: Probe) -> Outcome:
        """Whether anything at all answers; what it is does not matter."""
        with _open(choose_port(), probe.server) as sock, trio.move_on_after(PATIENCE):
            try:
                await sock.connect(tuple(probe.server))
            except ConnectionRefusedError:
                return Outcome(probe, "refused")
            except OSError as error:
                return Outcome(probe, "unreachable", text=str(error))
            return Outcome(probe, "answered")
        return Outcome(probe, "silence")

    async def _filtering(self, probe: Probe) -> Outcome:
        """Have the server connect to this port, out of an address or a port that we have not talked to."""
        port = choose_port()
        listener = _open_listener(port, probe.server)
        self._kept.append(listener)
        sock = _open(port, probe.server)
        self._kept.append(sock)
        change = ChangeRequest(
            change_address=probe.question == "filtering-address",
            change_port=probe.question == "filtering-port",
        )
        token = secrets.token_bytes(TRANSACTION_ID_LENGTH)
        arrived = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_await_token, listener, token, arrived)
            outcome = await _ask(sock, probe, _CONNECT_BACK_PATIENCE, token, change)
            if outcome.connect_back is not None:
                with trio.move_on_after(_ARRIVAL_GRACE):
                    await arrived.wait()
            nursery.cancel_scope.cancel()
        if outcome.answer == "answered" and outcome.connect_back is None:
            return replace(outcome, answer="error", text="it answered at once")
        return replace(outcome, arrived=arrived.is_set())

    async def _hairpin(self, probe: Probe) -> Outcome:
        """Two ports that connect to each other's public endpoint, as two hosts behind this NAT would punch."""
        ports: list[int] = []
        seen: list[Outcome] = []
        for _ in range(2):
            port = choose_port()
            listener, sock = open_punch_listener(port), _open(port, probe.server)
            self._kept += (listener, sock)
            ports.append(port)
            seen.append(await _ask(sock, probe, PATIENCE))
        targets = [outcome.mapped for outcome in seen if outcome.mapped is not None]
        if len(targets) < 2:
            return replace(seen[0], answer="error", mapped=None, text="no mapped address")
        token, arrived = secrets.token_bytes(TRANSACTION_ID_LENGTH), trio.Event()
        listeners = self._kept[-4], self._kept[-2]
        with trio.move_on_after(_HAIRPIN_TIME):
            async with trio.open_nursery() as nursery:
                for port, target, listener in zip(ports, reversed(targets), listeners, strict=True):
                    nursery.start_soon(_await_token, listener, token, arrived)
                    nursery.start_soon(_meet, port, target, token, arrived)
                await arrived.wait()
                nursery.cancel_scope.cancel()
        return replace(seen[0], arrived=arrived.is_set(), other=None)


async def _ask(
    sock: trio.socket.SocketType,
    probe: Probe,
    patience: float,
    transaction_id: bytes | None = None,
    *attributes: Attribute,
) -> Outcome:
    """Connect and send one Binding request."""
    started = trio.current_time()
    local: Endpoint | None = None
    try:
        with trio.fail_after(patience):
            await sock.connect(tuple(probe.server))
            local = Endpoint(*sock.getsockname()[:2])
            request = binding_request(
                transaction_id or secrets.token_bytes(TRANSACTION_ID_LENGTH), *attributes
            )
            event = await exchange_over_tcp(sock, request)
    except (trio.TooSlowError, TimeoutError):
        return Outcome(probe, "silence", local=local, text="connected, no answer" if local else "")
    except ConnectionRefusedError:
        return Outcome(probe, "refused")
    except NotStun as error:
        return Outcome(probe, "not-stun", local=local, text=str(error))
    except OSError as error:
        # A connection that is cut as soon as it is used is no way to the server either.
        return Outcome(probe, "error" if local else "unreachable", local=local, text=str(error))
    return outcome_of_event(probe, event, local, probe.server, trio.current_time() - started)


async def _await_token(listener: trio.socket.SocketType, token: bytes, arrived: trio.Event) -> None:
    """Accept until somebody says the token; strangers are shown the door."""
    async with trio.open_nursery() as nursery:
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError:
                await trio.sleep(_HAIRPIN_PAUSE)
                continue
            nursery.start_soon(_expect, sock, token, arrived)


async def _expect(sock: trio.socket.SocketType, token: bytes, arrived: trio.Event) -> None:
    data = b""
    with sock, suppress(OSError), trio.move_on_after(_HAIRPIN_TIME):
        while len(data) < len(token) and (more := await sock.recv(len(token) - len(data))):
            data += more
    if data == token:
        arrived.set()


async def _meet(port: int, target: Endpoint, token: bytes, arrived: trio.Event) -> None:
    """Connect to our other port by its public endpoint, and say the token; again after a refusal, and where both ends'
    attempts have collided."""
    while True:
        with _open(port, target) as sock, suppress(OSError):
            await sock.connect(tuple(target))
            await sock.send(token)
            await _expect(sock, token, arrived)  # both have connected: each hears the other
        await trio.sleep(random.uniform(0, _HAIRPIN_PAUSE))


def _open(port: int, server: Endpoint) -> trio.socket.SocketType:
    if not server.is_ipv6:
        return open_punch_socket(port)
    sock = stdlib_socket.socket(stdlib_socket.AF_INET6)
    try:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            if hasattr(stdlib_socket, option):
                sock.setsockopt(stdlib_socket.SOL_SOCKET, getattr(stdlib_socket, option), 1)
        sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
        sock.bind(("::", port))
    except BaseException:
        sock.close()
        raise
    return trio.socket.from_stdlib_socket(sock)


def _open_listener(port: int, server: Endpoint) -> trio.socket.SocketType:
    if not server.is_ipv6:
        return open_punch_listener(port)
    listener = _open(port, server)
    listener.listen()
    return listener
