"""Congestion control by a model of the path, BBR version 3: draft-ietf-ccwg-bbr, whose sections are named here.

The model is the rate at which the path delivers, and its round trip without a queue; sending at that rate, with little
more than their product in flight, fills the path and no queue. Loss is a sign of too much only where more than 2 % of
a round gets lost. Two things are otherwise than in the draft: the short-term bounds react to no less than that either,
in two rounds one after the other, and losses are counted in bytes.
"""

from __future__ import annotations

import math
import random
from enum import Enum, auto
from typing import Final

from ntcpsock._session.quic.delivery_rate import Sample

# Section 2.4 and following, all as factors of a rate or of the product of rate and round trip.
STARTUP_PACING_GAIN: Final = 2.77
DRAIN_PACING_GAIN: Final = 0.5
WINDOW_GAIN: Final = 2.0
LOSS_TOLERANCE: Final = 0.02
BETA: Final = 0.7  # what is left after too much loss
HEADROOM: Final = 0.15  # left to others while cruising
MARGIN: Final = 0.01  # paced below the estimate, so that queues drain
MINIMUM_PACKETS: Final = 4
INITIAL_PACKETS: Final = 10
FULL_GROWTH: Final = 1.25  # a rate that grows less than this in
FULL_ROUNDS: Final = 3  # so many rounds is all that there is
STARTUP_LOSSES: Final = 6  # losses in a round, apart from each other, that end Startup
HEAVY_LOSS: Final = 0.05  # share of a round that must get lost for more than one reduction in a cycle
FEWEST_LOSSES: Final = 3  # datagrams that may get lost whatever their share is
MIN_ROUND_TRIP_LIFE: Final = 10.0  # seconds
PROBE_ROUND_TRIP_EVERY: Final = 5.0
PROBE_ROUND_TRIP_TIME: Final = 0.2
PROBE_ROUND_TRIP_GAIN: Final = 0.5
EXTRA_ACKED_ROUNDS: Final = 10
MOST_EXTRA_ACKED: Final = 0.1  # seconds of the rate
INHERITED: Final = -2  # lossy rounds on leaving a state that has tried more: what it sent still gets lost
QUANTA: Final = 3  # bursts that are in flight at least


class State(Enum):
    STARTUP = auto()
    DRAIN = auto()
    DOWN = auto()
    CRUISE = auto()
    REFILL = auto()
    UP = auto()
    PROBE_ROUND_TRIP = auto()


_PACING_GAIN: Final = {
    State.STARTUP: STARTUP_PACING_GAIN,
    State.DRAIN: DRAIN_PACING_GAIN,
    State.DOWN: 0.9,
    State.CRUISE: 1.0,
    State.REFILL: 1.0,
    State.UP: 1.25,
    State.PROBE_ROUND_TRIP: 1.0,
}
_PROBING: Final = frozenset({State.STARTUP, State.REFILL, State.UP})


class Bbr:
    """window: bytes that may be in flight; pacing_rate: bytes a second.

    round_trip: seconds, as far as known at the start; seed: of the random times at which more is tried.
    """

    __slots__ = (
        "_cycle_round",
        "_cycle_start",
        "_delivered",
        "_extra",
        "_extra_delivered",
        "_extra_round",
        "_extra_start",
        "_full_rate",
        "_full_rounds",
        "_idle_restart",
        "_is_full",
        "_judge_probe",
        "_lossy_rounds",
        "_min_round_trip_at",
        "_most_in_flight",
        "_prior_window",
        "_probe_acked",
        "_probe_done_at",
        "_probe_minimum",
        "_probe_minimum_at",
        "_probe_round_end",
        "_probe_rounds",
        "_probe_step",
        "_probe_stops",
        "_rates",
        "_round_acked",
        "_round_end",
        "_round_losses",
        "_round_lost",
        "_round_rate",
        "_round_start",
        "_rounds",
        "_seed",
        "_short_in_flight",
        "_short_rate",
        "_wait",
        "_was_full",
        "datagram_size",
        "min_round_trip",
        "pacing_rate",
        "quantum",
        "state",
        "window",
    )

    def __init__(self, now: float, datagram_size: int, round_trip: float, seed: int) -> None:
        self.datagram_size = datagram_size
        self.state = State.STARTUP
        self.window = INITIAL_PACKETS * datagram_size
        self.pacing_rate = STARTUP_PACING_GAIN * self.window / max(round_trip, 0.001)
        self.min_round_trip = math.inf
        self.quantum = 2 * datagram_size
        self._seed = seed
        self._delivered = 0
        # rounds
        self._round_end = 0
        self._rounds = 0
        self._round_start = False
        self._round_acked = self._round_lost = self._round_losses = 0
        self._round_rate = 0.0  # the fastest sample of this round
        # the rate
        self._rates = [0.0, 0.0]  # the fastest of the probing cycle before, and of this one
        self._full_rate = 0.0
        self._full_rounds = 0
        self._is_full = False  # there was no more when it was last tried
        self._was_full = False  # Startup is over
        # bounds
        self._most_in_flight = math.inf  # what the path carried without too much loss
        self._short_rate = math.inf
        self._short_in_flight = math.inf
        self._lossy_rounds = 0
        self._judge_probe = False
        self._probe_stops = False
        self._probe_step = math.inf
        self._probe_acked = 0
        self._probe_rounds = 0
        # cycles
        self._cycle_start = now
        self._cycle_round = 0
        self._wait = 0.0
        # round-trip time
        self._min_round_trip_at = now
        self._probe_minimum = math.inf
        self._probe_minimum_at = now
        self._probe_done_at: float | None = None
        self._probe_round_end = 0
        self._prior_window = 0
        self._idle_restart = False
        # aggregation of acknowledgements
        self._extra: tuple[float, float] = (0.0, 0.0)
        self._extra_round = 0
        self._extra_start = now
        self._extra_delivered = 0

    # -- what happens

    def restart(self, now: float) -> None:
        """Something is sent after nothing was in flight."""
        self._idle_restart = True
        self._extra_start, self._extra_delivered = now, 0

    def feedback(self, now: float, sample: Sample, in_flight: int, delivered: int) -> None:
        """Acknowledgements or losses; in_flight, delivered: bytes on their way now, and arrived so far."""
        self._delivered = delivered
        self._count_round(sample)
        self._learn_rate(sample)
        self._learn_extra(now, sample)
        self._react_to_loss(now, sample)
        self._find_full(sample)
        self._advance(now, sample, in_flight)
        self._learn_round_trip(now, sample, in_flight)
        if self._round_start:
            self._round_acked = self._round_lost = self._round_losses = 0
            self._round_rate = sample.rate
        if sample.acked:
            self._idle_restart = False
        self._set_pacing()
        self._set_window(sample, in_flight)

    # -- the model

    @property
    def rate(self) -> float:
        """Bytes a second that the path delivers."""
        return min(max(self._rates), self._short_rate)

    def _product(self, gain: float) -> float:
        """The bandwidth-delay product, times `gain`, in bytes."""
        if math.isinf(self.min_round_trip):
            return gain * INITIAL_PACKETS * self.datagram_size
        return gain * self.rate * self.min_round_trip

    def _count_round(self, sample: Sample) -> None:
        self._round_acked += sample.acked
        self._round_lost += sample.lost
        self._round_losses += sample.lost > 0
        self._round_rate = max(self._round_rate, sample.rate)
        self._round_start = sample.prior_delivered >= self._round_end
        if self._round_start:
            self._round_end = self._delivered
            self._rounds += 1
            self._probe_rounds += 1
            if self._probe_stops:
                # What was sent while probing is all acknowledged: section 5.3.3.6.
                self._probe_stops = self._judge_probe = False
                if not sample.application_limited and self._rates[1]:
                    self._rates = [self._rates[1], 0.0]

    def _learn_rate(self, sample: Sample) -> None:
        if sample.interval < min(self.min_round_trip, sample.round_trip or 0.0):
            return  # section 4.5.1: acknowledgements that came too close together
        if sample.rate and (not sample.application_limited or sample.rate >= max(self._rates)):
            self._rates[1] = max(self._rates[1], sample.rate)

    def _learn_extra(self, now: float, sample: Sample) -> None:
        """Acknowledgements come in lumps: how much more at once than the rate lets expect. Section 5.5.9."""
        if not sample.acked:
            return
        if self._round_start and self._rounds >= self._extra_round + EXTRA_ACKED_ROUNDS // 2:
            self._extra = (self._extra[1], 0.0)
            self._extra_round = self._rounds
        expected = self.rate * (now - self._extra_start)
        if self._extra_delivered <= expected:
            self._extra_start, self._extra_delivered, expected = now, 0, 0.0
        self._extra_delivered += sample.acked
        extra = min(self._extra_delivered - expected, self.window, self.rate * MOST_EXTRA_ACKED)
        self._extra = (self._extra[0], max(self._extra[1], extra))

    def _find_full(self, sample: Sample) -> None:
        """Whether the rate has stopped to grow. Section 5.3.1.2."""
        if not self._round_start or sample.application_limited or self._is_full:
            return
        if self._round_rate >= self._full_rate * FULL_GROWTH:
            self._reset_full(self._round_rate)
            return
        self._full_rounds += 1
        if self._full_rounds >= FULL_ROUNDS:
            self._is_full = self._was_full = True

    def _reset_full(self, rate: float = 0.0) -> None:
        self._full_rate, self._full_rounds, self._is_full = rate, 0, False

    # -- loss

    def _is_too_much(self, lost: int, of: int) -> bool:
        """Whether more is lost than the tolerance, and by more than two standard deviations of chance."""
        tolerated = LOSS_TOLERANCE * of / self.datagram_size
        most = max(FEWEST_LOSSES, tolerated + 2 * math.sqrt(tolerated))
        return lost > most * self.datagram_size

    def _react_to_loss(self, now: float, sample: Sample) -> None:
        if self._judge_probe and self._is_too_much(sample.burst_lost, sample.burst_in_flight):
            # Section 5.5.10.2: the probe has shown how much is too much.
            self._judge_probe = False
            if not sample.application_limited:
                target = min(self._product(WINDOW_GAIN), self.window)
                self._most_in_flight = max(sample.burst_in_flight, BETA * target)
            if self.state is State.UP:
                self._start_down(now)
        if not self._round_start:
            return
        if not self._is_too_much(self._round_lost, self._round_acked + self._round_lost):
            self._lossy_rounds = 0
            return
        self._lossy_rounds += 1
        if self.state is State.STARTUP:
            if self._round_losses >= STARTUP_LOSSES:
                self._is_full = self._was_full = True
                self._most_in_flight = max(self._product(1.0), self._round_acked)
        elif self.state not in _PROBING and self._lossy_rounds > 1:  # one may be chance
            self._reduce()

    def _reduce(self) -> None:
        """Section 5.5.10.3. Loss that does not end with the first reduction has another reason than our rate, unless it
        is heavy: without that, a path that loses 3 % whatever is sent would be left to others round by round."""
        if math.isinf(self._short_rate):
            self._short_rate, self._short_in_flight = max(self._rates), self.window
        elif self._round_lost <= HEAVY_LOSS * (self._round_acked + self._round_lost):
            return
        self._short_rate = max(self._round_rate, BETA * self._short_rate)
        self._short_in_flight = max(self._round_acked, BETA * self._short_in_flight)

    def _forget_short_bounds(self) -> None:
        self._short_rate = self._short_in_flight = math.inf

    # -- states

    def _advance(self, now: float, sample: Sample, in_flight: int) -> None:
        if self.state is State.STARTUP and self._was_full:
            self.state = State.DRAIN
            self._lossy_rounds = INHERITED
        if self.state is State.DRAIN and in_flight <= self._product(1.0):
            self._start_down(now)
        if self.state in (State.DOWN, State.CRUISE):
            if self._is_time_to_probe(now):
                self._start_refill()
            elif self.state is State.DOWN and in_flight <= min(self._product(1.0), self._room_for_others()):
                self.state = State.CRUISE
        elif self.state is State.REFILL and self._round_start:
            self._start_up(now)
        elif self.state is State.UP:
            self._raise_bound(sample, in_flight)
            if self.window >= self._most_in_flight and in_flight + 2 * self.quantum >= self.window:
                self._reset_full(sample.rate)  # held by our own bound: not full
            elif self._is_full:
                self._start_down(now)

    def _start_down(self, now: float) -> None:
        self._forget_short_bounds()
        self._lossy_rounds = INHERITED
        self._probe_step = math.inf
        self._cycle_start = now
        self._cycle_round = self._rounds
        self._seed += 1
        self._wait = 2 + random.Random(self._seed).random()  # one that is kept takes 2.5 KB
        self._probe_stops = True
        self._round_end = self._delivered
        self.state = State.DOWN

    def _is_time_to_probe(self, now: float) -> bool:
        """After a while, or where a Reno flow would have regrown what it halved. Section 5.3.3.8."""
        rounds = min(63.0, self._product(1.0) / self.datagram_size)
        return now > self._cycle_start + self._wait or self._rounds >= self._cycle_round + max(rounds, 4.0)

    def _start_refill(self) -> None:
        self._forget_short_bounds()
        self._probe_rounds = 0
        self._round_end = self._delivered
        self._judge_probe = False
        self.state = State.REFILL

    def _start_up(self, now: float) -> None:
        self._judge_probe = True
        self._round_end = self._delivered
        self._reset_full(max(self._rates))
        self._cycle_start = now
        self._probe_rounds = 0
        self._probe_acked = 0
        self._probe_step = self._next_step()
        self.state = State.UP

    def _next_step(self) -> float:
        """Bytes to be acknowledged for one datagram more, growing faster from round to round."""
        return max(math.ldexp(self.window, -min(self._probe_rounds, 30)), float(self.datagram_size))

    def _raise_bound(self, sample: Sample, in_flight: int) -> None:
        if self.window < self._most_in_flight or in_flight + 2 * self.quantum < self.window:
            return
        self._probe_acked += sample.acked
        steps = int(self._probe_acked / self._probe_step)
        if steps:
            self._probe_acked -= int(steps * self._probe_step)
            self._most_in_flight += steps * self.datagram_size
        if self._round_start:
            self._probe_step = self._next_step()

    def _room_for_others(self) -> float:
        """Room is left above what the path holds without a queue; less in flight would be less than it delivers."""
        if math.isinf(self._most_in_flight):
            return math.inf
        needed = self._product(1.0) + max(self._extra)
        bound = max((1 - HEADROOM) * self._most_in_flight, min(self._most_in_flight, needed))
        return max(bound, MINIMUM_PACKETS * self.datagram_size)

    # -- the round-trip time: section 5.3.4

    def _learn_round_trip(self, now: float, sample: Sample, in_flight: int) -> None:
        expired = now > self._probe_minimum_at + PROBE_ROUND_TRIP_EVERY
        if sample.round_trip is not None and (sample.round_trip <= self._probe_minimum or expired):
            self._probe_minimum, self._probe_minimum_at = sample.round_trip, now
        if self._probe_minimum <= self.min_round_trip or now > self._min_round_trip_at + MIN_ROUND_TRIP_LIFE:
            self.min_round_trip, self._min_round_trip_at = self._probe_minimum, self._probe_minimum_at
        if expired and not self._idle_restart and self.state is not State.PROBE_ROUND_TRIP:
            self._prior_window = self.window
            self._probe_done_at = None
            self.state = State.PROBE_ROUND_TRIP
        if self.state is not State.PROBE_ROUND_TRIP:
            return
        if self._probe_done_at is None:
            if in_flight <= self._probing_window():
                self._probe_done_at = now + PROBE_ROUND_TRIP_TIME
                self._probe_round_end = self._delivered
        elif now > self._probe_done_at and sample.prior_delivered >= self._probe_round_end:
            self._probe_minimum_at = now
            self.window = max(self.window, self._prior_window)
            if self._was_full:
                self._start_down(now)
                self._probe_stops = False  # the rate was not probed
                self.state = State.CRUISE
            else:
                self.state = State.STARTUP

    def _probing_window(self) -> float:
        return max(self._product(PROBE_ROUND_TRIP_GAIN), MINIMUM_PACKETS * self.datagram_size)

    # -- what it comes to

    def _set_pacing(self) -> None:
        rate = _PACING_GAIN[self.state] * self.rate * (1 - MARGIN)
        if rate and (self._was_full or rate > self.pacing_rate):
            self.pacing_rate = rate

    def _set_window(self, sample: Sample, in_flight: int) -> None:
        gain = 2.25 if self.state is State.UP else WINDOW_GAIN
        most = self._product(gain) + max(self._extra)
        most = max(most, QUANTA * self.quantum, MINIMUM_PACKETS * self.datagram_size)
        if self._was_full:
            self.window = int(min(self.window + sample.acked, most))
        elif self.window < most or self._delivered < INITIAL_PACKETS * self.datagram_size:
            self.window += sample.acked
        bound = self._short_in_flight
        if self.state in (State.CRUISE, State.PROBE_ROUND_TRIP):
            bound = min(bound, self._room_for_others())
        elif self._was_full:
            bound = min(bound, self._most_in_flight)
        if self.state is State.PROBE_ROUND_TRIP:
            bound = min(bound, self._probing_window())
        self.window = int(max(min(self.window, bound), MINIMUM_PACKETS * self.datagram_size))
