"""`turn`: checks and QUIC by way of a TURN server of either side's, or of both.

Each side that has servers gets an allocation, lets the other side's known hosts in, and tells it the relayed address.
Then both check whatever is there: from a relayed address or from a UDP port of one's own, to the other's relayed
address. So a side without servers needs UDP, and one without UDP servers that are spoken to over TCP.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.machine import REFLEXIVE_TRIES
from ntcpsock._traversal.checks.port import open_udp_port
from ntcpsock._traversal.datagram_plan import CheckTarget
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.datagrams import DatagramAccess
from ntcpsock._traversal.strategies.settle import settle
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer
from ntcpsock._traversal.turn.driver import run_allocation
from ntcpsock._traversal.turn.port import TurnPort

# Seconds for an allocation: a connection, perhaps with TLS, and two exchanges.
ALLOCATION_DEADLINE = 4.0

# Seconds after which the next server is tried beside one that has not answered: where UDP is blocked, that is the one
# over TCP.
NEXT_SERVER = 0.4

# Seconds for the server to let hosts in; it answers in one round trip.
PERMISSION_DEADLINE = 2.0
# The same for an allocation that was there already, before a new one is asked for.
READY_DEADLINE = 1.0

# Seconds between two looks whether what may be sent to strangers' addresses leaves room.
_AIM_PAUSE = 0.25

# The relayed addresses that one side may name: one of each family.
_MOST_RELAYED = 2
_WORD = "relayed"
_decoder = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...])


def _none_ready(*, ipv6: bool) -> TurnAllocation | None:
    return None


@dataclass(frozen=True)
class TurnAccess:
    """What an attempt needs beside its `DatagramAccess`.

    servers: ours, best first. hosts: where the other side may send from, to be let in. is_target: whether the other
    side may name this as its relayed address; may_check: whether it may be checked now. hidden: whether the other side
    is to see no address of ours; take_ready: gives an allocation that is there already, with `ipv6` as its family.
    """

    servers: Sequence[TurnServer]
    hosts: Sequence[str]
    is_target: Callable[[Endpoint], bool]
    may_check: Callable[[CheckTarget], bool]
    hidden: bool = False
    take_ready: Callable[..., TurnAllocation | None] = _none_ready


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; without a deadline it waits for ever for the other side."""
    access, datagram, talk = context.turn, context.datagram, context.talk
    assert access is not None, "this technique's own"
    assert datagram is not None, "a technique over UDP"
    assert talk is not None, "a joint technique"
    # Of the family in which the other side can reach it; IPv4 where it has both.
    ipv6 = bool(access.hosts) and all(":" in host for host in access.hosts)
    allocation = await _ready(access, context.entry, ipv6=ipv6)
    if allocation is None:
        allocation = await _allocate(access.servers, datagram.nursery, context.entry, ipv6=ipv6)
    try:
        port = TurnPort(allocation, None if access.hidden else open_udp_port())
    except BaseException:
        if allocation is not None:
            allocation.close()
        raise
    try:
        if allocation is not None:
            await _permit(allocation, access.hosts)
        ours = [] if allocation is None else [allocation.relayed]
        talk.say(_WORD, msgspec.msgpack.encode(ours))
        theirs = [
            endpoint for endpoint in _decode_untrusted(await talk.hear(_WORD)) if access.is_target(endpoint)
        ]
        if not ours and (access.hidden or not theirs):
            raise OSError(errno.EHOSTUNREACH, "no TURN server gives this side, or the other, an address")
        if allocation is not None:
            await _permit(allocation, [endpoint.host for endpoint in theirs])
    except BaseException:
        port.close()
        raise
    return await _meet(context, datagram, access, port, theirs)


async def _meet(
    context: AttemptContext,
    datagram: DatagramAccess,
    access: TurnAccess,
    port: TurnPort,
    theirs: Sequence[Endpoint],
) -> Connection:
    machine = datagram.new_machine(context.role, context.rtt)
    path = PunchedPath(port, machine, datagram.credentials.local_fragment, rtt=context.rtt, port_is_ours=True)
    port.on_lost = path.fail

    async def until_usable() -> None:
        datagram.run(port, path)
        for remote in theirs:
            # Only the other side says that it is there, so it gets a few packets and no more.
            target = CheckTarget(remote, "relay", 1)
            while not access.may_check(target):
                await trio.sleep(_AIM_PAUSE)
            for base in (port.base_for(remote), port.relay_base):
                if base is not None:
                    path.check(base, remote, "relay", REFLEXIVE_TRIES)
        await path.wait_alive()

    return await settle(context, path, until_usable)


async def _ready(access: TurnAccess, entry: Attempt, *, ipv6: bool) -> TurnAllocation | None:
    """The allocation that is there already, if its server still knows it, the other side's hosts let in."""
    allocation = access.take_ready(ipv6=ipv6)
    if allocation is None:
        return None
    lets_in = False
    try:
        lets_in = await _permit(allocation, access.hosts, READY_DEADLINE)
    finally:
        if not lets_in:
            allocation.close()
    if not lets_in:
        return None  # over UDP nothing has told that the server has forgotten it
    _note(entry, allocation)
    return allocation


async def _permit(
    allocation: TurnAllocation, hosts: Sequence[str], patience: float = PERMISSION_DEADLINE
) -> bool:
    """Let the hosts in, those that the server lets us and that are of its family. Whether it has answered."""
    answered = False

    async def permit(host: str) -> None:
        nonlocal answered
        with suppress(OSError):
            await allocation.permit(host)
            answered = True

    with trio.move_on_after(patience):
        async with trio.open_nursery() as nursery:
            for host in dict.fromkeys(hosts):
                if (":" in host) == allocation.relayed.is_ipv6:
                    nursery.start_soon(permit, host)
    return answered


async def _allocate(
    servers: Sequence[TurnServer], keeper: trio.Nursery, entry: Attempt, *, ipv6: bool
) -> TurnAllocation | None:
    """From the first server that gives one; None where none does, which the report says. keeper: the nursery that
    keeps it."""
    found: list[TurnAllocation] = []

    async def ask(server: TurnServer, refused: trio.Event) -> None:
        try:
            allocation: TurnAllocation = await keeper.start(partial(run_allocation, server, ipv6=ipv6))
        except OSError as error:
            entry.notes[str(server.address)] = error.strerror or str(error)
            refused.set()
            return
        if found:
            allocation.close()
        else:
            found.append(allocation)
            scope.cancel()

    try:
        with trio.move_on_after(ALLOCATION_DEADLINE) as scope:
            async with trio.open_nursery() as nursery:
                for server in servers:
                    refused = trio.Event()
                    nursery.start_soon(ask, server, refused)
                    with trio.move_on_after(NEXT_SERVER):
                        await refused.wait()
    except BaseException:
        for allocation in found:
            allocation.close()
        raise
    if found:
        _note(entry, found[0])
        return found[0]
    if servers and not entry.notes:
        entry.notes["TURN server"] = "none has answered"
    return None


def _note(entry: Attempt, allocation: TurnAllocation) -> None:
    entry.notes["TURN server"] = str(allocation.server)
    entry.notes["relayed"] = str(allocation.relayed)


def _decode_untrusted(body: bytes) -> list[Endpoint]:
    """The other side's relayed addresses. Raises OSError."""
    try:
        return [Endpoint(*entry) for entry in _decoder.decode(body)[:_MOST_RELAYED]]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise OSError(errno.EPROTO, "the other side's word is no relayed address") from error
