"""Who is answered next where more come than can be answered."""

from __future__ import annotations

import heapq

from ntcpsock._servers.waiting_room import WaitingRoom
from ntcpsock._traversal.broker.greeting import MAX_PAUSE
from ntcpsock._traversal.broker.round_trip import INITIAL_RTO

Entry = tuple[bytes, bytes]


def datagram(number: int, text: bytes = b"") -> Entry:
    """Of a node with that number as its key."""
    key = number.to_bytes(32, "big")
    return b"\1" + key + text, b"origin of " + key


def test_while_many_wait_each_waits_once() -> None:
    """The first of what it has said: what it says again is the same, and what it says besides is said again."""
    room = WaitingRoom(lambda key: False, most=100, at_once=16)
    assert room.put([datagram(number, b"first") for number in range(40)]) == 0
    assert room.put([datagram(number, b"again") for number in range(40)]) == 0
    assert len(room) == 40
    taken = [*room.take(), *room.take(), *room.take()]
    assert taken == [datagram(number, b"first") for number in range(40)]
    assert len(room) == 0
    assert room.take() == []
    assert room.put([datagram(7, b"another")]) == 0
    assert room.take() == [datagram(7, b"another")]


def test_a_node_may_ask_for_several_things_at_once() -> None:
    room = WaitingRoom(lambda key: True, most=100, at_once=16)
    room.put([datagram(1, text) for text in (b"register", b"look up", b"turn")])
    assert [frame[33:] for frame, _ in room.take()] == [b"register", b"look up", b"turn"]


def test_a_node_alone_may_ask_for_a_thousand_things_at_once() -> None:
    """They came in one batch, and none of them is a copy: with one waiting they were lost, and their retransmissions
    together again, until the last had no time left."""
    room = WaitingRoom(lambda key: True, most=4096, at_once=16)
    asked = [datagram(1, number.to_bytes(2, "big")) for number in range(1000)]
    assert room.put(asked) == 0
    taken = []
    while turn := room.take():
        taken += turn
    assert taken == asked


def test_nodes_share_the_room() -> None:
    room = WaitingRoom(lambda key: True, most=4096, at_once=16)
    room.put([datagram(number) for number in range(100)])
    for _ in range(20):
        room.put([datagram(number) for number in range(10)])
    # A hundred of them: ten each.
    assert len(room) == 100 + 10 * 9
    room.put([datagram(number) for number in range(100, 3000)])
    assert len(room) == 3000 + 10 * 9
    room.put([datagram(number) for number in range(3000)])
    assert len(room) == 3000 + 10 * 9


def test_who_has_begun_goes_first_and_strangers_get_in_all_the_same() -> None:
    room = WaitingRoom(lambda key: key[-1] >= 100, most=100, at_once=16)
    room.put([datagram(number) for number in range(20)])
    room.put([datagram(number) for number in range(100, 130)])
    turns = []
    while turn := room.take():
        turns.append([frame[32] for frame, _ in turn])
    assert turns == [
        [*range(100, 112), *range(4)],
        [*range(112, 124), *range(4, 8)],
        [*range(124, 130), *range(8, 18)],
        [18, 19],
    ]


def test_each_kind_has_an_end() -> None:
    """Garbage of one kind takes no room from the other."""
    room = WaitingRoom(lambda key: key[-1] >= 100, most=50, at_once=16)
    assert room.put([datagram(number) for number in range(100)]) == 50
    assert room.put([datagram(number) for number in range(100, 200)]) == 50
    assert len(room) == 100
    # Those for whom there was no room are not taken for waiting.
    room.take()
    assert room.put([datagram(99)]) == 0


def test_little_is_answered_for_nothing_when_all_come_at_once() -> None:
    """Thousands of nodes, three things to say each, which they say again as nodes do; sixteen are answered in each five
    milliseconds. In one queue, first come, first served, 1.7 times as much was answered as was asked for."""
    count, turn = 5000, 0.005
    steps = [0] * count
    begun: set[bytes] = set()
    room = WaitingRoom(begun.__contains__, most=4096, at_once=16)
    sends = [(0.0, number, 0, INITIAL_RTO) for number in range(count)]
    now, answered, left = 0.0, 0, count
    while left:
        assert now < 60.0
        arrived = []
        while sends and sends[0][0] <= now:
            _, number, step, pause = heapq.heappop(sends)
            if step == steps[number]:
                arrived.append(datagram(number, bytes((step,))))
                heapq.heappush(sends, (now + pause, number, step, min(2 * pause, MAX_PAUSE)))
        room.put(arrived)
        for frame, _ in room.take():
            answered += 1
            number = int.from_bytes(frame[1:33], "big")
            begun.add(frame[1:33])
            if frame[33] == steps[number] < 3:
                steps[number] += 1
                left -= steps[number] == 3
                if steps[number] < 3:
                    heapq.heappush(sends, (now + turn, number, steps[number], INITIAL_RTO))
        now += turn
    assert answered <= 1.1 * 3 * count
