"""One QUIC connection with one bidirectional stream, as a pure machine: datagrams and `now` in, datagrams out.

It wraps qh3's connection core, which has no I/O of its own. Two things are ours. What has arrived is taken out
of the core only as far as the reader has room (`RECEIVE_ROOM`): the core gives credit for what is taken out,
so a reader that does not read stops the sender, and the memory held is bounded by the window. And the core
knows one remote address only, a constant: which way datagrams really travel is the driver's business.

This file is all of ntcpsock that touches qh3, and it uses parts of it that qh3 does not promise to keep.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qh3 import tls
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.tls_bridge import QuicTlsBridgeError

from ntcpsock._errors import IdentityMismatch

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

ALPN: Final = "ntcp/1"
VERSION: Final = 1  # RFC 9000
STREAM: Final = 0  # the first that a client opens: RFC 9000 section 2.1
SMALLEST_INITIAL: Final = 1200  # RFC 9000 section 14.1

# The core's clock runs so many times faster than ours. CUBIC (RFC 9438) grows its window by the clock: where 1 % gets
# lost at random on 50 ms this moves 0.67 MB/s in place of 0.39; before a small queue 3.6 % get lost in place of 1.6 %
# (32 would lose 6 %). The rest of QUIC is measured in round trips and does not see it, but for constants: timers have
# finer grains, and a window is forgotten after 125 ms without traffic instead of 2 s.
HASTE: Final = 16.0

# Seconds that the acknowledgement of a single packet waits; the peer expects it within 25 ms of the core's clock.
ACK_PATIENCE: Final = 0.001

# Bytes of stream data under way and not read yet: what Linux allows a TCP socket (tcp_rmem).
WINDOW: Final = 6 * 1024 * 1024
# Of these, the ones that the core has handed out; the others stay with the core.
RECEIVE_ROOM: Final = 512 * 1024
# Bytes taken from the sender that have not been sent for the first time.
SEND_ROOM: Final = 512 * 1024
# Datagrams received and not fetched; of more, the oldest are dropped.
MOST_DATAGRAMS: Final = 256
# Bytes of datagrams handed over that congestion control has not let go yet.
DATAGRAM_ROOM: Final = 256 * 1024

DONE: Final = 0  # application error codes of CONNECTION_CLOSE
ABORT: Final = 1

_ADDRESSES: Final[dict[bool, tuple[str, int]]] = {False: ("192.0.2.1", 1), True: ("2001:db8::1", 1)}
# DATAGRAM (RFC 9221) in a packet of its own: flags, connection id, packet number, tag, type, length.
_DATAGRAM_OVERHEAD: Final = 1 + 20 + 4 + 16 + 1 + 2

_T = TypeVar("_T")


def parse_initial(datagram: bytes) -> bytes | None:
    """The destination connection id of the Initial packet that `datagram` begins with, None where it is none.

    RFC 9000 sections 14.1 and 17.2.2.
    """
    if len(datagram) < SMALLEST_INITIAL or datagram[0] & 0xF0 != 0xC0:
        return None
    length = datagram[5]
    if int.from_bytes(datagram[1:5], "big") != VERSION or not 8 <= length <= 20:
        return None
    return datagram[6 : 6 + length]


def warm_up() -> None:
    """Make a first packet for nobody: with the first key of a process the library seeds its random numbers, which takes
    30 ms of computing."""
    QuicMachine.client(bytes(32), 0.0, datagram_size=SMALLEST_INITIAL, idle_timeout=1.0, initial_rtt=1.0)


class ServerIdentity:
    """A certificate and its key in the form of the core. Made once: some 0.1 ms."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        loader = QuicConfiguration(is_client=False)
        loader.load_cert_chain(certificate_pem, key_pem)
        self.certificate = loader.certificate
        self.private_key = loader.private_key


class QuicMachine:
    """Made by `client` or `server`. After each call that changes something, `datagrams_to_send`.

    handshake_done: whether both ends have finished TLS and, at the client, the certificate is the pinned one;
    error: why the connection ended, or None; ended: whether the peer closed it in order (DONE);
    dropped_datagrams: received ones that nobody fetched in time.
    """

    def __init__(self, connection: _Connection, is_ipv6: bool, fingerprint: bytes | None) -> None:
        self.handshake_done = False
        self.error: OSError | None = None
        self.ended = False
        self.dropped_datagrams = 0
        self.closed = False  # by us
        self.datagram_size = connection.configuration.max_datagram_size
        self._address = _ADDRESSES[is_ipv6]
        self._fingerprint = fingerprint
        self._connection = connection
        connection.machine = self
        self._chunks: deque[memoryview] = deque()
        self._held = 0
        self._datagrams: deque[bytes] = deque(maxlen=MOST_DATAGRAMS)
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._pings: dict[int, bool] = {}
        self._ping = 0
        self._stream_open = False
        self._may_use_stream = fingerprint is not None  # the client opens it
        self._wants_to_speak = False

    @classmethod
    def client(
        cls,
        fingerprint: bytes,
        now: float,
        *,
        datagram_size: int,
        idle_timeout: float,
        initial_rtt: float,
        is_ipv6: bool = False,
    ) -> QuicMachine:
        """The dialer's end. fingerprint: SHA-256 of the certificate that the peer must show."""
        configuration = _configuration(True, datagram_size, idle_timeout, initial_rtt)
        configuration.verify_mode = 0  # ssl.CERT_NONE: the fingerprint is the check
        connection = _Connection(configuration=configuration)
        machine = cls(connection, is_ipv6, fingerprint)
        machine._guard(connection.connect, machine._address, now * HASTE)
        return machine

    @classmethod
    def server(
        cls,
        identity: ServerIdentity,
        destination: bytes,
        *,
        datagram_size: int,
        idle_timeout: float,
        initial_rtt: float,
        is_ipv6: bool = False,
    ) -> QuicMachine:
        """The listener's end. destination: what `parse_initial` said of the client's first datagram."""
        configuration = _configuration(False, datagram_size, idle_timeout, initial_rtt)
        configuration.certificate = identity.certificate
        configuration.private_key = identity.private_key
        connection = _Connection(configuration=configuration, original_destination_connection_id=destination)
        return cls(connection, is_ipv6, None)

    # -- datagrams of the path

    def receive(self, buffer: bytes, size: int, now: float) -> int:
        """Datagrams of the path, each of `size` bytes, the last one perhaps shorter. How many packets in them were
        the peer's and new (counted after the handshake). Whatever they are: it raises nothing."""
        core = self._connection._core
        if self.handshake_done and core is not None:
            report = self._guard(core.receive_gro_buffer, buffer, size, self._address, now * HASTE)
            self._guard(self._connection._drain_core)
            return report[2] if report is not None else 0
        for start in range(0, len(buffer), size):
            self._guard(
                self._connection.receive_datagram, buffer[start : start + size], self._address, now * HASTE
            )
        return 0

    def datagrams_to_send(self, now: float, most: int) -> list[bytes]:
        """What is to be sent now, at most so many datagrams. There may be more."""
        core = self._connection._core
        datagrams: list[bytes] = []
        if core is None:
            return datagrams
        poll, now = core.poll_transmit, now * HASTE
        try:
            while len(datagrams) < most:
                if self._outgoing:
                    self._let_datagrams_go(core)
                transmit = poll(now)
                if transmit is None:
                    break
                datagrams.append(transmit[0])
        except (RuntimeError, ValueError) as error:
            self._fail(_broken(f"QUIC failed: {error}", error))
        return datagrams

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called; None for never."""
        core = self._connection._core
        timer = None if core is None else core.get_timer()
        if timer is None:
            return None
        # An acknowledgement may wait for an answer that takes it along.
        return timer[1] / HASTE + (ACK_PATIENCE if timer[0] == "ack_application" else 0.0)

    def handle_timer(self, now: float) -> None:
        """May be called early."""
        self._guard(self._connection.handle_timer, now * HASTE)

    @property
    def is_over(self) -> bool:
        """Whether nothing of this connection is to be sent any more, not even an answer."""
        core = self._connection._core
        return core is None or core.state in ("terminated", "draining")

    @property
    def timeouts(self) -> int:
        """Probe time-outs since the peer was last heard of (RFC 9002 section 6.2)."""
        core = self._connection._core
        return 0 if core is None else core.pto_count

    @property
    def round_trip(self) -> float | None:
        """The smoothed round-trip time in seconds, None before the first one."""
        core = self._connection._core
        scaled = None if core is None else core.smoothed_rtt
        return None if scaled is None else scaled / HASTE

    @property
    def host_id(self) -> bytes:
        """The connection id that the peer's packets bear after its first ones."""
        connection_id: bytes = self._connection.host_cid
        return connection_id

    # -- the stream

    def send(self, data: bytes | memoryview) -> int:
        """Take the first bytes of `data` for the stream, as far as there is room: how many. Raises the connection's
        error. A server has no room before the client's first byte has arrived."""
        self._check_may_send()
        core = self._connection._require_core()
        if not self._may_use_stream:
            return 0
        room = SEND_ROOM - core.get_send_buffer_size(STREAM)
        if room <= 0:
            return 0
        part = data if len(data) <= room else memoryview(data)[:room]
        if not self._stream_open:
            self._stream_open = True
            self._guard(self._connection.send_stream_data, STREAM, part)
        else:
            self._guard(core.send_stream, STREAM, part)
        if self.error is not None:
            raise self.error
        return len(part)

    @property
    def has_room(self) -> bool:
        """Whether `send` would take something worth a call, or raise."""
        core = self._connection._core
        if self.error is not None or self.ended or core is None:
            return True
        return self._may_use_stream and bool(core.get_send_buffer_size(STREAM) <= SEND_ROOM // 2)

    def unacknowledged(self) -> int:
        """Bytes that have not reached the peer for sure, packets' overhead included."""
        core = self._connection._core
        if core is None or self.is_over:
            return 0
        return int(core.get_send_buffer_size(STREAM) + core.bytes_in_flight)

    def receive_into(self, buffer: memoryview) -> int:
        """Fill the front of `buffer` with what has arrived of the stream: how many bytes.

        Where it gives 0: `error` or `ended` say whether anything may come yet.
        """
        filled, room = 0, len(buffer)
        chunks = self._chunks
        while chunks and filled < room:
            chunk = chunks[0]
            count = min(len(chunk), room - filled)
            buffer[filled : filled + count] = chunk[:count]
            filled += count
            if count == len(chunk):
                chunks.popleft()
            else:
                chunks[0] = chunk[count:]
        if filled:
            self._held -= filled
            if self._connection.has_more:
                self._wants_to_speak = True
                self._guard(self._connection._drain_core)
        return filled

    @property
    def wants_to_speak(self) -> bool:
        """Whether reading has made room that the peer is to be told of."""
        wants, self._wants_to_speak = self._wants_to_speak, False
        return wants

    @property
    def readable(self) -> int:
        """Bytes that `receive_into` would give at once."""
        return self._held

    # -- datagrams of the application (RFC 9221)

    @property
    def max_datagram_payload(self) -> int:
        """The most bytes of a datagram that fit into one packet of the smallest size in use."""
        remote = self._connection._remote_max_datagram_frame_size or 0
        return max(0, min(self.datagram_size - _DATAGRAM_OVERHEAD, remote - 3))

    def send_datagram(self, data: bytes) -> bool:
        """Send one datagram, unreliably; False where too much waits already. EMSGSIZE where it is too large."""
        self._check_may_send()
        if len(data) > self.max_datagram_payload:
            raise OSError(
                errno.EMSGSIZE, f"a datagram on this path carries {self.max_datagram_payload} bytes"
            )
        if not self.has_datagram_room:
            return False
        self._outgoing.append(bytes(data))
        self._outgoing_bytes += len(data) + _DATAGRAM_OVERHEAD
        return True

    @property
    def has_datagram_room(self) -> bool:
        """Whether `send_datagram` would take one, or raise."""
        return self._outgoing_bytes < DATAGRAM_ROOM or self.error is not None or self.ended

    def _let_datagrams_go(self, core: QuicConnectionCore) -> None:
        """Give the core one packet's worth, where congestion control has room: the core itself does not ask it."""
        room = min(core.congestion_window - core.bytes_in_flight, self.datagram_size)
        while self._outgoing and (size := len(self._outgoing[0]) + _DATAGRAM_OVERHEAD) <= room:
            core.send_datagram(self._outgoing.popleft())
            self._outgoing_bytes -= size
            room -= size

    def take_datagrams(self) -> list[bytes]:
        """Those that have arrived, oldest first."""
        datagrams = list(self._datagrams)
        self._datagrams.clear()
        return datagrams

    @property
    def has_datagrams(self) -> bool:
        return bool(self._datagrams)

    def lower_datagram_size(self) -> bool:
        """Send no more than 1200 bytes at once from now on: larger datagrams seem to get lost. Whether that is new."""
        core, parameters = self._connection._core, self._connection._applied_transport_parameters
        if core is None or parameters is None or self.datagram_size <= SMALLEST_INITIAL:
            return False
        self.datagram_size = SMALLEST_INITIAL
        # The core takes over a peer's limit at any time, and limits only ever grow or stay, but this one.
        self._guard(
            core.apply_peer_transport_parameters,
            parameters.initial_max_data or 0,
            parameters.initial_max_stream_data_bidi_local or 0,
            parameters.initial_max_stream_data_bidi_remote or 0,
            parameters.initial_max_stream_data_uni or 0,
            parameters.initial_max_streams_bidi or 0,
            parameters.initial_max_streams_uni or 0,
            3 if parameters.ack_delay_exponent is None else parameters.ack_delay_exponent,
            0.025 if parameters.max_ack_delay is None else parameters.max_ack_delay / 1000,
            None if not parameters.max_idle_timeout else parameters.max_idle_timeout / 1000,
            parameters.max_datagram_frame_size,
            None,
            parameters.active_connection_id_limit or 2,
            bool(parameters.disable_active_migration),
            SMALLEST_INITIAL,
        )
        return True

    # -- signs of life

    def ping(self, *, expect: bool = False) -> int:
        """Queue a PING, which is never repeated; where `expect`, `is_answered` tells its answer."""
        self._ping += 1
        core = self._connection._core
        if core is not None:
            if expect:
                self._pings[self._ping] = False
            self._guard(core.send_ping, self._ping)
        return self._ping

    def forget_pings(self) -> None:
        """Expect no answers any more."""
        self._pings.clear()

    def is_answered(self, ping: int) -> bool:
        """Whether the packet with this PING has arrived at the peer. True only once."""
        if not self._pings.get(ping):
            return False
        del self._pings[ping]
        return True

    # -- ending

    def close(self, code: int, reason: str = "") -> None:
        """CONNECTION_CLOSE, at once; what was not sent or not acknowledged is lost."""
        if not self.closed:
            self.closed = True
            self._guard(self._connection.close, code, None, reason)

    def fail(self, error: OSError) -> None:
        """The path broke, or time ran out: end without a word."""
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        if self.error is None:
            self.error = error

    def _check_may_send(self) -> None:
        if self.error is not None:
            raise self.error
        if self.ended:
            raise BrokenPipeError(errno.EPIPE, "the peer has closed the connection")

    def _guard(self, step: Callable[..., _T], *args: Any) -> _T | None:
        """Run a step of the core; what it raises ends the connection and goes no further."""
        try:
            return step(*args)
        except Exception as error:
            self._fail(_broken(f"QUIC failed: {error}", error))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the core's own language: a bug there
                raise
            self._fail(_broken("QUIC failed inside", error))
        return None

    # -- what the core tells

    def _has_room_for_events(self) -> bool:
        if self._held < RECEIVE_ROOM:
            return True
        # Behind data that nobody reads may stand the answer to a ping, and the end of everything. No more than the
        # window is there, but what is taken out for a ping lets more come.
        return not self._is_open or (bool(self._pings) and self._held < WINDOW)

    @property
    def _is_open(self) -> bool:
        core = self._connection._core
        return core is None or core.state in ("first_flight", "connected")

    def _on_stream_data(self, stream: int, data: bytes) -> None:
        if stream != STREAM:
            self._fail(_broken("the peer opened a second stream", None))
            self.close(ABORT, "one stream only")
        elif data:
            self._may_use_stream = True
            self._chunks.append(memoryview(data))
            self._held += len(data)

    def _on_datagram(self, data: bytes) -> None:
        if len(self._datagrams) == MOST_DATAGRAMS:
            self.dropped_datagrams += 1
        self._datagrams.append(data)

    def _on_ping_acknowledged(self, ping: int) -> None:
        if ping in self._pings:
            self._pings[ping] = True

    def _on_handshake_complete(self) -> None:
        if self._fingerprint is not None:
            certificate = self._connection.get_peercert()
            der = b"" if certificate is None else certificate.public_bytes()
            if not hmac.compare_digest(hashlib.sha256(der).digest(), self._fingerprint):
                # The driver closes after it has sent the handshake's last part, without which no close is understood.
                self._fail(IdentityMismatch("the peer showed another certificate than the one it announced"))
                return
        self.handshake_done = True

    def _on_peer_closed(self, application: bool, code: int, reason: str) -> None:
        if application and code == DONE:
            self.ended = True
        elif application and code == ABORT:
            self._fail(ConnectionResetError(errno.ECONNRESET, "the peer reset the connection"))
        else:
            self._fail(_broken(f"the peer ended QUIC with error {code:#x} {reason}".rstrip(), None))

    def _on_terminated(self, code: int, reason: str) -> None:
        if self.ended or self.closed:
            return
        if reason == "Idle timeout":
            self._fail(TimeoutError(errno.ETIMEDOUT, "nothing was heard from the peer any more"))
        else:
            self._fail(ConnectionResetError(errno.ECONNRESET, "the connection ended"))


class _Connection(QuicConnection):
    """qh3's connection, whose events go to the machine, and no faster than it has room."""

    machine: QuicMachine
    has_more = False

    def _drain_core(self) -> None:
        core, machine = self._require_core(), self.machine
        while True:
            if not machine._has_room_for_events():
                self.has_more = core.has_events
                return
            event = core.next_event()
            if event is None:
                self.has_more = False
                return
            kind = event[0]
            if kind == "stream_data":
                machine._on_stream_data(event[1], event[2])
            elif kind == "datagram":
                machine._on_datagram(event[1])
            elif kind == "crypto_data":
                self._on_crypto(event)
            elif kind == "ping_acknowledged":
                machine._on_ping_acknowledged(event[1])
            elif kind == "handshake_done":
                self._handshake_confirmed = True
                core.handshake_confirmed()
            elif kind == "peer_closed":
                machine._on_peer_closed(event[1], event[2], event[4].decode("utf8", "replace"))
            elif kind == "protocol_error":
                machine._fail(_broken(f"the peer broke QUIC: {event[3]}", None))
            elif kind == "connection_terminated":
                machine._on_terminated(event[1], event[3].decode("utf8", "replace"))
            elif kind in ("stream_reset", "stop_sending"):
                machine._fail(ConnectionResetError(errno.ECONNRESET, "the peer reset the stream"))
                machine.close(ABORT)

    def _on_crypto(self, event: tuple[Any, ...]) -> None:
        was_complete, core = self._handshake_complete, self._require_core()
        assert self._tls is not None
        try:
            self._tls.receive_crypto(tls.Epoch(event[1]), event[3], event[2], version=core.version)
            self._drain_tls()
        except QuicTlsBridgeError as error:
            core.close(error.error_code, int(error.frame_type), error.reason_phrase.encode())
            self.machine._fail(_broken(f"TLS failed: {error.reason_phrase}", error))
            return
        self._events.clear()
        if self._handshake_complete and not was_complete:
            self.machine._on_handshake_complete()


def _configuration(
    is_client: bool, datagram_size: int, idle_timeout: float, initial_rtt: float
) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=idle_timeout * HASTE,
        initial_rtt=initial_rtt * HASTE,
        max_data=WINDOW,
        max_stream_data=WINDOW,
        max_datagram_frame_size=65535,
        max_datagram_size=datagram_size,
        probe_datagram_size=True,
        supported_versions=[VERSION],
    )


def _broken(text: str, cause: BaseException | None) -> OSError:
    error = ConnectionAbortedError(errno.ECONNABORTED, text)
    error.__cause__ = cause
    return error
