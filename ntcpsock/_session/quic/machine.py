"""One QUIC connection with one bidirectional stream, as a pure machine: datagrams and `now` in, datagrams out.

It wraps qh3's connection core, which has no I/O of its own. Two things are ours. What has arrived is taken out
of the core only as far as the reader has room (`RECEIVE_ROOM`): the core gives credit for what is taken out,
so a reader that does not read stops the sender, and the memory held is bounded by the window. And the core
knows one remote address only, a constant: which way datagrams really travel is the driver's business.

With `configuration`, `connection`, `established`, `generations` and `datagram_queues` this is all of ntcpsock that
touches qh3, and it uses parts that qh3 does not promise to keep.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ntcpsock._errors import IdentityMismatch
from ntcpsock._session.quic.configuration import (
    ABORT,
    DONE,
    SMALLEST_INITIAL,
    WINDOW,
    ServerIdentity,
    configuration,
)
from ntcpsock._session.quic.connection import LARGEST_PROBED, Connection
from ntcpsock._session.quic.datagram_queues import DATAGRAM_OVERHEAD, DatagramQueues
from ntcpsock._session.quic.dormancy import WORD_LENGTH, Dormancy
from ntcpsock._session.quic.established import Established
from ntcpsock._session.quic.failure import broken
from ntcpsock._session.quic.pings import Pings
from ntcpsock._session.quic.received import ReceivedBytes
from ntcpsock._session.quic.resequencing import LARGE, PacketNumbers, Resequencer
from ntcpsock._session.quic.sending import Sending

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore


# Bytes of the window that the core has handed out; the others stay with the core.
RECEIVE_ROOM: Final = 512 * 1024
# Bytes taken from the sender that have not been sent for the first time.
SEND_ROOM: Final = 512 * 1024

_ADDRESSES: Final[dict[bool, tuple[str, int]]] = {False: ("192.0.2.1", 1), True: ("2001:db8::1", 1)}

_T = TypeVar("_T")


def warm_up() -> None:
    """Make a first packet for nobody: with the first key of a process the library seeds its random numbers, which takes
    30 ms of computing."""
    QuicMachine.client(bytes(32), 0.0, datagram_size=SMALLEST_INITIAL, idle_timeout=1.0, initial_rtt=1.0)


class QuicMachine:
    """Made by `client` or `server`. After each call that changes something, `datagrams_to_send`.

    handshake_done: whether both ends have finished TLS and, at the client, the certificate is the pinned one;
    error: why the connection ended, or None; ended: whether the peer closed it in order (DONE).
    """

    def __init__(
        self,
        connection: Connection,
        is_ipv6: bool,
        fingerprint: bytes | None,
        now: float,
        idle_timeout: float,
        initial_rtt: float,
    ) -> None:
        self.handshake_done = False
        self.error: OSError | None = None
        self.ended = False
        self.closed = False  # by us
        self.datagram_size = connection.configuration.max_datagram_size
        self._address = _ADDRESSES[is_ipv6]
        self._fingerprint = fingerprint
        self._connection: Connection | Established = connection
        connection.listener = self
        self._received = ReceivedBytes()
        self._datagrams = DatagramQueues()
        self._sending = Sending(self._datagrams)
        self._header_key: bytes | None = None
        self._resequencer: Resequencer | None = None  # as soon as there is an order
        self._dormancy: Dormancy | None = None  # after the handshake
        self._now = self._heard_at = now
        self._idle_timeout = idle_timeout
        self._has_timed_out = False
        self._announces_size = fingerprint is not None and self.datagram_size <= SMALLEST_INITIAL
        self._initial_rtt = initial_rtt
        self._pings = Pings()
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
        settings = configuration(True, datagram_size, initial_rtt)
        settings.verify_mode = 0  # ssl.CERT_NONE: the fingerprint is the check
        connection = Connection(configuration=settings)
        machine = cls(connection, is_ipv6, fingerprint, now, idle_timeout, initial_rtt)
        machine._guard(connection.connect, machine._address, now)
        return machine

    @classmethod
    def server(
        cls,
        identity: ServerIdentity,
        destination: bytes,
        now: float,
        *,
        datagram_size: int,
        idle_timeout: float,
        initial_rtt: float,
        is_ipv6: bool = False,
    ) -> QuicMachine:
        """The listener's end. destination: what `parse_initial` said of the client's first datagram."""
        settings = configuration(False, datagram_size, initial_rtt)
        settings.certificate = identity.certificate
        settings.private_key = identity.private_key
        connection = Connection(configuration=settings, original_destination_connection_id=destination)
        return cls(connection, is_ipv6, None, now, idle_timeout, initial_rtt)

    # -- datagrams of the path

    def receive_in_order(self, buffer: bytes, size: int, now: float) -> int:
        """As `receive`, for the datagrams of a path that may deliver them out of order; what is held until others have
        come is counted then."""
        if self._resequencer is None:
            if size < LARGE or self._header_key is None:
                return self.receive(buffer, size, now)
            self._resequencer = Resequencer(PacketNumbers(self._header_key, self.host_id))
        batches = self._resequencer.take(buffer, size, now)
        return sum(self.receive(data, length, now) for data, length in batches)

    def receive(self, buffer: bytes, size: int, now: float) -> int:
        """Datagrams of the path, each of `size` bytes, the last one perhaps shorter. How many packets in them were
        the peer's and new (counted after the handshake). Whatever they are: it raises nothing."""
        dormancy = self._dormancy
        if dormancy is not None and (dormancy.listens or len(buffer) == WORD_LENGTH):
            return sum(
                self._receive_one(dormancy, buffer[start : start + size], now)
                for start in range(0, len(buffer), size)
            )
        return self._receive_with_core(buffer, size, now)

    def _receive_with_core(self, buffer: bytes, size: int, now: float) -> int:
        core, time = self._connection.core, self._sending.clock.time(now)
        self._now, accepted = now, 1
        in_flight = 0 if core is None else core.bytes_in_flight
        if self.handshake_done and core is not None:
            accepted, waits = 0, self._sending.window.waits
            step = size if waits else max(1, len(buffer))
            for start in range(0, len(buffer), step):
                report = self._guard(
                    core.receive_gro_buffer, buffer[start : start + step], size, self._address, time
                )
                self._guard(self._connection.drain)
                accepted += report[2] if report is not None else 0
                if waits:
                    self._guard(self._sending.release_window, core, now)
        else:
            for start in range(0, len(buffer), size):
                self._guard(
                    self._connection.receive_datagram, buffer[start : start + size], self._address, time
                )
        core = self._connection.core  # there may be none any more
        if accepted:
            self._heard_at = now
        if accepted and core is not None:
            self._guard(self._sending.received, core, now, in_flight)
            if self._sending.is_probing:
                self._learn_datagram_size(core)
        return accepted

    def _learn_datagram_size(self, core: QuicConnectionCore) -> None:
        size = core.active_path[5]
        if size > self.datagram_size:
            self._sending.is_probing = False
            self.datagram_size = size
            self._sending.set_datagram_size(size)

    def datagrams_to_send(self, now: float, most: int) -> list[bytes]:
        """What is to be sent now, at most so many datagrams. There may be more."""
        dormancy, words = self._dormancy, []
        if dormancy is not None and (dormancy.to_say or dormancy.may_wake):
            if dormancy.may_wake and self._has_to_speak(dormancy):
                new_core = self._make_core(dormancy, now)
                if new_core is not None:
                    self._wake(dormancy, new_core, now)
            words = dormancy.words()
        core = self._connection.core
        if core is None:
            return words
        # What the core has got already it cannot make smaller.
        if self._sending.size_check.is_failed and not self._sending.has_more:
            self.lower_datagram_size()
        try:
            datagrams = self._sending.poll(core, now, most, self.datagram_size)
        except (RuntimeError, ValueError) as error:
            self.fail(broken(f"QUIC failed: {error}", error))
            return []
        if self._announces_size and datagrams:
            # A copy of the first one, with rubbish behind it: where it arrives, the server may send as large ones. Only
            # a client's core tries itself how large they may be.
            self._announces_size = False
            datagrams.insert(0, datagrams[0].ljust(LARGEST_PROBED, b"\0"))
        return datagrams + words if words else datagrams

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called; None for never."""
        core = self._connection.core
        if core is None:
            return None if self.is_over else self._heard_at + self._idle_timeout
        timer = core.get_timer()
        deadline = math.inf if timer is None else self._sending.clock.our_time(timer[1])
        paced = self._sending.next_time()
        if paced is not None:
            deadline = min(deadline, paced)
        held = None if self._resequencer is None else self._resequencer.due_at()
        if held is not None:
            deadline = min(deadline, held)
        if not self.is_over:
            deadline = min(deadline, self._heard_at + self._idle_timeout)
            look = None if self._dormancy is None or self.closed else self._dormancy.due_at()
            if look is not None:
                deadline = min(deadline, look)
        return None if deadline == math.inf else deadline

    def handle_timer(self, now: float) -> None:
        """May be called early."""
        if self._resequencer is not None:
            for data, size in self._resequencer.release(now):
                self.receive(data, size, now)
        core = self._connection.core
        if core is not None:
            time = self._sending.clock.time(now)
            timer = core.get_timer()
            if timer is not None and timer[1] <= time:
                self._sending.note_pacing(timer)
                self._guard(core.handle_timer, time)
                self._guard(self._connection.drain)
                self._guard(self._sending.timer_fired, core, now)
            if self._dormancy is not None and not self.is_over:
                self._dormancy.look(now, self.round_trip or self._initial_rtt, self._quiet)
                self._sending.frozen = self._dormancy.state == "asking"
        if now >= self._heard_at + self._idle_timeout and not self.is_over:
            # RFC 9000 section 10.1: without a word.
            if not (self.ended or self.closed):
                self.fail(TimeoutError(errno.ETIMEDOUT, "nothing was heard from the peer any more"))
            self._has_timed_out = True

    @property
    def is_over(self) -> bool:
        """Whether nothing of this connection is to be sent any more, not even an answer."""
        core = self._connection.core
        if self._has_timed_out or core is None:
            return self._has_timed_out or not self.is_dormant
        return core.state in ("terminated", "draining")

    @property
    def timeouts(self) -> int:
        """Probe time-outs since the peer was last heard of (RFC 9002 section 6.2)."""
        core = self._connection.core
        return 0 if core is None else core.pto_count

    @property
    def round_trip(self) -> float | None:
        """The smoothed round-trip time in seconds, None before the first one."""
        core = self._connection.core
        known = None if core is None else core.smoothed_rtt
        return self._dormancy.round_trip if known is None and self._dormancy is not None else known

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
        if not self._may_use_stream:
            return 0
        room = SEND_ROOM - self._waiting_bytes
        if room <= 0:
            return 0
        part = data if len(data) <= room else memoryview(data)[:room]
        if not self._stream_open:
            self._stream_open = True
            self._guard(self._connection.open_stream, self._sending.stream)
        self._sending.write(part)
        self._use()
        if self.error is not None:
            raise self.error
        return len(part)

    @property
    def has_room(self) -> bool:
        """Whether `send` would take something worth a call, or raise."""
        if self.error is not None or self.ended:
            return True
        return self._may_use_stream and self._waiting_bytes <= SEND_ROOM // 2

    @property
    def _waiting_bytes(self) -> int:
        """Bytes of the stream that have not been sent for the first time."""
        core = self._connection.core
        return self._sending.backlog + (
            0 if core is None else int(core.get_send_buffer_size(self._sending.stream))
        )

    def unacknowledged(self) -> int:
        """Bytes that have not reached the peer for sure, packets' overhead included."""
        if self.is_over:
            return 0
        core = self._connection.core
        return self._waiting_bytes + (0 if core is None else int(core.bytes_in_flight))

    def receive_into(self, buffer: memoryview) -> int:
        """Fill the front of `buffer` with what has arrived of the stream: how many bytes.

        Where it gives 0: `error` or `ended` say whether anything may come yet.
        """
        filled = self._received.read_into(buffer)
        if filled and self._connection.has_more:
            self._wants_to_speak = True
            self._guard(self._connection.drain)
        return filled

    @property
    def wants_to_speak(self) -> bool:
        """Whether reading has made room that the peer is to be told of."""
        wants, self._wants_to_speak = self._wants_to_speak, False
        return wants

    @property
    def readable(self) -> int:
        """Bytes that `receive_into` would give at once."""
        return self._received.held

    # -- datagrams of the application (RFC 9221)

    @property
    def max_datagram_payload(self) -> int:
        """The most bytes of a datagram that fit into one packet; it grows as the path turns out to carry more."""
        remote = self._connection.max_datagram_frame_size
        return max(0, min(self.datagram_size - DATAGRAM_OVERHEAD, remote - 3))

    def send_datagram(self, data: bytes) -> bool:
        """Send one datagram, unreliably; False where too much waits already. EMSGSIZE where it is too large."""
        self._check_may_send()
        if len(data) > self.max_datagram_payload:
            raise OSError(
                errno.EMSGSIZE, f"a datagram on this path carries {self.max_datagram_payload} bytes"
            )
        if not self.has_datagram_room:
            return False
        self._datagrams.send(data)
        self._use()
        return True

    @property
    def has_datagram_room(self) -> bool:
        """Whether `send_datagram` would take one, or raise."""
        return self._datagrams.has_room or self.error is not None or self.ended

    def take_datagrams(self) -> list[bytes]:
        """Those that have arrived, oldest first."""
        return self._datagrams.take()

    @property
    def has_datagrams(self) -> bool:
        return self._datagrams.has_received

    @property
    def dropped_datagrams(self) -> int:
        """Received ones that nobody fetched in time."""
        return self._datagrams.dropped

    def lower_datagram_size(self) -> bool:
        """Send no more than 1200 bytes at once from now on: larger datagrams seem to get lost. Whether that is new."""
        if not self._connection.has_limits or self.datagram_size <= SMALLEST_INITIAL:
            return False
        self.datagram_size = SMALLEST_INITIAL
        self._guard(self._connection.limit_datagrams, SMALLEST_INITIAL)
        self._sending.set_datagram_size(SMALLEST_INITIAL)
        return True

    # -- signs of life

    def ping(self, *, expect: bool = False) -> int:
        """Queue a PING, which is never repeated; where `expect`, `is_answered` tells its answer. The peer answers it in
        any case, so that it wakes a dormant connection."""
        ping, core = self._pings.new(expect=expect), self._connection.core
        if self._dormancy is not None and self._dormancy.may_wake:
            self._pings.waits = True
        elif core is not None:
            self._guard(core.send_ping, ping)
            self._sending.hurry()
        return ping

    def say_alive(self) -> None:
        """Queue a sign of life, which needs no answer."""
        if self._dormancy is not None and self.is_dormant:
            self._dormancy.say_alive()
        else:
            self.ping()

    def forget_pings(self) -> None:
        """Expect no answers any more."""
        self._pings.forget()

    def is_answered(self, ping: int) -> bool:
        """Whether the packet with this PING has arrived at the peer. True only once."""
        return self._pings.take_answer(ping)

    # -- ending

    def close(self, code: int, reason: str = "") -> None:
        """CONNECTION_CLOSE, at once; what was not sent or not acknowledged is lost."""
        if self.closed:
            return
        self.closed = True
        if self._dormancy is not None and self._dormancy.may_wake:
            self._dormancy.last_word = (code, reason)
        else:
            self._dormancy = None
            self._sending.closing = True
            self._guard(self._connection.end, code, reason)

    def fail(self, error: OSError) -> None:
        """The path broke, time ran out, the peer went wrong: end without a word."""
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
            self.fail(broken(f"QUIC failed: {error}", error))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the core's own language: a bug there
                raise
            self.fail(broken("QUIC failed inside", error))
        return None

    # -- without a core: see `dormancy`

    @property
    def is_dormant(self) -> bool:
        """Whether there is no core, for nothing is said."""
        return self._dormancy is not None and self._dormancy.state == "dormant"

    def _use(self) -> None:
        if self._dormancy is not None:
            self._dormancy.used = True

    def _quiet(self) -> bool | None:
        """Whether nothing is on its way, nor waits to be; None where only acknowledgements are missing."""
        core = self._connection.core
        if core is None or self.is_over or self.closed or self.ended or self.error is not None:
            return False
        if self._waiting_bytes or self._datagrams.has_outgoing or self._connection.has_more:
            return False
        return None if core.bytes_in_flight or self._sending.has_more else True

    def _receive_one(self, dormancy: Dormancy, datagram: bytes, now: float) -> int:
        """As `receive`, where it may be a word, or a packet of the next core."""
        word = dormancy.read(datagram)
        if word is not None:
            was_new = dormancy.hear(word, self._quiet)
            if self.is_dormant:
                self._give_up(dormancy)
            self._sending.frozen = dormancy.state == "asking"
            if was_new:
                self._heard_at = now
            return int(was_new)
        packet = dormancy.packet(datagram) if dormancy.listens else "last"
        if packet == "next":
            return self._wake_by(dormancy, datagram, now)
        if not self.is_dormant:
            return self._receive_with_core(datagram, len(datagram), now)
        if packet == "last":
            dormancy.say_alive()  # the other one has not heard it yet
        return 0

    def _give_up(self, dormancy: Dormancy) -> None:
        """Be rid of the core, if there still is one."""
        connection = self._connection
        assert isinstance(connection, Established)
        if connection.core is None:
            return
        dormancy.round_trip = self.round_trip
        self._guard(connection.give_up)
        self._sending = self._sending.succeeded(connection.next_stream)
        self._resequencer = self._header_key = None
        self._stream_open = True  # of the next core, as soon as there is one

    def _has_to_speak(self, dormancy: Dormancy) -> bool:
        """Whether anything waits for a core."""
        waits = self._waiting_bytes or self._datagrams.has_outgoing or self._pings.waits
        return bool(waits) or dormancy.last_word is not None

    def _make_core(self, dormancy: Dormancy, now: float) -> QuicConnectionCore | None:
        connection = self._connection
        assert isinstance(connection, Established)
        return self._guard(
            lambda: dormancy.secrets.make_core(
                dormancy.is_client,
                self._address,
                now,
                datagram_size=self.datagram_size,
                round_trip=self.round_trip or self._initial_rtt,
                limits=connection.limits,
            )
        )

    def _wake_by(self, dormancy: Dormancy, datagram: bytes, now: float) -> int:
        """A datagram that looks like one of the next core's: 1 where it is, and was taken."""
        core = self._make_core(dormancy, now)
        report = core and self._guard(core.receive_gro_buffer, datagram, len(datagram), self._address, now)
        if core is None or not report or not report[2]:
            return 0
        self._wake(dormancy, core, now)
        self._heard_at = now
        self._guard(self._connection.drain)
        return 1

    def _wake(self, dormancy: Dormancy, core: QuicConnectionCore, now: float) -> None:
        """Go on with the next core."""
        self._give_up(dormancy)
        connection = self._connection
        assert isinstance(connection, Established)
        connection.take_up(core, dormancy.next_host_id)
        self._header_key = dormancy.secrets.header_key
        dormancy.wake(now)
        self._sending.start(core, now, self.datagram_size, self.round_trip or self._initial_rtt)
        self._guard(connection.open_stream, self._sending.stream)
        if self._pings.waits:
            self._pings.waits = False
            self._guard(core.send_ping, self._pings.last)
            self._sending.hurry()
        if dormancy.last_word is not None:
            self._dormancy = None
            self._sending.closing = True
            self._guard(connection.end, *dormancy.last_word)

    # -- what the core tells

    def has_room_for_events(self) -> bool:
        if self._received.held < RECEIVE_ROOM:
            return True
        # Behind data that nobody reads may stand the answer to a ping, and the end of everything. No more than the
        # window is there, but what is taken out for a ping lets more come.
        return not self._is_open or (self._pings.are_expected and self._received.held < WINDOW)

    @property
    def _is_open(self) -> bool:
        core = self._connection.core
        return core is None or core.state in ("first_flight", "connected")

    def on_stream_data(self, stream: int, data: bytes) -> None:
        if stream == self._connection.peers_stream:
            if data:
                self._may_use_stream = True
                self._received.append(data)
                self._use()
        else:
            self.fail(broken("the peer opened another stream", None))
            self.close(ABORT, "one stream only")

    def on_datagram(self, data: bytes) -> None:
        self._datagrams.receive(data)
        self._use()

    def on_ping_acknowledged(self, ping: int) -> None:
        self._sending.window.on_ping_acknowledged(ping)
        self._sending.size_check.answered(ping)
        self._pings.acknowledged(ping)

    def on_handshake_complete(self) -> None:
        connection = self._connection
        assert isinstance(connection, Connection)
        if self._fingerprint is not None:
            certificate = connection.get_peercert()
            der = b"" if certificate is None else certificate.public_bytes()
            if not hmac.compare_digest(hashlib.sha256(der).digest(), self._fingerprint):
                # The driver closes after it has sent the handshake's last part, without which no close is understood.
                self.fail(IdentityMismatch("the peer showed another certificate than the one it announced"))
                return
        self.handshake_done = True
        self._header_key = connection.header_key
        self._dormancy = Dormancy(self._fingerprint is not None, connection.secrets, self.host_id, self._now)
        self._connection = connection.establish()
        assert self._connection.core is not None
        core = self._connection.core
        self._sending.start(core, self._now, self.datagram_size, core.smoothed_rtt or self._initial_rtt)

    def on_peer_closed(self, application: bool, code: int, reason: str) -> None:
        if application and code == DONE:
            self.ended = True
        elif application and code == ABORT:
            self.fail(ConnectionResetError(errno.ECONNRESET, "the peer reset the connection"))
        else:
            self.fail(broken(f"the peer ended QUIC with error {code:#x} {reason}".rstrip(), None))

    def on_terminated(self, code: int, reason: str) -> None:
        if not (self.ended or self.closed):
            self.fail(ConnectionResetError(errno.ECONNRESET, "the connection ended"))
