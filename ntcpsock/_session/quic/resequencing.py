"""Packets in the order of their sending, where the path delivers them in another one.

The sender's core takes a packet for lost as soon as one that was sent three places later is acknowledged (RFC 9002
section 6.1.1), and no setting of it allows for more. So it is the receiver that waits: where it sees packets come later
than that again and again, it keeps what is early until the gap before it is filled, or has lasted longer than the path
lets expect. Nothing is held where order is kept.

For that it reads packet numbers, which only the two ends can (RFC 9001 section 5.4). Who forges packets may at most
undo what is gained here: whatever is read, every packet goes on to the core within `LONGEST_PATIENCE`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Batch = tuple[bytes, int]

# Places that a packet may be late without counting as lost.
TOLERATED: Final = 2
# Late packets within so many seconds that make it worth waiting, and how long it is thought to be from the last one on.
LATE_PACKETS: Final = 3
LATE_WITHIN: Final = 5.0
REMEMBERED: Final = 10.0
# Seconds between two looks at the order while it is kept.
LOOK_EVERY: Final = 0.001
# Seconds that a gap may last: at first, at most, and how it follows what the late ones have needed.
FIRST_PATIENCE: Final = 0.005
SHORTEST_PATIENCE: Final = 0.001
LONGEST_PATIENCE: Final = 0.1
SPARE: Final = 1.5
DECAY: Final = 0.9  # a second
# Packets held at most.
MOST_HELD: Final = 4096
# Packets further away than this from where we are, are none of ours or come after an outage: so many in a row.
FAR: Final = 8192
LOST_TRACK: Final = 32
# Smaller packets are acknowledgements, which may come in any order.
LARGE: Final = 1000
_SAMPLE: Final = 16
_CONNECTION_ID: Final = 8


class PacketNumbers:
    """Reads the numbers of 1-RTT packets. key: of header protection with AES (RFC 9001 section 5.4.3)."""

    def __init__(self, key: bytes, connection_id: bytes) -> None:
        self._mask = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        self._connection_id = connection_id
        self._offset = 1 + len(connection_id)

    def read(self, packets: list[bytes], expected: int) -> list[int | None]:
        """One for each packet; None where it is of another kind. expected: the number to which they are near."""
        start = self._offset + 4
        samples = [packet[start : start + _SAMPLE] for packet in packets]
        readable = [
            len(sample) == _SAMPLE and not packet[0] & 0x80 and packet.startswith(self._connection_id, 1)
            for packet, sample in zip(packets, samples, strict=True)
        ]
        masks = self._mask.update(
            b"".join(sample for sample, good in zip(samples, readable, strict=True) if good)
        )
        numbers: list[int | None] = []
        position = 0
        for packet, good in zip(packets, readable, strict=True):
            if not good:
                numbers.append(None)
                continue
            mask = masks[position : position + 5]
            position += _SAMPLE
            length = ((packet[0] ^ mask[0]) & 3) + 1
            offset = self._offset
            hidden = int.from_bytes(packet[offset : offset + length], "big")
            number = hidden ^ int.from_bytes(mask[1 : 1 + length], "big")
            numbers.append(_whole(number, length, expected))
        return numbers


def _whole(number: int, length: int, expected: int) -> int:
    """The full number of which the last `length` bytes are given: RFC 9000 appendix A.3."""
    window = 1 << (8 * length)
    number |= expected & -window
    if number <= expected - window // 2:
        return number + window
    if number > expected + window // 2 and number >= window:
        return number - window
    return number


class Resequencer:
    """Datagrams in, in any order, and out again. is_active: whether it waits for late ones."""

    def __init__(self, numbers: PacketNumbers) -> None:
        self.is_active = False
        self._numbers = numbers
        self._next = 0  # all before are with the core, or given up
        self._held: dict[int, bytes] = {}
        self._arrivals: deque[tuple[float, int]] = deque()
        self._late: deque[float] = deque(maxlen=LATE_PACKETS)
        self._patience = FIRST_PATIENCE
        self._decayed_at = 0.0
        self._looked_at = 0.0
        self._astray = 0

    def take(self, buffer: bytes, size: int, now: float) -> list[Batch]:
        """What has arrived, each datagram of `size` bytes, the last one perhaps shorter; what may go on of it, and of
        what was held."""
        if not self.is_active:
            if size >= LARGE and now >= self._looked_at + LOOK_EVERY:
                self._look(buffer, size, now)
            return [(buffer, size)]
        packets = [buffer[start : start + size] for start in range(0, len(buffer), size)]
        ready: list[bytes] = []
        for packet, number in zip(packets, self._numbers.read(packets, self._next), strict=True):
            if number is None or not self._is_near(number):
                ready.append(packet)
            elif number > self._next:
                self._held[number] = packet
                self._arrivals.append((now, number))
            elif number == self._next:
                self._fill(packet, now, ready)
            else:
                if number < self._next - TOLERATED:
                    self._be_patient(2 * self._patience, now)
                ready.append(packet)
        if len(self._held) > MOST_HELD:
            self._give_up_before(self._arrivals[-1][1], ready)
        return _batches(ready) + self.release(now)

    def due_at(self) -> float | None:
        """When `release` is to be called."""
        return self._arrivals[0][0] + self._patience if self._arrivals else None

    def release(self, now: float) -> list[Batch]:
        """What has been held for long enough."""
        ready: list[bytes] = []
        while self._arrivals and (
            self._arrivals[0][0] + self._patience <= now or self._arrivals[0][1] < self._next
        ):
            self._give_up_before(self._arrivals.popleft()[1], ready)
        if self.is_active:
            if now >= self._decayed_at + 1:
                self._decayed_at = now
                self._patience = max(SHORTEST_PATIENCE, DECAY * self._patience)
            if not self._held and now > self._late[-1] + REMEMBERED:
                self.is_active = False
                self._late.clear()
        return _batches(ready)

    def _look(self, buffer: bytes, size: int, now: float) -> None:
        """At the first and the last of some datagrams: order is no matter of single ones."""
        self._looked_at = now
        last = (len(buffer) - 1) // size * size
        packets = [buffer[start : start + size] for start in sorted({0, last})]
        for number in self._numbers.read(packets, self._next):
            if number is None or not self._is_near(number):
                continue
            if number < self._next - 1 - TOLERATED:
                self._note_late(now)
            self._next = max(self._next, number + 1)

    def _is_near(self, number: int) -> bool:
        """Whether a packet of this number can be expected; after many others that can not, it can."""
        if abs(number - self._next) < FAR:
            self._astray = 0
            return True
        self._astray += 1
        if self._astray >= LOST_TRACK:
            self._astray, self._next = 0, number
        return False

    def _note_late(self, now: float) -> None:
        self._late.append(now)
        if len(self._late) == LATE_PACKETS and self._late[0] >= now - LATE_WITHIN:
            self.is_active = True
            self._decayed_at = now

    def _be_patient(self, patience: float, now: float) -> None:
        """A packet was late: wait so long for the next one, in seconds."""
        self._patience = min(max(self._patience, patience), LONGEST_PATIENCE)
        self._late.append(now)

    def _fill(self, packet: bytes, now: float, ready: list[bytes]) -> None:
        if len(self._held) > TOLERATED:
            since = next(since for since, number in self._arrivals if number in self._held)
            self._be_patient(SPARE * (now - since), now)
        ready.append(packet)
        self._next += 1
        self._go_on(ready)

    def _go_on(self, ready: list[bytes]) -> None:
        held = self._held
        while (packet := held.pop(self._next, None)) is not None:
            ready.append(packet)
            self._next += 1

    def _give_up_before(self, number: int, ready: list[bytes]) -> None:
        """What has not come before this one is not waited for."""
        if number < self._next:
            return
        ready += [self._held.pop(early) for early in sorted(self._held) if early <= number]
        self._next = number + 1
        self._go_on(ready)


def _batches(packets: list[bytes]) -> list[Batch]:
    """In the form of `take`."""
    batches: list[Batch] = []
    start = 0
    while start < len(packets):
        size, end = len(packets[start]), start + 1
        while end < len(packets) and len(packets[end]) == size:
            end += 1
        batches.append((b"".join(packets[start:end]), size))
        start = end
    return batches
