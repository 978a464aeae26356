"""Binding requests over real sockets: the trio side of `machine.py`."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage, NTCPError
from ntcpsock._traversal.stun.attributes import (
    MappedAddress,
    OtherAddress,
    ResponseOrigin,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import TRANSACTION_ID_LENGTH
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.machine import ClientTransaction, Event, Failed, Succeeded
from ntcpsock._traversal.stun.message import Message, binding_request

_RECEIVE_SIZE = 2048

# What of a response has come on a TCP socket. It outlives one call: a caller that gives up in the middle of
# a message finds the rest of it in front of the next response, and must not take that for a header.
_splitters: WeakKeyDictionary[trio.socket.SocketType, MessageSplitter] = WeakKeyDictionary()


class StunError(NTCPError):
    """The server refused, or answered what cannot be used. `code` is the STUN error code, or None."""

    default_errno = errno.EPROTO
    code: int | None = None


class NotStun(StunError):
    """What answers over TCP is something else: a captive portal, a proxy, another server on that port."""


@dataclass(frozen=True, slots=True)
class BindingResult:
    """What a Binding request tells.

    mapped: our address as the server sees it.
    other_address: where the server also answers (RFC 5780), or None where it has one address.
    response_origin: where the server says that it answered from, or None.
    rtt: seconds; with UDP losses an upper bound (see `machine.Succeeded`).
    """

    mapped: Endpoint
    other_address: Endpoint | None
    response_origin: Endpoint | None
    rtt: float


async def binding_over_tcp(stream_socket: trio.socket.SocketType) -> BindingResult:
    """Ask the STUN server at the other end of a connected TCP socket (RFC 8489 section 6.2.2).

    May be called again on the same socket, one call at a time; the connection stays open between, and is
    then a keep-alive. A cancelled call leaves the socket usable when nothing was half sent, which a 20-octet
    request practically never is. Raises TimeoutError after 39.5 s, ConnectionError when the connection is
    lost, StunError, and other OSErrors of the socket.
    """
    return _binding_result(await exchange_over_tcp(stream_socket, binding_request(_transaction_id())))


async def exchange_over_tcp(stream_socket: trio.socket.SocketType, request: Message) -> Event:
    """Send `request` on a connected TCP socket and return the machine's last event; as `binding_over_tcp`."""
    transaction = ClientTransaction(request, now=trio.current_time(), reliable=True)
    splitter = _splitters.setdefault(stream_socket, MessageSplitter())

    async def send(data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += await stream_socket.send(data[sent:])

    async def receive() -> list[bytes]:
        data = await stream_socket.recv(_RECEIVE_SIZE)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the STUN server closed the connection")
        try:
            return splitter.receive_data(data)
        except BadMessage as error:
            raise NotStun(f"the server does not speak STUN: {error}") from error

    return await _drive(transaction, send, receive)


async def binding_over_udp(sock: trio.socket.SocketType, server: Endpoint) -> BindingResult:
    """Ask `server` (numeric address) from a bound, unconnected UDP socket (RFC 8489 section 6.2.1).

    The caller owns the socket meanwhile: datagrams that are no answer to this are dropped. Cancelling is
    safe. Raises TimeoutError after the schedule's 39.5 s, StunError, and OSErrors of the socket.
    """
    request = binding_request(_transaction_id())
    return _binding_result(await exchange_over_udp(sock, request, server, answer_from=server))


async def exchange_over_udp(
    sock: trio.socket.SocketType, request: Message, server: Endpoint, *, answer_from: Endpoint | None
) -> Event:
    """Send `request` to `server`, repeat it by the schedule, and return the machine's last event.

    Only `answer_from` is listened to; None takes an answer from anywhere, as CHANGE-REQUEST (RFC 5780
    section 7.2) needs it: the transaction id alone then tells the answer from a forgery.
    """
    transaction = ClientTransaction(request, now=trio.current_time())
    expected = None if answer_from is None else _address_key(*answer_from)

    async def send(data: bytes) -> None:
        await sock.sendto(data, tuple(server))

    async def receive() -> list[bytes]:
        data, source = await sock.recvfrom(_RECEIVE_SIZE)
        return [data] if expected in (None, _address_key(*source[:2])) else []

    return await _drive(transaction, send, receive)


async def _drive(
    transaction: ClientTransaction,
    send: Callable[[bytes], Awaitable[None]],
    receive: Callable[[], Awaitable[list[bytes]]],
) -> Event:
    while True:
        for data in transaction.datagrams_to_send():
            await send(data)
        if event := transaction.next_event():
            return event
        deadline = transaction.next_timeout()
        with trio.CancelScope(deadline=math.inf if deadline is None else deadline):
            for data in await receive():
                transaction.handle_message(data, trio.current_time())
        transaction.handle_timeout(trio.current_time())


def _binding_result(event: Event) -> BindingResult:
    if isinstance(event, Failed):
        error = StunError(f"STUN error {event.code}: {event.reason}" if event.code else event.reason)
        error.code = event.code
        raise error
    if not isinstance(event, Succeeded):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    # The masked one wins: some NATs rewrite every address that they find in a packet (RFC 8489 section 14.2).
    mapped = event.response.get(XorMappedAddress) or event.response.get(MappedAddress)
    if mapped is None:
        raise StunError("the response has no mapped address")
    return BindingResult(
        mapped.endpoint,
        _endpoint(event.response.get(OtherAddress)),
        _endpoint(event.response.get(ResponseOrigin)),
        event.rtt,
    )


def _endpoint(attribute: OtherAddress | ResponseOrigin | None) -> Endpoint | None:
    return None if attribute is None else attribute.endpoint


def _address_key(host: str, port: int) -> tuple[object, int]:
    # IPv6 addresses have several spellings, and only the kernel adds the zone.
    return ipaddress.ip_address(host.partition("%")[0]), port


def _transaction_id() -> bytes:
    return secrets.token_bytes(TRANSACTION_ID_LENGTH)
