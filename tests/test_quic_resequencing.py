"""Packets that come out of order: what the receiver makes of them, by hand and in whole connections."""

from __future__ import annotations

import random

import pytest
import trio.testing
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from quic_wire import Weather
from test_quic_congestion import bulk

from ntcpsock._session.quic import resequencing
from ntcpsock._session.quic.resequencing import PacketNumbers, Resequencer

KEY, CONNECTION_ID, SIZE = b"k" * 16, b"12345678", 1200


def packet(number: int, connection_id: bytes = CONNECTION_ID, length: int = 2) -> bytes:
    """With its header protected as RFC 9001 section 5.4 says; the number stands in its last bytes, too."""
    rest = random.Random(number).randbytes(SIZE - 9 - length - 4) + number.to_bytes(4, "big")
    sample = rest[4 - length : 20 - length]
    mask = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(sample)
    hidden = (number & ((1 << 8 * length) - 1)) ^ int.from_bytes(mask[1 : 1 + length], "big")
    first = 0x40 | ((length - 1) ^ mask[0] & 0x1F)
    return bytes([first]) + connection_id + hidden.to_bytes(length, "big") + rest


def numbers(batches: list[tuple[bytes, int]]) -> list[int]:
    return [
        int.from_bytes(data[start : start + size][-4:], "big")
        for data, size in batches
        for start in range(0, len(data), size)
    ]


class Receiver:
    """A resequencer that gets packets one by one, a millisecond after the other."""

    def __init__(self) -> None:
        self.resequencer = Resequencer(PacketNumbers(KEY, CONNECTION_ID))
        self.now = 1.0

    def take(self, *order: int) -> list[int]:
        went: list[int] = []
        for number in order:
            self.now += 0.002
            went += numbers(self.resequencer.take(packet(number), SIZE, self.now))
        return went

    def wake(self) -> list[int]:
        """At the time that it has asked for."""
        due = self.resequencer.due_at()
        assert due is not None
        self.now = max(self.now, due)
        return numbers(self.resequencer.release(self.now))

    def activate(self) -> int:
        """Show it that packets come late; the next number."""
        self.take(*range(10))
        for start in (10, 20, 30):
            self.take(*range(start + 1, start + 10), start)
        assert self.resequencer.is_active
        return 40


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_number_of_a_packet_is_read(length: int) -> None:
    reader = PacketNumbers(KEY, CONNECTION_ID)
    for number in (0, 1, 200, 255, 256, 65535, 65536, 70_000, 1 << 25):
        assert reader.read([packet(number, length=length)], number + 3) == [number]
        assert reader.read([packet(number, length=length)], max(0, number - 3)) == [number]


def test_what_is_no_packet_of_this_connection_has_no_number() -> None:
    reader = PacketNumbers(KEY, CONNECTION_ID)
    foreign = [b"", b"\x40", b"\xc0" + packet(3)[1:], packet(3, b"abcdefgh"), packet(3)[:24]]
    assert reader.read([*foreign, packet(3)], 0) == [None] * len(foreign) + [3]


def test_in_order_nothing_is_held() -> None:
    receiver = Receiver()
    order = [number for number in range(500) if number % 50]
    assert receiver.take(*order) == order
    assert not receiver.resequencer.is_active
    assert receiver.resequencer.due_at() is None


def test_a_packet_or_two_out_of_place_are_no_reason() -> None:
    receiver = Receiver()
    for start in range(0, 300, 3):
        receiver.take(start + 2, start + 1, start)
    assert not receiver.resequencer.is_active


def test_where_packets_come_late_the_order_is_restored() -> None:
    receiver = Receiver()
    start = receiver.activate()
    assert receiver.take(start, start + 1) == [start, start + 1]
    assert receiver.take(start + 3) == []
    assert receiver.take(start + 2) == [start + 2, start + 3]
    assert receiver.resequencer.due_at() is None


def test_a_packet_that_never_comes_is_not_waited_for_long() -> None:
    receiver = Receiver()
    start = receiver.activate()
    receiver.take(start)
    before = receiver.now
    assert receiver.take(start + 2) == []
    assert receiver.wake() == [start + 2]
    assert receiver.now - before <= resequencing.LONGEST_PATIENCE
    assert receiver.take(start + 3, start + 4) == [start + 3, start + 4]


def test_patience_follows_what_late_ones_need() -> None:
    receiver = Receiver()
    start = receiver.activate()
    for _ in range(20):
        receiver.take(*range(start + 1, start + 20), start)
        start += 20
    late = range(start + 1, start + 20)
    assert receiver.take(*late) == []
    assert receiver.take(start) == list(range(start, start + 20))


def test_it_ends_when_order_is_kept_again() -> None:
    receiver = Receiver()
    start = receiver.activate()
    order = list(range(start, start + 100))
    receiver.now += resequencing.REMEMBERED
    assert receiver.take(*order) == order
    assert not receiver.resequencer.is_active


def test_what_is_held_is_bounded_and_nothing_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resequencing, "MOST_HELD", 50)
    receiver = Receiver()
    start, rng, went, given = receiver.activate(), random.Random(5), [], []
    for _ in range(2000):
        number = start + rng.randrange(20_000)
        given.append(number)
        receiver.now -= 0.0019
        went += receiver.take(number)
        assert len(receiver.resequencer._held) <= 51
    receiver.now += 1
    went += numbers(receiver.resequencer.release(receiver.now))
    assert set(went) == set(given)


def test_forged_numbers_stop_nothing() -> None:
    receiver = Receiver()
    start = receiver.activate()
    receiver.take(start + 8000)
    went = receiver.take(*range(start, start + 100))
    while receiver.resequencer.due_at() is not None:
        went += receiver.wake()
    assert set(range(start, start + 100)) <= set(went)


@pytest.mark.parametrize(
    "weather", [Weather(rate=2e6, jitter=0.005), Weather(rate=2e6, jitter=0.005, loss=0.01)]
)
async def test_a_path_that_reorders_is_filled(
    weather: Weather, autojump_clock: trio.testing.MockClock
) -> None:
    outcome = await bulk(weather, 6, warm_up=4)
    assert outcome.speed > 0.6 * weather.rate
