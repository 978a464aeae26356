"""`relay`: both sides connect out to a relay of their broker's, and speak TLS with each other through it.

The dialer has a pair of tickets from the broker's introduction. It passes one on, sealed, with the word for the relay
that it has chosen, and takes its own seat meanwhile. The listener goes to relays alone that its broker has told it,
too. The relay moves ciphertext: the certificate is pinned and the token is presented as on a direct path. A relay
that either side cannot reach is followed by the dialer's next one.
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
from ntcpsock._traversal.relay.told import told_as
from ntcpsock._traversal.relay.tunnel import TlsRelay
from ntcpsock._traversal.strategies.base import AttemptContext, Connection

# Seconds to get a seat: a TCP connection, perhaps through a proxy, and one exchange.
SEAT_DEADLINE = 5.0

#: Relays that one dial tries, as many as a broker tells.
MAX_TRIES = 4


@dataclass(frozen=True)
class RelayAccess:
    """What an attempt needs to know of relays. relays: those of our own broker, best first, the only ones that a
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
        context.talk.say(_word(number), theirs + told_as(relay).encode())
        context.entry.remote = relay
        context.entry.tries += 1
        try:
            return await _meet_unless_refused(context, relay, ours, number)
        except OSError as error:
            failure = error
    raise failure


async def _follow(context: AttemptContext) -> Connection:
    assert context.talk is not None, "a joint technique"
    assert context.relay is not None
    failure = OSError(errno.EHOSTUNREACH, "our broker has no such relay")
    for number in range(MAX_TRIES):
        body = await context.talk.hear(_word(number))
        ticket, word = body[:TICKET_LENGTH], body[TICKET_LENGTH:].decode(errors="replace")
        if len(ticket) != TICKET_LENGTH:
            raise OSError(errno.EPROTO, "the dialer's word is no ticket to a relay")
        relay = next((known for known in context.relay.relays if told_as(known) == word), None)
        if relay is not None:
            context.entry.remote = relay
            context.entry.tries += 1
            try:
                return await _meet(context, relay, ticket)
            except OSError as error:
                failure = error
        context.talk.say(_refusal(number), b"")
    raise failure


async def _meet_unless_refused(
    context: AttemptContext, relay: Endpoint, ticket: bytes, number: int
) -> Connection:
    """The listener may not know the relay, or not reach it: then nobody waits for it there."""
    assert context.talk is not None
    talk = context.talk
    connection: Connection | None = None
    failure: OSError = ConnectionRefusedError(
        errno.ECONNREFUSED, f"the other side cannot be met at the relay {relay}"
    )
    try:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                await talk.hear(_refusal(number))
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            try:
                connection = await _meet(context, relay, ticket)
            except OSError as error:
                failure = error
            nursery.cancel_scope.cancel()
    except BaseException:
        # Cancelled while the nursery ended: nobody gets it any more.
        if connection is not None:
            connection.carrier.close(abort=True)
        raise
    if connection is None:
        raise failure
    return connection


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


def _refusal(number: int) -> str:
    return f"no relay {number}"
