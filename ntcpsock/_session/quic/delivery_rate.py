"""How fast bytes arrive at the peer, measured at the sender: draft-cheng-iccrg-delivery-rate-estimation.

It counts bytes, not packets: what was sent and is no longer in flight has either arrived or got lost, and packets are
taken to do so in the order of their sending. Where they do not, a sample is off by what was out of order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class _Burst:
    """What was sent at one moment, and how things stood then."""

    end: int  # bytes sent up to and with this burst
    sent_at: float
    first_sent_at: float
    delivered: int
    delivered_at: float
    lost: int
    in_flight: int
    application_limited: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """What one feedback tells. Bytes, seconds, bytes a second.

    acked, lost: since the feedback before. round_trip: of the newest burst that has arrived, None where none has.
    rate: the delivery rate over the life of that burst, 0.0 where none can be told; interval: what it was measured
    over. burst_in_flight: what was in flight when it had been sent; burst_lost: what got lost since. prior_delivered:
    what had been delivered when it was sent.
    """

    acked: int
    lost: int
    round_trip: float | None = None
    rate: float = 0.0
    interval: float = 0.0
    burst_in_flight: int = 0
    burst_lost: int = 0
    prior_delivered: int = -1
    application_limited: bool = False


class DeliveryRate:
    """delivered, lost: bytes so far. in_flight: bytes on their way at the start."""

    def __init__(self, now: float, in_flight: int = 0) -> None:
        self.delivered = 0
        self.lost = 0
        self._sent = in_flight
        self._delivered_at = now
        self._first_sent_at = now
        self._limited_until = 0  # rates are the application's until so much is delivered
        # None while nothing is on its way: an empty deque takes 600 bytes.
        self._bursts: deque[_Burst] | None = None

    @property
    def resolved(self) -> int:
        """Bytes that have arrived or got lost."""
        return self.delivered + self.lost

    def limited_by_application(self, in_flight: int) -> None:
        """There was room to send, and nothing to be sent."""
        self._limited_until = max(1, self.delivered + in_flight)

    def sent(self, now: float, size: int, in_flight: int) -> None:
        """`size` bytes have gone; in_flight: with them."""
        if in_flight <= size:
            self._first_sent_at = self._delivered_at = now
        self._sent += size
        if self._bursts is None:
            self._bursts = deque()
        self._bursts.append(
            _Burst(
                self._sent,
                now,
                self._first_sent_at,
                self.delivered,
                self._delivered_at,
                self.lost,
                in_flight,
                self._limited_until > 0,
            )
        )

    def feedback(self, now: float, in_flight: int, lost: int) -> Sample:
        """Something has come in; in_flight: bytes still on their way; lost: those that got lost since, at most."""
        newly_resolved = max(0, self._sent - in_flight - self.resolved)
        lost = min(lost, newly_resolved)
        acked = newly_resolved - lost
        self.lost += lost
        if not acked:
            return Sample(0, lost)
        self.delivered += acked
        self._delivered_at = now
        if self.delivered > self._limited_until:
            self._limited_until = 0
        newest, bursts = None, self._bursts
        while bursts and bursts[0].end <= self.resolved:
            newest = bursts.popleft()
        if not bursts:
            self._bursts = None
        if newest is None:
            return Sample(acked, lost)
        self._first_sent_at = newest.sent_at
        sending, arriving = newest.sent_at - newest.first_sent_at, now - newest.delivered_at
        delivered, interval = self.delivered - newest.delivered, max(sending, arriving)
        return Sample(
            acked,
            lost,
            now - newest.sent_at,
            delivered / interval if interval > 0 else 0.0,
            interval,
            newest.in_flight,
            self.lost - newest.lost,
            newest.delivered,
            newest.application_limited,
        )
