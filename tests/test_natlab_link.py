"""What a link of the lab does to packets, without a network."""

from __future__ import annotations

import itertools
import random

import pytest

from ntcpsock.testing.natlab import Link
from ntcpsock.testing.natlab.link import Queue

PACKET = bytes(1000)


def send(link: Link, count: int, *, interval: float = 0.001, size: int = 1000) -> list[tuple[float, int]]:
    """When which packet leaves the link; they enter at regular intervals."""
    queue = Queue(link, random.Random(3))
    for number in range(count):
        queue.put(number.to_bytes(2, "big") + bytes(size - 2), number * interval)
    out = []
    while queue.due() is not None:
        due, packet = queue.take()
        out.append((due, int.from_bytes(packet[:2], "big")))
    assert queue.dropped == count - len({number for _, number in out})
    return out


def test_delay_alone() -> None:
    assert send(Link(0.5), 3, interval=1.0) == [(0.5, 0), (1.5, 1), (2.5, 2)]


def test_loss() -> None:
    assert 60 < len(send(Link(loss=0.3), 100)) < 80
    assert send(Link(loss=1.0), 10) == []


def test_duplication() -> None:
    numbers = [number for _, number in send(Link(duplication=0.5), 100)]
    assert set(numbers) == set(range(100))
    assert 130 < len(numbers) < 170
    assert numbers == sorted(numbers)


def test_jitter_keeps_the_order() -> None:
    out = send(Link(0.01, jitter=0.02), 100)
    assert [number for _, number in out] == list(range(100))
    waits = [due - number * 0.001 for due, number in out]
    assert 0.01 <= min(waits) < max(waits) <= 0.03 + 1e-9
    assert len({round(wait, 6) for wait in waits}) > 50


def test_reordering() -> None:
    numbers = [number for _, number in send(Link(0.01, reordering=0.1), 100)]
    assert sorted(numbers) == list(range(100))
    overtaken = sum(after < before for before, after in itertools.pairwise(numbers))
    assert 3 < overtaken < 25


def test_rate() -> None:
    link = Link(0.0, rate=1_000_000, buffer=0.02)
    out = send(link, 100, interval=0.0001)
    gaps = {round(after[0] - before[0], 9) for before, after in itertools.pairwise(out)}
    assert gaps == {0.001}  # 1000 bytes each
    assert 20 <= len(out) < 40  # the rest found the buffer full


def test_idle_line_is_free_at_once() -> None:
    assert [due for due, _ in send(Link(0.0, rate=1_000_000), 2, interval=5.0)] == [0.001, 5.001]


def test_room_is_bounded() -> None:
    queue = Queue(Link(10.0), random.Random(0))
    for _ in range(1100):
        queue.put(bytes(1 << 16), 0.0)
    assert queue.dropped == 1100 - 1024


@pytest.mark.parametrize(
    "arguments",
    [{"loss": 1.1}, {"duplication": -1}, {"delay": -0.1}, {"rate": 0}, {"mtu": 100}, {"jitter": -1}],
)
def test_impossible_links(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Link(**arguments)  # type: ignore[arg-type]
