"""What is sent, and when: the application's bytes go to the core as the congestion control lets them.

The core sends all that it has; so it gets no more than may leave at once. What got lost it sends again of itself,
before anything new, and in the same budget. Acknowledgements and probes need no budget.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ntcpsock._session.quic.bbr import Bbr
from ntcpsock._session.quic.core_clock import CoreClock
from ntcpsock._session.quic.core_window import LATER, CoreWindow
from ntcpsock._session.quic.datagram_queues import DatagramQueues
from ntcpsock._session.quic.delivery_rate import DeliveryRate
from ntcpsock._session.quic.established import CLIENTS_STREAM
from ntcpsock._session.quic.pacer import Pacer
from ntcpsock._session.quic.size_check import SizeCheck

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

# Bytes of a packet that the core does not fill with those of a stream.
STREAM_OVERHEAD: Final = 64
# Packets that leave without a budget after something was received or fell due: an acknowledgement, two probes.
FREE: Final = 2
# Packets in a row that ask for no acknowledgement. The core keeps each until it is acknowledged all the same, with a
# later one that does ask: RFC 9000 section 13.2.4.
MOST_UNASKED: Final = 16
_ANY_PING: Final = 0  # nobody waits for its answer
# Seconds, besides some round trips, after which a larger datagram has arrived or got lost.
PROBE_TIME: Final = 0.5
# Seconds; no round trip is shorter for the core.
GRANULARITY: Final = 0.001


class Sending:
    """control: None until `start`; until then the core sends what it has, for the handshake is small. stream: of the
    application's bytes; frozen: whether the core gets nothing of the application at the moment."""

    def __init__(self, datagrams: DatagramQueues, stream: int = CLIENTS_STREAM) -> None:
        self.stream = stream
        self.frozen = False
        self.clock = CoreClock()
        self.window = CoreWindow()
        self.size_check = SizeCheck()
        self.control: Bbr | None = None
        self.closing = False  # whether only the last word is to be said
        self.is_probing = False  # whether a datagram larger than all before has been sent
        self.backlog = 0  # bytes of the stream that the core has not got yet
        self._datagrams = datagrams
        # None while empty, as nearly always: an empty deque takes 600 bytes.
        self._chunks: deque[memoryview] | None = None
        self._measure: DeliveryRate
        self._pacer: Pacer
        self._free = 0
        self._losses = 0
        self._unasked = 0
        self._heard_at = -math.inf
        self._probed_at = -math.inf
        self._round_trip = 0.0
        self._core_paced_until = -math.inf  # by its clock
        self._more = False  # whether the core may have something that waits for a budget
        self._blocked = False  # whether the peer has given no credit for more of the stream
        self._silent = False  # whether anything waits for the end of the silence behind the window's PINGs
        self._paced = False  # whether something waits for the pacer, and for nothing else

    def start(self, core: QuicConnectionCore, now: float, datagram_size: int, round_trip: float) -> None:
        """The handshake is done; round_trip: seconds, as it has told."""
        self._losses = core.loss_total
        self.window.start(now, round_trip)
        self._measure = DeliveryRate(now, core.bytes_in_flight)
        self.control = Bbr(now, datagram_size, round_trip, id(self))
        self._pacer = Pacer(now, self.control.pacing_rate, datagram_size)
        self._round_trip = round_trip

    def succeeded(self, stream: int) -> Sending:
        """What sends in another core's time: it gets all that this one's core has not got."""
        successor = Sending(self._datagrams, stream)
        successor._chunks, successor.backlog = self._chunks, self.backlog
        return successor

    def set_datagram_size(self, size: int) -> None:
        """So many bytes are in a full packet from now on."""
        if self.control is not None and self.control.datagram_size != size:
            self.control.datagram_size = self._pacer.datagram_size = size

    def write(self, data: bytes | memoryview) -> None:
        """Take `data` for the stream; the caller sees to the room."""
        if self._chunks is None:
            self._chunks = deque()
        self._chunks.append(memoryview(bytes(data)))
        self.backlog += len(data)

    @property
    def has_more(self) -> bool:
        """Whether the core may hold something that waits for a budget."""
        return self._more

    @property
    def has_waiting(self) -> bool:
        """Whether anything of the application waits for the core, and may go there."""
        return not self.frozen and (bool(self._chunks) or self._datagrams.has_outgoing)

    def hurry(self) -> None:
        """Something small has been given to the core that is not to wait for a budget."""
        self._free = FREE
        self.window.silent_until = -math.inf

    # -- what has come in

    def received(self, core: QuicConnectionCore, now: float, in_flight_before: int) -> None:
        """After the core has got datagrams."""
        if self.closing:
            return
        self._free = FREE
        self._heard_at = now
        if core.bytes_in_flight < in_flight_before:
            self.clock.acknowledged(now)
            self._feed_back(core, now)

    def release_window(self, core: QuicConnectionCore, now: float) -> None:
        """After the core has got one datagram, where `window.waits`."""
        self.window.release(core, may=self._is_size_settled(now))

    def _is_size_settled(self, now: float) -> bool:
        """Whether no larger datagram is being tried."""
        return now > self._probed_at + PROBE_TIME + 4 * self._round_trip

    def timer_fired(self, core: QuicConnectionCore, now: float) -> None:
        if self.closing:
            return
        self._free = FREE
        self._feed_back(core, now)

    def _feed_back(self, core: QuicConnectionCore, now: float) -> None:
        control = self.control
        if control is None:
            return
        losses, in_flight = core.loss_total, core.bytes_in_flight
        lost, self._losses = (losses - self._losses) * control.datagram_size, losses
        sample = self._measure.feedback(now, in_flight, lost)
        if not sample.acked and not sample.lost:
            return
        self._more = self._more or sample.lost > 0
        if sample.round_trip is not None:
            # The core knows the packet that was acknowledged, but its clock may have stood still.
            round_trip, known = sample.round_trip, core.latest_rtt or 0.0
            if known > max(GRANULARITY, round_trip):
                round_trip = known
                sample = replace(sample, round_trip=round_trip)
            self._round_trip += (round_trip - self._round_trip) / 8
        control.feedback(now, sample, in_flight, self._measure.delivered)
        self._pacer.set_rate(now, control.pacing_rate)
        control.quantum = self._pacer.quantum

    # -- what goes out

    def poll(self, core: QuicConnectionCore, now: float, most: int, datagram_size: int) -> list[bytes]:
        """What leaves now, at most so many datagrams. There may be more. Raises what the core raises."""
        if self.closing:
            datagrams: list[bytes] = []
            self._take(core, self.clock.time(now), most, datagrams)
            return datagrams
        self._silent = now < self.window.silent_until
        if self._silent:
            return []
        in_flight = core.bytes_in_flight
        time = self._time_of_sending(core, now, in_flight)
        self._hasten_acknowledgement(core, now, time)
        control = self.control
        datagrams = []
        if control is None:
            self._take(core, time, most, datagrams)
        else:
            pace = self._pacer.budget(now, self._paced)
            if self._paced and self._pacer.is_wasting:
                # Slow is the sender, which does not get its processor: that tells nothing of the path.
                self._measure.limited_by_application(in_flight)
            packets = min(most, min(pace, control.window - in_flight) // datagram_size)
            if packets < most and in_flight > control.window // 2 and packets < self._worth(control):
                packets = 0  # acknowledgements, which are on their way, or the pacer make it more
            if packets > 0:
                size = 0 if self.frozen else min(self._datagrams.next_size, datagram_size)
                is_checked = self.size_check.join(core, size, now, self._heard_at, self._round_trip)
                self._feed(core, packets, datagram_size)
                self._more = self._take(core, time, packets, datagrams)
                if is_checked and datagrams:
                    self.size_check.left(len(datagrams[0]))
                self._blocked = not self._more and core.get_send_buffer_size(self.stream) > 0
            if self._free and (packets <= 0 or not self._more):
                free, self._free = self._free, 0
                if packets <= 0:
                    self._more = self._take(core, time, min(free, most), datagrams) or self._more
            if any(len(datagram) > datagram_size for datagram in datagrams[-1:]):
                # Behind all that is to be sent, the core tries whether a larger one goes through.
                self.is_probing, self._probed_at = True, now
            if self._is_size_settled(now) and self.window.wants_pings(core, now) and len(datagrams) < most:
                ping = self.window.pings(core, now, time, self._round_trip)
                datagrams += () if ping is None else (ping,)
                time += (
                    2 * LATER
                )  # so late it is now, or an answer at this very moment would come before its question
        self._account(core, now, time, in_flight)
        self._ask_sometimes(core, len(datagrams), in_flight)
        return datagrams

    def _worth(self, control: Bbr) -> int:
        """Datagrams that are worth a system call while others are on their way."""
        return max(1, min(self._pacer.quantum, control.window // 8) // control.datagram_size)

    def _take(self, core: QuicConnectionCore, time: float, most: int, datagrams: list[bytes]) -> bool:
        """Get up to so many from the core; whether it may have more."""
        poll = core.poll_transmit
        for _ in range(most):
            transmit = poll(time)
            if transmit is None:
                return False
            datagrams.append(transmit[0])
        return True

    def _time_of_sending(self, core: QuicConnectionCore, now: float, in_flight: int) -> float:
        """What time the core is told. Its own pacer may wait for a time to which its clock does not come while nothing
        is sent: then nothing ever would be, and the timer always due."""
        self.note_pacing(core.get_timer())
        time = self.clock.time_of_sending(now, in_flight, self._round_trip)
        return max(time, min(self._core_paced_until, self.clock.time(now)))

    def note_pacing(self, timer: tuple[str, float] | None) -> None:
        """Before the core's `timer` is handled, with which its pacer forgets what it has waited for."""
        if timer is not None and timer[0] == "pacing":
            self._core_paced_until = timer[1]

    def _hasten_acknowledgement(self, core: QuicConnectionCore, now: float, time: float) -> None:
        """What waits to be acknowledged goes along with data; and it does not wait for a clock that stands still."""
        timer = core.get_timer()
        if timer is not None and timer[0] == "ack_application":
            is_due = time < timer[1] <= self.clock.time(now)
            if is_due or self.backlog or self._datagrams.has_outgoing:
                core.handle_timer(timer[1])

    def _ask_sometimes(self, core: QuicConnectionCore, packets: int, in_flight_before: int) -> None:
        """One who only hears, and acknowledges, has something acknowledged now and then."""
        if core.bytes_in_flight > in_flight_before:
            self._unasked = 0
        elif packets and self.control is not None:
            self._unasked += packets
            if self._unasked >= MOST_UNASKED:
                self._unasked = 0
                core.send_ping(_ANY_PING)  # it goes with the next acknowledgement

    def _account(self, core: QuicConnectionCore, now: float, time: float, in_flight_before: int) -> None:
        in_flight = core.bytes_in_flight
        sent = in_flight - in_flight_before
        if sent > 0:
            self.clock.sent(now, time, in_flight_before)
        control = self.control
        if control is None:
            return
        if sent > 0:
            self._pacer.spend(sent)
            if not in_flight_before:
                control.restart(now)
            self._measure.sent(now, sent, in_flight)
        has_room = control.window - in_flight >= control.datagram_size
        has_work = self._more or self.has_waiting
        self._paced = (
            has_room and has_work and self._pacer.budget(now) < self._worth(control) * control.datagram_size
        )
        if has_room and (self._blocked or not has_work):
            # Flow control is the peer's application.
            self._measure.limited_by_application(in_flight)

    def _feed(self, core: QuicConnectionCore, packets: int, datagram_size: int) -> None:
        """Give the core enough for so many packets."""
        if self.frozen:
            return
        used = 0
        if self._datagrams.has_outgoing:
            used = self._datagrams.let_go(core, datagram_size, packets)
        chunks = self._chunks
        if not chunks:
            return
        room = (packets - used) * (datagram_size - STREAM_OVERHEAD) - core.get_send_buffer_size(self.stream)
        while room > 0 and chunks:
            chunk = chunks[0]
            if len(chunk) <= room:
                chunks.popleft()
            else:
                chunks[0] = chunk[room:]
                chunk = chunk[:room]
            core.send_stream(self.stream, chunk)
            self.backlog -= len(chunk)
            room -= len(chunk)
        if not chunks:
            self._chunks = None

    def next_time(self) -> float | None:
        """When silence is over or the pacer lets more go, None where nothing waits for it."""
        if self._silent:
            return self.window.silent_until
        return self._pacer.ready_at() if self._paced else None
