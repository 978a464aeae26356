"""Questions over UDP: each batch from a socket of its own, or from as many as it has probes."""

from __future__ import annotations

import math
import os
import secrets
import socket as stdlib_socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.discovery.answers import outcome_of_event
from ntcpsock._traversal.discovery.evidence import Outcome, Probe
from ntcpsock._traversal.discovery.machine import Batch
from ntcpsock._traversal.punch.driver import source_address
from ntcpsock._traversal.stun.attributes import Attribute
from ntcpsock._traversal.stun.constants import TRANSACTION_ID_LENGTH
from ntcpsock._traversal.stun.machine import ClientTransaction
from ntcpsock._traversal.stun.message import binding_request, encode_message
from ntcpsock._traversal.stun.usages import ChangeRequest, Padding

# Seconds. A request goes out at 0, 1, 3 and 7 times the RTO: shorter than RFC 8489's, since a person waits.
RTO = 0.25
PATIENCE = 2.0
_ALLOCATION_PATIENCE = 1.0

# More than a packet of any Ethernet, so that it must be cut.
_FRAGMENTED = 1600
_RECEIVE_SIZE = 4096

_HAIRPIN_ROUNDS, _HAIRPIN_PAUSE = 4, 0.15
_HIGHEST_TTL, _HOP_PATIENCE = 4, 1.0
# Linux: <linux/in.h>, struct sock_extended_err.
_IP_RECVERR, _MSG_ERRQUEUE = 11, 0x2000
_OFFENDER = slice(20, 24)


@dataclass
class _Asked:
    """A request under way. changes: it has a CHANGE-REQUEST."""

    probe: Probe
    changes: bool
    transaction: ClientTransaction
    outcome: Outcome | None = None


class UdpProber:
    """Asks over UDP; `report` takes each outcome."""

    def __init__(self, report: Callable[[Outcome], None]) -> None:
        self._report = report

    async def ask(self, batch: Batch) -> None:
        """Ask all of a batch. Raises OSError where there is no socket or no way out."""
        question = batch[0].question
        if question == "mapping":
            await self._ask_from_one_port(batch)
        elif question == "allocation":
            await self._ask_in_order(batch)
        elif question == "hops":
            self._report(await _hops(batch[0]))
        elif question == "hairpin":
            self._report(await _hairpin(batch[0]))
        elif question == "reach":
            self._report(await _ask_once(batch[0], (), PATIENCE))
        elif question == "fragments":
            self._report(await _ask_once(batch[0], (Padding(bytes(_FRAGMENTED)),), PATIENCE))
        else:
            self._report(await _filtering(batch[0]))

    async def _ask_from_one_port(self, batch: Batch) -> None:
        with await open_socket(batch[0].server) as sock:
            outcomes = await ask_all(sock, [(probe, ()) for probe in batch], PATIENCE)
        for outcome in outcomes:
            self._report(outcome)

    async def _ask_in_order(self, batch: Batch) -> None:
        async def ask_one(probe: Probe) -> None:
            self._report(await _ask_once(probe, (), _ALLOCATION_PATIENCE))

        async with trio.open_nursery() as nursery:
            for probe in batch:
                nursery.start_soon(ask_one, probe)
                # Its first packet leaves when the task runs for the first time: one after the other.
                await trio.lowlevel.checkpoint()


async def _ask_once(probe: Probe, attributes: Sequence[Attribute], patience: float) -> Outcome:
    with await open_socket(probe.server) as sock:
        return (await ask_all(sock, [(probe, attributes)], patience))[0]


async def _filtering(probe: Probe) -> Outcome:
    """RFC 5780 section 4.4: open the door to the server, and have somebody else answer."""
    change = ChangeRequest(change_address=probe.question == "filtering-address", change_port=True)
    with await open_socket(probe.server) as sock:
        opened = (await ask_all(sock, [(probe, ())], PATIENCE))[0]
        if opened.answer != "answered":
            return replace(opened, text="no answer even without a change")
        return (await ask_all(sock, [(probe, (change,))], PATIENCE))[0]


async def _hairpin(probe: Probe) -> Outcome:
    """Two ports, each of which sends to the other's public endpoint: both have opened the way then, so that what
    does not arrive is not only filtered."""
    token = secrets.token_bytes(TRANSACTION_ID_LENGTH)
    with await open_socket(probe.server) as first, await open_socket(probe.server) as second:
        seen = [(await ask_all(sock, [(probe, ())], PATIENCE))[0] for sock in (first, second)]
        targets = [outcome.mapped for outcome in seen if outcome.mapped is not None]
        if len(targets) < 2:
            return replace(seen[0], answer="error", mapped=None, text="no mapped address")
        arrivals: list[Endpoint] = []
        message = encode_message(binding_request(token))

        async def listen(sock: trio.socket.SocketType) -> None:
            while True:
                data, source = await sock.recvfrom(_RECEIVE_SIZE)
                if data == message:
                    arrivals.append(Endpoint(*source[:2]))
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for sock in (first, second):
                nursery.start_soon(listen, sock)
            for _ in range(_HAIRPIN_ROUNDS):
                await first.sendto(message, targets[1])
                await second.sendto(message, targets[0])
                await trio.sleep(_HAIRPIN_PAUSE)
            nursery.cancel_scope.cancel()
    source = arrivals[0] if arrivals else None
    return replace(seen[0], source=source, arrived=bool(arrivals), other=None)


async def ask_all(
    sock: trio.socket.SocketType,
    questions: Sequence[tuple[Probe, Sequence[Attribute]]],
    patience: float,
) -> list[Outcome]:
    """Ask the probes' servers from one socket at once; the outcomes in the order of the questions.

    With a CHANGE-REQUEST anybody may answer, since the transaction id is a secret between us and the server.
    """
    local = Endpoint(source_address(questions[0][0].server), int(sock.getsockname()[1]))
    started = trio.current_time()
    asked = [
        _Asked(
            probe,
            any(isinstance(attribute, ChangeRequest) for attribute in attributes),
            ClientTransaction(
                binding_request(secrets.token_bytes(TRANSACTION_ID_LENGTH), *attributes),
                now=started,
                rto=RTO,
            ),
        )
        for probe, attributes in questions
    ]
    while waiting := [one for one in asked if one.outcome is None]:
        now = trio.current_time()
        if now >= started + patience:
            break
        for one in waiting:
            one.transaction.handle_timeout(now)
            for data in one.transaction.datagrams_to_send():
                await sock.sendto(data, tuple(one.probe.server))
        due = min(one.transaction.next_timeout() or math.inf for one in waiting)
        with trio.CancelScope(deadline=min(due, started + patience)):
            data, address = await sock.recvfrom(_RECEIVE_SIZE)
            _take(waiting, data, Endpoint(*address[:2]), local, started)
    return [one.outcome or Outcome(one.probe, "silence", local=local) for one in asked]


def _take(waiting: list[_Asked], data: bytes, source: Endpoint, local: Endpoint, started: float) -> None:
    now = trio.current_time()
    for one in waiting:
        expected = one.changes or source == one.probe.server
        if expected and one.transaction.handle_message(data, now):
            event = one.transaction.next_event()
            assert event is not None
            one.outcome = outcome_of_event(one.probe, event, local, source, now - started)


async def _hops(probe: Probe) -> Outcome:
    """Who says "time exceeded" on the first steps of the way to the server. Linux tells it without privileges."""
    if not sys.platform.startswith("linux") or probe.server.is_ipv6:
        return Outcome(probe, "error", text="this system does not tell")
    hops = [""] * _HIGHEST_TTL
    requests: dict[bytes, int] = {}
    with await open_socket(probe.server) as sock:
        sock.setsockopt(stdlib_socket.IPPROTO_IP, _IP_RECVERR, 1)
        for ttl in range(1, _HIGHEST_TTL + 1):
            data = encode_message(binding_request(secrets.token_bytes(TRANSACTION_ID_LENGTH)))
            requests[data] = ttl
            sock.setsockopt(stdlib_socket.IPPROTO_IP, stdlib_socket.IP_TTL, ttl)
            await _send_despite_errors(sock, data, probe.server)
        with trio.move_on_after(_HOP_PATIENCE):
            while not all(hops):
                await trio.lowlevel.wait_readable(sock)
                if _read_hops(sock, requests, hops, probe.server):
                    break
    while hops and not hops[-1]:
        hops.pop()
    return Outcome(probe, "answered" if hops else "silence", hops=tuple(hops))


async def _send_despite_errors(sock: trio.socket.SocketType, data: bytes, server: Endpoint) -> None:
    """With IP_RECVERR an error of an earlier packet is raised by the next send, once."""
    for _ in range(3):
        try:
            await sock.sendto(data, tuple(server))
            return
        except OSError:
            continue


def _read_hops(
    sock: trio.socket.SocketType, requests: dict[bytes, int], hops: list[str], server: Endpoint
) -> bool:
    """Take all errors that are there. Whether the server itself has answered: no more hops then."""
    with stdlib_socket.socket(fileno=os.dup(sock.fileno())) as plain:
        plain.setblocking(False)
        while True:
            try:
                data, ancillary, _, _ = plain.recvmsg(_RECEIVE_SIZE, 512, _MSG_ERRQUEUE)
            except OSError:
                break
            ttl = requests.get(data)
            for _, _, error in ancillary:
                if ttl is not None and len(error) >= _OFFENDER.stop:
                    hops[ttl - 1] = stdlib_socket.inet_ntoa(error[_OFFENDER])
        try:
            _, address = plain.recvfrom(_RECEIVE_SIZE)
        except OSError:
            return False
    return bool(address[0] == server.host)


async def open_socket(server: Endpoint) -> trio.socket.SocketType:
    """A UDP socket on a free port, of the server's family. Raises OSError."""
    family = stdlib_socket.AF_INET6 if server.is_ipv6 else stdlib_socket.AF_INET
    sock = trio.socket.socket(family, stdlib_socket.SOCK_DGRAM)
    try:
        await sock.bind(("::" if server.is_ipv6 else "0.0.0.0", 0))
    except BaseException:
        sock.close()
        raise
    return sock
