"""`relay`: both sides connect out to a relay of their broker's, and speak TLS with each other through it.

The dialer has a pair of tickets from the broker's introduction. It passes one on, sealed, and takes its own seat
meanwhile. The relay moves ciphertext: the certificate is pinned and the token is presented as on a direct path. A
relay that cannot be reached is followed by the next one of the list.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.tls import Carrier as TlsCarrier
from ntcpsock._traversal.relay.driver import take_seat
from ntcpsock._traversal.relay.message import TICKET_LENGTH
from ntcpsock._traversal.relay.tunnel import TlsRelay
from ntcpsock._traversal.strategies.base import AttemptContext, Connection

# Seconds to get a seat: a TCP connection, perhaps through a proxy, and one exchange.
SEAT_DEADLINE = 5.0


@dataclass(frozen=True)
class RelayAccess:
    """What an attempt needs to know of relays. relays: those of our own broker, in its order, the only ones that a
    peer can send us to; tickets: fresh ones, ours and the one to pass on, or None where the broker gives none."""

    relays: Sequence[Endpoint]
    tickets: Callable[[], Awaitable[tuple[bytes, bytes] | None]]


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; without a deadline the follower waits for ever for the leader's words."""
    return await (_lead(context) if context.role == "leader" else _follow(context))


async def _lead(context: AttemptContext) -> Connection:
    assert context.talk is not None, "a joint technique"
    assert context.relay is not None
    failure = OSError(errno.EHOSTUNREACH, "the broker has no relay")
    for number, relay in enumerate(context.relay.relays):
        tickets = await context.relay.tickets()
        if tickets is None:
            break
        ours, theirs = tickets
        context.talk.say(_word(number), theirs)
        context.entry.remote = relay
        context.entry.tries += 1
        try:
            return await _meet(context, relay, ours)
        except OSError as error:
            failure = error
    raise failure


async def _follow(context: AttemptContext) -> Connection:
    assert context.talk is not None, "a joint technique"
    assert context.relay is not None
    failure = OSError(errno.EHOSTUNREACH, "our broker has no such relay")
    for number, relay in enumerate(context.relay.relays):
        ticket = await context.talk.hear(_word(number))
        if len(ticket) != TICKET_LENGTH:
            raise OSError(errno.EPROTO, "the dialer's word is no ticket to a relay")
        context.entry.remote = relay
        context.entry.tries += 1
        try:
            return await _meet(context, relay, ticket)
        except OSError as error:
            failure = error
    raise failure


async def _meet(context: AttemptContext, relay: Endpoint, ticket: bytes) -> Connection:
    try:
        with trio.fail_after(SEAT_DEADLINE):
            sock = await take_seat(relay, ticket)
    except trio.TooSlowError:
        raise TimeoutError(errno.ETIMEDOUT, f"the relay {relay} does not answer") from None
    carrier = await context.authenticate(sock)
    if isinstance(relay, TlsRelay) and isinstance(carrier, TlsCarrier):
        carrier.remote = relay  # not the loopback that stands for it
    return Connection(carrier, context.planned.technique, context.entry)


def _word(number: int) -> str:
    return f"relay {number}"
