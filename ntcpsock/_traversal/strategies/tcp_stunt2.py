"""`tcp-stunt2`: one side opens its NAT and listens, the other one connects; then the other way round.

For NATs that refuse a simultaneous open but let a SYN in when an own one has left before. The opener's SYN has a low
TTL, so that it ends between both NATs, and the ICMP error that comes back ends the attempt at the opener's NAT and in
its kernel. The listener answers with another sequence number than that SYN had, so a NAT that checks sequence numbers
(Linux') drops the answer: there `tcp-open` works. (STUNT, Guha and Francis 2005; NatTrav, Eppinger 2005.)
"""

from __future__ import annotations

import errno
import os
import socket

import trio

from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.punch.driver import open_punch_listener, open_punch_socket, punch
from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.rendezvous import (
    Rendezvous,
    agree,
    connect_in_time,
    low_ttl_of,
)

# Who opens first, and who then.
HALVES: tuple[Role, ...] = ("follower", "leader")

# Seconds for the opener's SYN to be ended by an error, for the connection of a half, and path round trips for either.
SHORTEST_HOLE = 0.2
SHORTEST_HALF = 1.2
RTTS = 3

# connect() calls of one half: a second one is for NATs that have refused the first.
MAX_TRIES = 3


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError: what `agree` raises, or the reason of the last half."""
    failure = OSError(errno.ETIMEDOUT, "no connection in either direction")
    low_ttl: int | None = None
    for half, opener in enumerate(HALVES, start=1):
        # Other ports each time: what either NAT remembers of the half before would be in the way.
        async with agree(context, f"port {half}") as meeting:
            if half == 1:
                low_ttl = await low_ttl_of(context, meeting)
            try:
                if opener == context.role:
                    sock = await _open_and_listen(context, meeting, half, low_ttl)
                else:
                    sock = await _connect(context, meeting, half)
                carrier = await context.authenticate(sock)
            except OSError as error:
                failure = error
            else:
                return Connection(carrier, context.planned.technique, context.entry)
    raise failure


async def _open_and_listen(
    context: AttemptContext, meeting: Rendezvous, half: int, low_ttl: int | None
) -> trio.socket.SocketType:
    assert context.talk is not None
    await _open_hole(context, meeting, low_ttl)
    # Not earlier: while it listens beside the SYN that has left, an answer to that could end in it.
    with open_punch_listener(meeting.port) as listener:
        context.talk.say(f"open {half}", b"")
        with trio.move_on_after(_seconds(context, SHORTEST_HALF) + context.rtt):
            return await _accept_from(listener, meeting.remote.host)
    raise OSError(errno.ETIMEDOUT, "nobody has come in")


async def _open_hole(context: AttemptContext, meeting: Rendezvous, low_ttl: int | None) -> None:
    """Send a SYN that is not to be answered, and wait for the error that ends it."""
    with open_punch_socket(meeting.port) as sock:
        if low_ttl is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, low_ttl)
        context.entry.tries += 1
        error = await connect_in_time(sock, meeting.remote, _seconds(context, SHORTEST_HOLE))
        if error is not None and error.errno is not None:
            context.entry.notes["the opening SYN"] = os.strerror(error.errno)


async def _accept_from(listener: trio.socket.SocketType, host: str) -> trio.socket.SocketType:
    while True:
        sock, address = await listener.accept()
        if address[0] == host:
            return sock
        sock.close()


async def _connect(context: AttemptContext, meeting: Rendezvous, half: int) -> trio.socket.SocketType:
    assert context.talk is not None
    machine = PunchMachine(context.rtt, max_tries=MAX_TRIES)
    # The opener first has to send its SYN, and may still look for its TTL.
    with trio.move_on_after(2 * _seconds(context, SHORTEST_HALF)):
        await context.talk.hear(f"open {half}")
        try:
            with trio.move_on_after(_seconds(context, SHORTEST_HALF)):
                return await punch(meeting.port, meeting.remote, machine)
        finally:
            context.entry.tries += machine.tries
    raise OSError(errno.ETIMEDOUT, "the listening side was not reached")


def _seconds(context: AttemptContext, shortest: float) -> float:
    return max(shortest, RTTS * context.rtt)
