"""qh3's connection, until the handshake is done (`established`), whose events go to the machine.

It takes the place of parts that qh3 does not promise to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from qh3 import tls
from qh3.quic.connection import QuicConnection
from qh3.quic.tls_bridge import QuicTlsBridgeError

from ntcpsock._session.quic import core_window
from ntcpsock._session.quic.established import CLIENTS_STREAM, Established, Limits, Listener, drain
from ntcpsock._session.quic.failure import broken
from ntcpsock._session.quic.generations import Secrets

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

# UDP payload that goes through Ethernet under IPv6, and under IPv4 through PPPoE, too.
LARGEST_PROBED: Final = 1452
SMALLEST: Final = 1200  # RFC 9000 section 14.1


class Connection(QuicConnection):
    """listener: set before anything is received; has_more: whether events wait until it has room; header_key: of the
    header protection of the peer's 1-RTT packets, where that is AES."""

    listener: Listener
    has_more = False
    peers_stream = CLIENTS_STREAM
    header_key: bytes | None = None
    _algorithms: tuple[str, str]
    _traffic_secrets: dict[str, bytes]  # of 1-RTT packets, by direction

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
        self._traffic_secrets = {}
        configuration = self.configuration
        size = configuration.max_datagram_size
        configuration.max_datagram_size = core_window.VAST
        try:
            super()._create_core(remote_addr, initial_dcid, now)
        finally:
            configuration.max_datagram_size = size
        core_window.limit(self._require_core(), core_window.LARGEST if self._is_client else size)

    def _call_core(self, operation: Callable[..., Any], *args: Any) -> Any:
        if args[1:2] == (int(tls.Epoch.ONE_RTT),) and args[0] in ("send", "receive"):
            direction, _, self._algorithms, _, _, header_key, _, secret, _ = args
            self._traffic_secrets[direction] = secret
            if direction == "receive" and self._algorithms[1].startswith("aes"):
                self.header_key = header_key
        return super()._call_core(operation, *args)

    @property
    def core(self) -> QuicConnectionCore | None:
        return self._core

    @property
    def secrets(self) -> Secrets:
        """Those of TLS, as soon as it is done."""
        return Secrets(self._algorithms, self._traffic_secrets["send"], self._traffic_secrets["receive"])

    def require_core(self) -> QuicConnectionCore:
        return self._require_core()

    @property
    def has_limits(self) -> bool:
        """Whether the peer has said what it takes."""
        return self._core is not None and self._applied_transport_parameters is not None

    def limit_datagrams(self, size: int) -> None:
        """Send datagrams of the path of at most so many bytes from now on, where there are limits."""
        parameters = self._applied_transport_parameters
        assert parameters is not None
        Limits.of(parameters).limit_datagrams(self._require_core(), size)

    @property
    def max_datagram_frame_size(self) -> int:
        return self._remote_max_datagram_frame_size or 0

    def open_stream(self, stream: int) -> None:
        """Open a stream of our own, without a word yet."""
        self.send_stream_data(stream, b"")

    def end(self, code: int, reason: str) -> None:
        """CONNECTION_CLOSE."""
        self.close(code, None, reason)

    def drain(self) -> None:
        """Tell the listener what has happened, as far as it has room."""
        self.has_more = drain(self._require_core(), self.listener, self._on_crypto)

    def _drain_core(self) -> None:
        self.drain()  # qh3 calls it, too

    def establish(self) -> Established:
        """The handshake is done: what goes on in the place of this object. Nothing but the core is left of it."""
        parameters, bridge = self._applied_transport_parameters, self._tls
        assert parameters is not None
        assert bridge is not None
        self._tls = None
        # They hold each other, and this object, so that only a collection would free them.
        vars(bridge.tls).clear()
        vars(bridge).clear()
        return Established(
            self._require_core(), self._is_client, self.host_cid, Limits.of(parameters), self.listener
        )

    def _on_crypto(self, event: tuple[Any, ...]) -> None:
        was_complete, core = self._handshake_complete, self._require_core()
        if self._tls is None:
            return  # behind the end of the handshake, in the same datagram
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
