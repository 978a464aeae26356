"""qh3's connection, whose events go to the machine, and no faster than it has room.

It takes the place of parts that qh3 does not promise to keep.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, Protocol

from qh3 import tls
from qh3.quic.connection import QuicConnection
from qh3.quic.tls_bridge import QuicTlsBridgeError

from ntcpsock._session.quic import core_window
from ntcpsock._session.quic.configuration import ABORT

# UDP payload that goes through Ethernet under IPv6, and under IPv4 through PPPoE, too.
LARGEST_PROBED: Final = 1452
SMALLEST: Final = 1200  # RFC 9000 section 14.1


class Listener(Protocol):
    """Who hears what has happened: the machine."""

    def has_room_for_events(self) -> bool: ...
    def on_stream_data(self, stream: int, data: bytes) -> None: ...
    def on_datagram(self, data: bytes) -> None: ...
    def on_ping_acknowledged(self, ping: int) -> None: ...
    def on_handshake_complete(self) -> None: ...
    def on_peer_closed(self, application: bool, code: int, reason: str) -> None: ...
    def on_terminated(self, code: int, reason: str) -> None: ...
    def fail(self, error: OSError) -> None: ...
    def close(self, code: int, reason: str = "") -> None: ...


class Connection(QuicConnection):
    """listener: set before anything is received; has_more: whether events wait until it has room; header_key: of the
    header protection of the peer's 1-RTT packets, where that is AES."""

    listener: Listener
    has_more = False
    header_key: bytes | None = None

    def connect(self, addr: tuple[str, int], now: float) -> None:
        super().connect(addr, now)
        core, size = self._require_core(), self.configuration.max_datagram_size
        if size > SMALLEST:
            core_window.limit(core, size)
            return
        # Where nothing arrives at first, a client's core falls back to the smallest size, and feels its way up from
        # there; so it is told that a first flight, which nobody has seen, was lost.
        while core.poll_transmit(now) is not None:
            pass
        timer = core.get_timer()
        assert timer is not None
        core.handle_timer(timer[1])
        core_window.limit(core, LARGEST_PROBED)

    def _create_core(self, remote_addr: tuple[str, int], initial_dcid: bytes, now: float) -> None:
        configuration = self.configuration
        size = configuration.max_datagram_size
        configuration.max_datagram_size = core_window.VAST
        try:
            super()._create_core(remote_addr, initial_dcid, now)
        finally:
            configuration.max_datagram_size = size
        core_window.limit(self._require_core(), core_window.LARGEST if self._is_client else size)

    def _call_core(self, operation: Callable[..., Any], *args: Any) -> Any:
        if args[:2] == ("receive", int(tls.Epoch.ONE_RTT)) and args[2][1].startswith("aes"):
            self.header_key = args[5]
        return super()._call_core(operation, *args)

    @property
    def has_limits(self) -> bool:
        """Whether the peer has said what it takes."""
        return self._core is not None and self._applied_transport_parameters is not None

    def limit_datagrams(self, size: int) -> None:
        """Send datagrams of the path of at most so many bytes from now on, where there are limits."""
        core, parameters = self._require_core(), self._applied_transport_parameters
        assert parameters is not None
        # The core takes over a peer's limit at any time, and limits only ever grow or stay, but this one.
        core.apply_peer_transport_parameters(
            parameters.initial_max_data or 0,
            parameters.initial_max_stream_data_bidi_local or 0,
            parameters.initial_max_stream_data_bidi_remote or 0,
            parameters.initial_max_stream_data_uni or 0,
            parameters.initial_max_streams_bidi or 0,
            parameters.initial_max_streams_uni or 0,
            3 if parameters.ack_delay_exponent is None else parameters.ack_delay_exponent,
            0.025 if parameters.max_ack_delay is None else parameters.max_ack_delay / 1000,
            None,
            parameters.max_datagram_frame_size,
            None,
            parameters.active_connection_id_limit or 2,
            bool(parameters.disable_active_migration),
            size,
        )

    def _drain_core(self) -> None:
        # qh3 calls it, too.
        core, listener = self._require_core(), self.listener
        while True:
            if not listener.has_room_for_events():
                self.has_more = core.has_events
                return
            event = core.next_event()
            if event is None:
                self.has_more = False
                return
            kind = event[0]
            if kind == "stream_data":
                listener.on_stream_data(event[1], event[2])
            elif kind == "datagram":
                listener.on_datagram(event[1])
            elif kind == "crypto_data":
                self._on_crypto(event)
            elif kind == "ping_acknowledged":
                listener.on_ping_acknowledged(event[1])
            elif kind == "handshake_done":
                self._handshake_confirmed = True
                core.handshake_confirmed()
            elif kind == "peer_closed":
                listener.on_peer_closed(event[1], event[2], event[4].decode("utf8", "replace"))
            elif kind == "protocol_error":
                listener.fail(broken(f"the peer broke QUIC: {event[3]}", None))
            elif kind == "connection_terminated":
                listener.on_terminated(event[1], event[3].decode("utf8", "replace"))
            elif kind in ("stream_reset", "stop_sending"):
                listener.fail(ConnectionResetError(errno.ECONNRESET, "the peer reset the stream"))
                listener.close(ABORT)

    def _on_crypto(self, event: tuple[Any, ...]) -> None:
        was_complete, core = self._handshake_complete, self._require_core()
        assert self._tls is not None
        try:
            self._tls.receive_crypto(tls.Epoch(event[1]), event[3], event[2], version=core.version)
            self._drain_tls()
        except QuicTlsBridgeError as error:
            core.close(error.error_code, int(error.frame_type), error.reason_phrase.encode())
            self.listener.fail(broken(f"TLS failed: {error.reason_phrase}", error))
            return
        self._events.clear()
        if self._handshake_complete and not was_complete:
            self.listener.on_handshake_complete()


def broken(text: str, cause: BaseException | None) -> OSError:
    """The error of a connection that QUIC itself, or the peer, has spoilt."""
    error = ConnectionAbortedError(errno.ECONNABORTED, text)
    error.__cause__ = cause
    return error
