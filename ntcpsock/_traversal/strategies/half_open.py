"""What `tcp-natblaster` and `tcp-stunt1` share: a SYN of each side that ends between both NATs, and whose numbers the
other side is told; then each kernel gets a SYN-ACK that it takes for the answer."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._nursery import open_background_nursery
from ntcpsock._raw.capture import Capture, open_capture
from ntcpsock._raw.packet import Syn, decode_syn_untrusted, encode_syn, parse_syn_untrusted, syn_filter
from ntcpsock._raw.privileges import check_raw
from ntcpsock._traversal.hops import IP_MINTTL
from ntcpsock._traversal.punch.driver import open_punch_socket
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.rendezvous import Rendezvous, agree, connect_in_time, low_ttl_of

_WORD = "syn"

# SYN-ACKs are sent again after these pauses in seconds: one may be lost, or be earlier than the other side's SYN.
PAUSES = (0.0, 0.25, 0.5, 1.0)

# Seconds for the connection, the words by way of the broker included.
MEETING_SECONDS = 3.0

_DEFAULT_TTL = -1


@dataclass(frozen=True)
class HalfOpen:
    """A connection whose SYN is out. local: its own endpoint on this machine; ours, theirs: both SYNs."""

    meeting: Rendezvous
    local: Endpoint
    ours: Syn
    theirs: Syn


#: Has a SYN-ACK sent, once.
Answer = Callable[[AttemptContext, HalfOpen], Awaitable[None]]


async def connect_half_open(context: AttemptContext, answer: Answer) -> Connection:
    """Raises OSError: EPERM with what is missing for raw packets, what `agree` raises, and the kernel's reasons."""
    check_raw(context.planned.technique)
    async with agree(context) as meeting:
        low_ttl = await low_ttl_of(context, meeting)
        filter_text = syn_filter(meeting.port, meeting.remote)
        async with open_capture(filter_text, parse_syn_untrusted) as capture:
            with open_punch_socket(meeting.port) as sock:
                _shorten(sock, low_ttl)
                context.entry.tries += 1
                return await _meet(context, meeting, sock, capture, answer)


async def _meet(
    context: AttemptContext,
    meeting: Rendezvous,
    sock: trio.socket.SocketType,
    capture: Capture[Syn],
    answer: Answer,
) -> Connection:
    failure: list[OSError] = []
    answered = trio.Event()

    async def answer_again_and_again() -> None:
        try:
            half_open = await _exchange(context, meeting, sock, capture)
            for pause in PAUSES:
                await trio.sleep(pause)
                await answer(context, half_open)
                answered.set()
        except OSError as error:
            if not answered.is_set():
                failure.append(error)
                answered.set()
                connecting.cancel()

    # The task lives until the other side has been authenticated: it may not have had its SYN-ACK yet.
    async with open_background_nursery() as nursery:
        with trio.CancelScope() as connecting:
            nursery.start_soon(answer_again_and_again)
            error = await connect_in_time(sock, meeting.remote, MEETING_SECONDS)
            if error is not None:
                raise error
            await answered.wait()
        if failure:
            raise failure[0]
        # What the kernel sends from now on is meant to arrive. Its ACK was not, and nobody misses it: the other
        # side's kernel has its connection from the SYN-ACK.
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _DEFAULT_TTL)
        sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 0)
        # The block that closes `sock` must find nothing to close: it is the carrier's from here on.
        carrier = await context.authenticate(_taken_over(sock))
        return Connection(carrier, context.planned.technique, context.entry)


def _shorten(sock: trio.socket.SocketType, low_ttl: int | None) -> None:
    """Let the SYN end on the way. Linux gives a connection up when it hears of that, unless the packet that the ICMP
    error quotes had fewer hops left than the socket asks of all it gets (RFC 5082): and it had one at most."""
    if low_ttl is not None:
        sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 2)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, low_ttl)


async def _exchange(
    context: AttemptContext, meeting: Rendezvous, sock: trio.socket.SocketType, capture: Capture[Syn]
) -> HalfOpen:
    assert context.talk is not None, "a joint technique"
    ours = await capture.next()
    context.talk.say(_WORD, encode_syn(ours))
    try:
        theirs = decode_syn_untrusted(await context.talk.hear(_WORD))
    except BadMessage as error:
        raise OSError(errno.EPROTO, f"the other side's SYN: {error}") from error
    return HalfOpen(meeting, Endpoint(*sock.getsockname()[:2]), ours, theirs)


def _taken_over(sock: trio.socket.SocketType) -> trio.socket.SocketType:
    return trio.socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
