"""What is left of qh3's connection after the handshake: its core, and little else.

The handshake's own half (TLS with its keys and certificates, the configuration, what the peer has said of itself) takes
as much memory as the core does, and nothing of it is used again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ntcpsock._session.quic.configuration import ABORT
from ntcpsock._session.quic.failure import broken

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore
    from qh3.quic.packet import QuicTransportParameters

# RFC 9001 section 4.8: a TLS alert, of which this is "unexpected_message".
_UNEXPECTED_MESSAGE: Final = 0x0100 + 10


# Connection ids that an end holds ready for the other one: the fewest (RFC 9000 section 18.2), for none ever changes.
CONNECTION_IDS: Final = 2


# The first stream that a client opens, and a server: RFC 9000 section 2.1.
CLIENTS_STREAM: Final = 0
SERVERS_STREAM: Final = 1


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


def drain(
    core: QuicConnectionCore,
    listener: Listener,
    on_crypto: Callable[[tuple[Any, ...]], None],
    *,
    everything: bool = False,
) -> bool:
    """Tell `listener` what has happened, as far as it has room, or everything; whether there is more."""
    while True:
        if not everything and not listener.has_room_for_events():
            return core.has_events
        event = core.next_event()
        if event is None:
            return False
        kind = event[0]
        if kind == "stream_data":
            listener.on_stream_data(event[1], event[2])
        elif kind == "datagram":
            listener.on_datagram(event[1])
        elif kind == "crypto_data":
            on_crypto(event)
        elif kind == "ping_acknowledged":
            listener.on_ping_acknowledged(event[1])
        elif kind == "handshake_done":
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


class Limits(NamedTuple):
    """What the peer takes, in the words and the order of the core."""

    connection_send_limit: int
    stream_send_limit_bidi_local: int
    stream_send_limit_bidi_remote: int
    stream_send_limit_uni: int
    peer_max_streams_bidi: int
    peer_max_streams_uni: int
    ack_delay_exponent: int
    max_ack_delay: float
    peer_idle_timeout: float | None
    max_datagram_frame_size: int | None
    stateless_reset_token: bytes | None
    active_connection_id_limit: int
    disable_active_migration: bool

    @classmethod
    def of(cls, parameters: QuicTransportParameters) -> Limits:
        return cls(
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
            CONNECTION_IDS,
            bool(parameters.disable_active_migration),
        )

    def limit_datagrams(self, core: QuicConnectionCore, size: int) -> None:
        """Send datagrams of the path of at most so many bytes from now on."""
        # The core takes over a peer's limit at any time, and limits only ever grow or stay, but this one.
        core.apply_peer_transport_parameters(*self, size)


# Peers of our kind all say the same; one entry of a cache takes less than a copy for each connection.
_MOST_KNOWN: Final = 16
_known: dict[Limits, Limits] = {}


def _shared(limits: Limits) -> Limits:
    if len(_known) < _MOST_KNOWN:
        return _known.setdefault(limits, limits)
    return _known.get(limits, limits)


class Established:
    """As `connection.Connection`, after the handshake. core: None while the connection is dormant; peers_stream: on
    which the peer sends."""

    __slots__ = ("_is_client", "core", "has_more", "host_cid", "limits", "listener", "peers_stream")

    def __init__(
        self,
        core: QuicConnectionCore | None,
        is_client: bool,
        host_cid: bytes,
        limits: Limits,
        listener: Listener,
    ) -> None:
        self.core = core
        self.host_cid = host_cid
        self.listener = listener
        self.has_more = False
        self.peers_stream = CLIENTS_STREAM
        self._is_client = is_client
        self.limits = _shared(limits)

    def require_core(self) -> QuicConnectionCore:
        assert self.core is not None
        return self.core

    def receive_datagram(self, data: bytes, address: tuple[str, int], now: float) -> None:
        self.require_core().receive_datagram(data, address, now)
        self.drain()

    def drain(self) -> None:
        """Tell the listener what has happened, as far as it has room."""
        if self.core is not None:
            self.has_more = drain(self.core, self.listener, self._on_crypto)

    def give_up(self) -> None:
        """Tell the listener everything, for the core is no more after that."""
        drain(self.require_core(), self.listener, self._on_crypto, everything=True)
        self.core = None
        self.has_more = False

    def take_up(self, core: QuicConnectionCore, host_cid: bytes) -> None:
        """Go on with another core: each end has a stream of its own there, for nobody knows which is used first."""
        self.core = core
        self.host_cid = host_cid
        self.peers_stream = SERVERS_STREAM if self._is_client else CLIENTS_STREAM

    @property
    def next_stream(self) -> int:
        """Ours of the next core."""
        return CLIENTS_STREAM if self._is_client else SERVERS_STREAM

    def _on_crypto(self, event: tuple[Any, ...]) -> None:
        # A server may offer tickets, with which nobody resumes; a client has nothing to say any more: RFC 8446
        # section 4.6, RFC 9001 section 6 (KeyUpdate is not TLS's there) and section 4.4 (nor is authentication).
        if not self._is_client:
            self.require_core().close(_UNEXPECTED_MESSAGE, None, b"")
            self.listener.fail(broken("TLS failed: a message after the handshake", None))

    @property
    def has_limits(self) -> bool:
        """Whether the peer has said what it takes."""
        return True

    def limit_datagrams(self, size: int) -> None:
        if self.core is not None:
            self.limits.limit_datagrams(self.core, size)

    @property
    def max_datagram_frame_size(self) -> int:
        return self.limits.max_datagram_frame_size or 0

    def open_stream(self, stream: int) -> None:
        """Open a stream of our own, without a word yet."""
        self.require_core().send_stream(stream, b"")

    def end(self, code: int, reason: str) -> None:
        """CONNECTION_CLOSE."""
        self.require_core().close(code, None, reason.encode())
