"""Congestion control without a network: what BBR makes of paths in virtual time, and its parts by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from quic_support import handshake
from quic_wire import Weather, WirePath, wire_paths

from ntcpsock._session.quic import core_clock, pacer
from ntcpsock._session.quic.bbr import Bbr, State
from ntcpsock._session.quic.carrier import QuicCarrier
from ntcpsock._session.quic.core_clock import CoreClock
from ntcpsock._session.quic.datagram_queues import DatagramQueues
from ntcpsock._session.quic.delivery_rate import DeliveryRate, Sample
from ntcpsock._session.quic.pacer import Pacer
from ntcpsock._session.quic.sending import Sending

# -- whole connections in virtual time


async def send_for_ever(carrier: QuicCarrier) -> None:
    data = memoryview(bytes(65536))
    while True:
        if not carrier.try_send(data):
            await carrier.wait_writable()


@dataclass
class Outcome:
    """speed: bytes a second after the first seconds; loss: the share of datagrams that got lost in that time."""

    speed: float
    loss: float
    control: Bbr
    path: WirePath


async def bulk(
    weather: Weather, seconds: float, *, server_sends: bool = False, warm_up: float = 2.0
) -> Outcome:
    paths = wire_paths(weather, seed=3)
    async with trio.open_nursery() as nursery:
        ends = await handshake(nursery, *paths)
        source, target = reversed(ends) if server_sends else ends
        path = paths[server_sends]
        if server_sends:
            ends[0].try_send(b"opens the stream")
            await source.wait_readable()
        nursery.start_soon(send_for_ever, source)
        got, buffer, sent, lost, began = 0, memoryview(bytearray(1 << 18)), 0, 0, trio.current_time()
        started = began
        while trio.current_time() < began + warm_up + seconds:
            count = target.try_receive_into(buffer)
            if count is None:
                await target.wait_readable()
                continue
            got += count
            if started == began and trio.current_time() >= began + warm_up:
                started, got, sent, lost = trio.current_time(), 0, path.sent, path.lost
        nursery.cancel_scope.cancel()
    control = source._machine._sending.control
    assert control is not None
    speed = got / (trio.current_time() - started)
    return Outcome(speed, (path.lost - lost) / (path.sent - sent), control, path)


RATE = 5e5
PRODUCT = int(RATE * 0.05)


@pytest.mark.parametrize("server_sends", [False, True])
async def test_a_path_without_loss_is_filled_and_its_queue_is_not(
    server_sends: bool, autojump_clock: trio.testing.MockClock
) -> None:
    outcome = await bulk(Weather(rate=RATE, queue=20 * PRODUCT), 6, server_sends=server_sends)
    assert outcome.speed > 0.85 * RATE
    assert outcome.loss == 0
    assert outcome.control.min_round_trip == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("loss", [0.005, 0.01])
async def test_random_loss_below_the_tolerance_costs_little(
    loss: float, autojump_clock: trio.testing.MockClock
) -> None:
    outcome = await bulk(Weather(rate=RATE, queue=4 * PRODUCT, loss=loss), 10)
    assert outcome.speed > 0.6 * RATE


@pytest.mark.parametrize("queue", [PRODUCT // 4, PRODUCT])
async def test_a_small_queue_overflows_seldom(queue: int, autojump_clock: trio.testing.MockClock) -> None:
    outcome = await bulk(Weather(rate=RATE, queue=queue), 10)
    assert outcome.speed > 0.75 * RATE
    assert outcome.loss < 0.05


@pytest.mark.slow
async def test_more_room_is_found_and_less_room_is_respected(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather(rate=RATE / 4, queue=2 * PRODUCT)

    async def widen(rate: float) -> None:
        await trio.sleep(10)
        weather.rate = rate

    async with trio.open_nursery() as nursery:
        nursery.start_soon(widen, RATE)
        outcome = await bulk(weather, 10, warm_up=20)
    assert outcome.speed > 0.75 * RATE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(widen, RATE / 4)
        outcome = await bulk(weather, 10, warm_up=20)
    assert 0.15 * RATE < outcome.speed < 0.26 * RATE
    assert outcome.loss < 0.05


async def test_a_transfer_goes_on_after_an_outage(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather(rate=RATE, queue=2 * PRODUCT)

    async def interrupt() -> None:
        await trio.sleep(3)
        weather.loss = 1.0
        await trio.sleep(4)
        weather.loss = 0.0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt)
        outcome = await bulk(weather, 5, warm_up=12)
    assert outcome.speed > 0.75 * RATE


# -- the delivery rate


def test_the_rate_is_that_of_the_acknowledgements() -> None:
    measure = DeliveryRate(0.0)
    for number in range(10):
        measure.sent(number * 0.01, 1000, (number + 1) * 1000)
    sample = measure.feedback(0.1, 9000, 0)
    assert (sample.acked, sample.lost) == (1000, 0)
    assert sample.round_trip == pytest.approx(0.1)
    for number in range(1, 10):
        sample = measure.feedback(0.1 + number * 0.02, 9000 - number * 1000, 0)
    # 9000 bytes in the 180 ms since the first acknowledgement; sent they were twice as fast.
    assert sample.rate == pytest.approx(10_000 / 0.28)
    assert measure.delivered == 10_000


def test_lost_bytes_are_not_delivered() -> None:
    measure = DeliveryRate(0.0)
    measure.sent(0.0, 10_000, 10_000)
    sample = measure.feedback(0.1, 0, 3000)
    assert (sample.acked, sample.lost, sample.burst_lost, sample.burst_in_flight) == (
        7000,
        3000,
        3000,
        10_000,
    )
    assert sample.rate == pytest.approx(70_000)
    assert measure.feedback(0.2, 0, 5000).lost == 0, "more lost than was in flight"


def test_what_the_application_limits_says_so() -> None:
    measure = DeliveryRate(0.0)
    measure.limited_by_application(0)
    measure.sent(0.0, 100, 100)
    assert measure.feedback(0.1, 0, 0).application_limited
    measure.sent(0.2, 100, 100)
    assert not measure.feedback(0.3, 0, 0).application_limited


# -- pacing


def test_the_pacer_lets_a_burst_go_and_then_its_rate() -> None:
    bucket = Pacer(0.0, 1e6, 1000)
    assert bucket.budget(0.0) == pacer.INITIAL_BURST * 1000
    bucket.spend(10_000)
    assert bucket.budget(0.0) == 0
    assert bucket.ready_at() == pytest.approx(bucket.quantum / 1e6)
    assert bucket.budget(0.003) == 3000
    assert bucket.budget(60.0) == pacer.INITIAL_BURST * 1000, "idleness is saved up"


def test_a_sender_that_comes_late_catches_up() -> None:
    bucket = Pacer(0.0, 1e7, 1000)
    bucket.spend(bucket.budget(0.0))
    assert bucket.budget(0.02, is_late=True) == 200_000
    assert not bucket.is_wasting
    bucket.spend(200_000)
    assert bucket.budget(1.0, is_late=True) == pacer.SAVED_LATE * 1e7
    assert bucket.is_wasting


# -- the clock of the core


def test_the_clock_leaves_idleness_out() -> None:
    clock = CoreClock()
    clock.sent(0.0, clock.time_of_sending(0.0, 0, 0.05), 0)
    clock.acknowledged(0.05)
    time = clock.time_of_sending(100.0, 0, 0.05)
    assert time == pytest.approx(0.05 + core_clock.IDLE)
    clock.sent(100.0, time, 0)
    assert clock.time(100.05) == pytest.approx(time + 0.05)
    assert clock.our_time(time) == pytest.approx(100.0)


def test_what_the_core_itself_paces_is_sent_in_the_end() -> None:
    """Its pacer may wait for longer than its clock goes on in idleness: nothing left any more then, and the driver went
    round without a pause."""
    sending = Sending(DatagramQueues())
    sending.clock.acknowledged(1.0)
    core = cast(Any, SimpleNamespace(get_timer=lambda: ("pacing", 1.5, ())))
    assert sending._time_of_sending(core, 1.2, 0) == pytest.approx(1.2)
    assert sending._time_of_sending(core, 1.6, 0) == pytest.approx(1.5)
    # The core forgets what its pacer has waited for as soon as the timer is handled, and begins to wait anew.
    core = cast(Any, SimpleNamespace(get_timer=lambda: ("loss_detection", 1.7, ())))
    assert sending._time_of_sending(core, 1.6, 0) == pytest.approx(1.5)


def test_without_a_pacer_that_waits_the_core_hears_little_of_idleness() -> None:
    sending = Sending(DatagramQueues())
    sending.clock.acknowledged(1.0)
    core = cast(Any, SimpleNamespace(get_timer=lambda: ("loss_detection", 1.5, ())))
    assert sending._time_of_sending(core, 1.6, 0) == pytest.approx(1.0 + core_clock.IDLE)


def test_without_acknowledgements_sending_is_at_one_moment() -> None:
    clock = CoreClock()
    clock.acknowledged(1.0)
    times = []
    for number in range(200):
        now, in_flight = 1.0 + number / 10, number * 100
        times.append(clock.time_of_sending(now, in_flight, 0.05))
        clock.sent(now, times[-1], in_flight)
    assert max(times) - 1.0 < 3 * (0.05 + 0.025), "that would be persistent congestion"
    assert times == sorted(times)


# -- states


def test_a_new_connection_starts_up_with_ten_datagrams() -> None:
    control = Bbr(0.0, 1200, 0.05, seed=1)
    assert (control.state, control.window) == (State.STARTUP, 12_000)
    assert control.pacing_rate == pytest.approx(2.77 * 12_000 / 0.05)


class Rounds:
    """Feeds a control with whole round trips of 50 ms, as a path of `RATE` would."""

    def __init__(self) -> None:
        self.control = Bbr(0.0, 1000, 0.05, seed=1)
        self.now, self.delivered = 0.0, 0

    def round(self, sent: int, losses: Sequence[int], rate: float = RATE) -> None:
        """sent, losses: bytes, the latter as noticed in so many acknowledgements."""
        before, share = self.delivered, sent // len(losses)
        for lost in losses:
            self.now += 0.05 / len(losses)
            acked = max(1000, share - lost)
            self.delivered += acked
            sample = Sample(acked, lost, 0.05, rate, 0.05, sent, lost, before)
            self.control.feedback(self.now, sample, sent, self.delivered)

    def start_up(self) -> None:
        """Until the path is known to be full, and its queue is drained."""
        for _ in range(5):
            self.round(100_000, [0] * 10)
        self.round(10_000, [0] * 10)
        assert self.control.state in (State.DOWN, State.CRUISE)


def test_one_burst_that_gets_lost_does_not_end_the_start() -> None:
    rounds = Rounds()
    rounds.round(20_000, [0] * 10, RATE / 4)
    rounds.round(40_000, [0] * 4 + [12_000] + [0] * 5, RATE / 2)
    rounds.round(80_000, [0] * 10)
    assert rounds.control.state is State.STARTUP


def test_losses_apart_from_each_other_end_the_start() -> None:
    rounds = Rounds()
    rounds.round(20_000, [0] * 10, RATE / 4)
    rounds.round(40_000, [2000] * 10, RATE / 2)
    rounds.round(40_000, [2000] * 10, RATE / 2)
    assert rounds.control.state is not State.STARTUP


def test_what_the_start_has_overdone_is_paid_once() -> None:
    rounds = Rounds()
    rounds.round(100_000, [0] * 10)
    rounds.round(200_000, [6000] * 10)
    rounds.round(200_000, [6000] * 10, 0.6 * RATE)  # sent before it was known
    rounds.round(25_000, [0] * 10, 0.6 * RATE)
    assert rounds.control.state is not State.STARTUP
    assert rounds.control.rate == RATE


def test_loss_that_no_reduction_ends_reduces_once() -> None:
    rounds = Rounds()
    rounds.start_up()
    for _ in range(12):
        rounds.round(200_000, [900] * 10, 0.95 * rounds.control.rate)
    assert 0.9 * RATE < rounds.control.rate < RATE


def test_heavy_loss_reduces_from_round_to_round() -> None:
    rounds = Rounds()
    rounds.start_up()
    for _ in range(7):
        rounds.round(200_000, [8000] * 10, 0.6 * rounds.control.rate)
    assert rounds.control.rate < 0.4 * RATE


async def test_a_reader_that_takes_its_time_is_not_taken_for_a_slow_path(
    autojump_clock: trio.testing.MockClock,
) -> None:
    paths = wire_paths(Weather(rate=4e6, queue=400_000), seed=3)
    async with trio.open_nursery() as nursery:
        source, target = await handshake(nursery, *paths)
        nursery.start_soon(send_for_ever, source)
        buffer = memoryview(bytearray(1 << 20))
        with trio.move_on_after(3):
            while True:
                target.try_receive_into(buffer)
                await target.wait_readable()
        for _ in range(250):
            target.try_receive_into(buffer[:20_000])
            await trio.sleep(0.1)
        control = source._machine._sending.control
        assert control is not None
        assert control.rate > 0.6 * 4e6
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_what_gets_lost_twice_stops_no_long_fast_path(autojump_clock: trio.testing.MockClock) -> None:
    weather = Weather(rate=1.2e7, delay=0.15, queue=1_200_000, loss=0.01)
    outcome = await bulk(weather, 5, warm_up=5)
    assert outcome.speed > 0.8 * weather.rate
