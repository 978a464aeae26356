"""What every decoder's fuzz test shares: seeded mutations of valid inputs, and the claim to check.

Not coverage guided: small faults in well-formed messages reach far deeper into a decoder than random
bytes do, and a fixed seed makes a failure repeatable. A test calls `check_decoder` with some 20,000
mutations in a normal run and with 10**6 under the `slow` mark.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from ntcpsock._errors import BadMessage

# Values at which length fields, counters and sign bits break.
_EDGE_BYTES = (0x00, 0x01, 0x02, 0x03, 0x04, 0x7F, 0x80, 0xFE, 0xFF)
_EDGE_WORDS = (b"\x00\x00", b"\x00\x01", b"\x00\x03", b"\x7f\xff", b"\x80\x00", b"\xff\xfc", b"\xff\xff")
_LONGEST_INSERT = 64
_MOST_FAULTS = 4


def mutations(seeds: Sequence[bytes], count: int, random_seed: int) -> Iterator[bytes]:
    """`count` damaged copies of `seeds`, the same ones for the same `random_seed`.

    One to four faults each: bits flipped, bytes and 16-bit words set to edge values, ranges cut out,
    doubled, inserted or taken from another seed, the end cut off or grown. One in fifty is pure noise.
    """
    chance = random.Random(random_seed)
    for _ in range(count):
        if chance.random() < 0.02:
            yield chance.randbytes(chance.randrange(_LONGEST_INSERT * 4))
            continue
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, _MOST_FAULTS)):
            chance.choice(_FAULTS)(data, chance, seeds)
        yield bytes(data)


def check_decoder(
    decode: Callable[[bytes], object], seeds: Sequence[bytes], count: int, random_seed: int
) -> None:
    """Assert that `decode` accepts every seed, and that only BadMessage leaves it for the mutations.

    `decode` should go on to use what it decoded (read every field, encode it again) where another
    part of the program would.
    """
    for seed in seeds:
        decode(seed)
    for number, data in enumerate(mutations(seeds, count, random_seed)):
        try:
            decode(data)
        except BadMessage:
            continue
        except BaseException as error:
            raise AssertionError(
                f"mutation {number} of random_seed {random_seed} got {error!r} out: {data.hex()}"
            ) from error


def _flip_bit(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set_byte(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.choice(_EDGE_BYTES)


def _set_word(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if len(data) >= 2:
        at = chance.randrange(len(data) - 1)
        data[at : at + 2] = chance.choice(_EDGE_WORDS)


def _add_to_byte(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        at = chance.randrange(len(data))
        data[at] = (data[at] + chance.choice((-4, -1, 1, 4))) % 256


def _cut_range(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        at = chance.randrange(len(data))
        del data[at : at + chance.randint(1, 8)]


def _double_range(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        at = chance.randrange(len(data))
        data[at:at] = data[at : at + chance.randint(1, _LONGEST_INSERT)]


def _insert_noise(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    at = chance.randint(0, len(data))
    data[at:at] = chance.randbytes(chance.randint(1, _LONGEST_INSERT))


def _splice(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    if data and other:
        at, start = chance.randrange(len(data)), chance.randrange(len(other))
        data[at:] = other[start:]


def _cut_end(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        del data[chance.randrange(len(data)) :]


def _grow_end(data: bytearray, chance: random.Random, _seeds: Sequence[bytes]) -> None:
    data += chance.randbytes(chance.randint(1, 8))


_FAULTS = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _set_word,
    _add_to_byte,
    _cut_range,
    _double_range,
    _insert_noise,
    _splice,
    _cut_end,
    _grow_end,
)
