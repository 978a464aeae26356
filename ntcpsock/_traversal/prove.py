"""Whoever connects to a listening node has to prove that it is a dialer: by the one-time token of its offer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._config import Encryption
from ntcpsock._errors import BadMessage
from ntcpsock._session.binding import receive_bind
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad, accept_bare_road, confirm_bare_road
from ntcpsock._session.plain import PlainCarrier, receive_greeting, to_plain
from ntcpsock._session.quic.carrier import QuicCarrier, quic_server_handshake
from ntcpsock._session.tls import Carrier as TLSCarrier
from ntcpsock._session.tls import Certificate, server_handshake
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.pending import PendingDial, PendingDials

# Connections without a proven token yet, and the seconds that each may take to prove one.
MAX_UNAUTHENTICATED = 64
AUTHENTICATION_DEADLINE = 10.0

#: Takes a proven connection over: its dial, carrier, first bytes, and the attempt's technique or None.
Finish = Callable[[PendingDial, Carrier | PlainCarrier | BareRoad, bytes, str | None], None]


class ProveContext(Protocol):
    """What a doorkeeper needs of its node."""

    @property
    def encryption(self) -> Encryption: ...
    @property
    def certificate(self) -> Certificate: ...


class Doorkeeper:
    """Authenticates the connections of one node."""

    def __init__(
        self, node: ProveContext, dials: PendingDials, finish: Finish, count: Callable[[str], int]
    ) -> None:
        self._node = node
        self._dials = dials
        self._finish = finish
        self._count = count
        self.strangers: dict[trio.socket.SocketType, trio.CancelScope] = {}

    async def incoming(self, sock: trio.socket.SocketType) -> None:
        """Authenticate a connection that came in on the listening port, and hand its stream over.

        Strangers hold a place until their deadline; where all are held, the oldest makes room, so that a dialer,
        who needs two round trips, comes through unless they are all taken anew meanwhile.
        """
        if len(self.strangers) >= MAX_UNAUTHENTICATED:
            self.strangers.pop(next(iter(self.strangers))).cancel()
            self._count("displaced")
        scope = self.strangers[sock] = trio.CancelScope()
        try:
            with scope, suppress(OSError):
                await self.authenticate(sock, None)
        finally:
            self.strangers.pop(sock, None)

    async def authenticate(
        self, sock: trio.socket.SocketType, technique: str | None
    ) -> Carrier | PlainCarrier:
        """Have the other end prove that it is a dialer, and hand its stream over.

        technique: the attempt's that made the connection, None for one that came in. Raises OSError when it is
        nobody, or an attempt that the dialer did not choose.
        """
        if self._node.encryption == "off":
            return await self._authenticate_plain(sock, technique)
        carrier: TLSCarrier | None = None
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                carrier = await server_handshake(sock, self._node.certificate)
                dial_id, token, rest = await receive_bind(carrier)
                await self._dials.arrived(dial_id)
        except (OSError, BadMessage, trio.TooSlowError) as error:
            self._count(f"authentication: {type(error).__name__}")
            if carrier is not None:
                carrier.close(abort=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, f"not authenticated: {error}") from error
        except BaseException:
            if carrier is not None:
                carrier.close(abort=True)
            raise
        self._redeem(dial_id, token, carrier, rest, technique)
        return carrier

    async def _authenticate_plain(self, sock: trio.socket.SocketType, technique: str | None) -> PlainCarrier:
        plain = to_plain(sock)
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                carrier, dial_id = await receive_greeting(plain, self._dials.token)
        except (OSError, BadMessage, trio.TooSlowError) as error:
            self._count(f"authentication: {type(error).__name__}")
            plain.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, f"not authenticated: {error}") from error
        except BaseException:
            plain.close()
            raise
        self._redeem(dial_id, None, carrier, b"", technique)
        return carrier

    async def authenticate_path(
        self, path: PunchedPath, technique: str, nursery: trio.Nursery, rtt: float
    ) -> Carrier:
        """The same over a path for datagrams. nursery: of the node, for the connection's task; rtt: of the path."""
        carrier: QuicCarrier | None = None
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                carrier = await quic_server_handshake(
                    path, self._node.certificate, nursery=nursery, round_trip=rtt
                )
                dial_id, token, rest = await receive_bind(carrier)
                await self._dials.arrived(dial_id)
        except (OSError, BadMessage, trio.TooSlowError, trio.ClosedResourceError) as error:
            # Whoever got so far has proven the offer's secret: most often it is the dialer, who has chosen otherwise.
            if isinstance(error, BadMessage):
                self._count("authentication: BadMessage")
            if carrier is not None:
                carrier.close(abort=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, f"not authenticated: {error}") from error
        except BaseException:
            if carrier is not None:
                carrier.close(abort=True)
            raise
        path.settle()
        self._redeem(dial_id, token, carrier, rest, technique)
        return carrier

    async def authenticate_bare_path(
        self, path: PunchedPath, technique: str, dial_id: bytes, token: bytes
    ) -> BareRoad:
        """The same for datagrams without encryption: the path itself."""
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                road = await accept_bare_road(path, dial_id, token)
        except trio.TooSlowError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the dialer has not chosen this path") from error
        path.settle()
        self._redeem(dial_id, None, road, b"", technique)
        confirm_bare_road(road)
        return road

    def _redeem(
        self,
        dial_id: bytes,
        token: bytes | None,
        carrier: Carrier | PlainCarrier | BareRoad,
        rest: bytes,
        technique: str | None,
    ) -> None:
        """token: None where the greeting has proven it already. Raises ConnectionAbortedError."""
        pending = self._dials.under_way.get(dial_id)
        if pending is None or not pending.token.redeem(pending.token.token if token is None else token):
            self._count("wrong token")
            carrier.close(abort=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "not authenticated: wrong token")
        self._finish(pending, carrier, rest, technique)
