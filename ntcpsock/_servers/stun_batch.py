"""Binding requests over UDP, answered a hundred at a time: the plain ones by arithmetic on the whole batch.

Almost all requests are the same 20 octets but for their transaction id. The kernel writes each to where its answer will
be, so that the id already stands there, and its source beside; then one XOR over the octets of all answers turns type,
length and addresses into what they have to be. What the pattern of an answer is follows from one that `BindingServer`
gave; a test compares the others with its as well. Every datagram of another kind is left to that.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

from ntcpsock._address import Endpoint
from ntcpsock._servers import mmsg
from ntcpsock._servers.crowds import Crowds
from ntcpsock._traversal.stun.constants import HEADER_LENGTH, MAGIC_COOKIE
from ntcpsock._traversal.stun.message import binding_request, encode_message

#: Type, length and cookie of a request without attributes.
_PLAIN: Final = b"\x00\x01\x00\x00" + MAGIC_COOKIE
_PLAIN_NUMBER: Final = int.from_bytes(_PLAIN, sys.byteorder)
_ATTRIBUTE_AT: Final = HEADER_LENGTH  # of the XOR-MAPPED-ADDRESS, which comes first
_FAMILY_AT: Final = 24  # 0, family, port, address
_COOKIE_AT: Final = 4
_IPV6_AT: Final = 28
#: Room for one answer: a multiple of 8, and more than 56 octets, the longest over IPv4, or 92 over IPv6.
_STRIDE_V4: Final = 64
_STRIDE_V6: Final = 96
_NAME_STRIDE: Final = 32
#: Of the samples.
_TRANSACTION: Final = bytes(range(1, 13))
# Ancillary data with one in_pktinfo or in6_pktinfo, and where the interface is in the first, in words.
_CONTROL_LENGTHS: Final = {False: 32, True: 40}
_INTERFACE_AT: Final = 4


class Rest(NamedTuple):
    """A datagram that is not of the plain kind; source: the kernel's struct, 28 octets; control: ancillary data."""

    datagram: bytes
    source: bytes
    control: bytes


class Done(NamedTuple):
    """answered: how many were plain and have their answer; refused: of these, how many the kernel did not take;
    dropped: how many were no STUN at all; excessive: how many came from addresses that send too many."""

    answered: int
    refused: int
    dropped: int
    excessive: int
    rest: list[Rest]


class Pattern(NamedTuple):
    """How the answers of one socket look: what follows the mapped address, and how long they are."""

    suffix: bytes
    length: int

    @classmethod
    def of(cls, answer: Callable[[bytes, Endpoint], bytes | None], *, ipv6: bool) -> Pattern | None:
        """From the answer to a sample; None where that is not of the form that this file knows."""
        source = Endpoint("2001:db8::1", 0x1234) if ipv6 else Endpoint("192.0.2.1", 0x1234)
        sample = answer(encode_message(binding_request(_TRANSACTION)), source)
        end = _IPV6_AT + 16 if ipv6 else _FAMILY_AT + 8
        stride = _STRIDE_V6 if ipv6 else _STRIDE_V4
        expected = b"\x00\x20" + (b"\x00\x14\x00\x02" if ipv6 else b"\x00\x08\x00\x01")
        if (
            sample is None
            or not end <= len(sample) <= stride
            or sample[:2] != b"\x01\x01"
            or sample[_COOKIE_AT:HEADER_LENGTH] != MAGIC_COOKIE + _TRANSACTION
            or sample[_ATTRIBUTE_AT : _FAMILY_AT + 2] != expected
        ):
            return None
        return cls(sample[end:], len(sample))


class StunBatch:
    """The memory of one socket's batches. wildcard: the socket tells which address was asked; kept: first octets of
    what is no STUN and not to be dropped; rate: what one address gets answered a second, while whole batches come."""

    def __init__(
        self,
        pattern: Pattern,
        *,
        count: int,
        longest: int,
        ipv6: bool,
        wildcard: bool,
        kept: bytes = b"",
        rate: float = math.inf,
    ) -> None:
        self.count = count
        self._kept = frozenset(kept)
        self._crowds = None if rate == math.inf else Crowds[int](rate)
        self._ipv6 = ipv6
        self._stride = stride = _STRIDE_V6 if ipv6 else _STRIDE_V4
        self._longest = longest
        self._control_length = _CONTROL_LENGTHS[ipv6] if wildcard else 0
        #: Requests as they come, answers as they go.
        self._answers = bytearray(count * stride)
        self._further = bytearray(count * longest)
        self._names = bytearray(count * _NAME_STRIDE)
        self._controls = bytearray(count * mmsg.CONTROL_LENGTH)
        name_length = 28 if ipv6 else 16
        self._in = mmsg.Headers(
            count,
            [(self._answers, stride, HEADER_LENGTH), (self._further, longest, longest)],
            (self._names, _NAME_STRIDE, name_length),
            self._controls if wildcard else None,
        )
        self._out = mmsg.Headers(
            count,
            [(self._answers, stride, pattern.length)],
            (self._names, _NAME_STRIDE, name_length),
            self._controls if wildcard else None,
        )
        if wildcard:
            self._out.control_lengths[:] = array("Q", [self._control_length]) * count
        self._prepare(pattern)

    def _prepare(self, pattern: Pattern) -> None:
        stride, count = self._stride, self.count
        end = _IPV6_AT + 16 if self._ipv6 else _FAMILY_AT + 8
        change = bytearray(stride)
        change[0] = 0x01  # request to success response
        change[2:4] = (pattern.length - HEADER_LENGTH).to_bytes(2)
        # From the kernel's family in its own octet order to STUN's, 1 or 2.
        family = (10 if self._ipv6 else 2).to_bytes(2, sys.byteorder)
        change[_FAMILY_AT : _FAMILY_AT + 2] = bytes((family[0], family[1] ^ (2 if self._ipv6 else 1)))
        change[_FAMILY_AT + 2 : _FAMILY_AT + 4] = MAGIC_COOKIE[:2]
        if not self._ipv6:
            change[_FAMILY_AT + 4 : end] = MAGIC_COOKIE
        for index in range(count):
            at = index * stride
            self._answers[at + _ATTRIBUTE_AT : at + _FAMILY_AT] = (
                b"\x00\x20\x00\x14" if self._ipv6 else b"\x00\x20\x00\x08"
            )
            self._answers[at + end : at + end + len(pattern.suffix)] = pattern.suffix
        if not self._ipv6:
            change = change[_FAMILY_AT:end]
        self._change = int.from_bytes(bytes(change) * count, "little")
        head = b"\x01\x01" + (pattern.length - HEADER_LENGTH).to_bytes(2)
        self._answer_heads = array("I", head * count)
        # What an IPv6 address is changed with beside: cookie and transaction id.
        ids = bytearray(stride)
        ids[_COOKIE_AT:HEADER_LENGTH] = b"\xff" * 16
        self._ids = int.from_bytes(bytes(ids) * count, "little")
        words = memoryview(self._answers).cast("I")
        names = memoryview(self._names).cast("I")
        step, name_step = stride // 4, _NAME_STRIDE // 4
        copied = [(6, 0), (7, 2), (8, 3), (9, 4), (10, 5)]
        self._copies = [(words[to::step], names[source::name_step]) for to, source in copied]
        self._heads = words[::step]
        self._sources = memoryview(self._names).cast("Q")[:: _NAME_STRIDE // 8]
        # An IPv4 address, or the first half of an IPv6 one.
        self._hosts = (
            memoryview(self._names).cast("Q")[1 :: _NAME_STRIDE // 8] if self._ipv6 else names[1::name_step]
        )
        self._mapped = memoryview(self._answers).cast("Q")[_FAMILY_AT // 8 :: stride // 8]
        self._first = memoryview(self._answers).cast("Q")[:: stride // 8]
        self._interfaces = memoryview(self._controls).cast("I")[_INTERFACE_AT :: mmsg.CONTROL_LENGTH // 4]
        self._no_interfaces = array("I", [0]) * count

    def exchange(self, descriptor: int, now: float) -> Done | None:
        """Receive what is there, up to `count`, and answer what is plain; None: nothing was there."""
        count = self._in.receive(descriptor)
        if not count:
            return None
        excessive: list[int] = []
        if count == self.count and self._crowds is not None:
            hosts = self._hosts.tolist()
            crowd = self._crowds.excessive(hosts, now)
            if crowd:
                excessive = [index for index, host in enumerate(hosts) if host in crowd]
                if len(excessive) == count:
                    return Done(0, 0, 0, count, [])
        lengths = self._in.lengths[:count].tolist()
        rest: list[Rest] = []
        others: list[int] = []
        ends = [count]
        if (
            lengths.count(HEADER_LENGTH) != count
            or self._first[:count].tolist().count(_PLAIN_NUMBER) != count
            or self._in.control_lengths[:count].tolist().count(self._control_length) != count
        ):
            others = self._others(lengths)
        if excessive:
            others = sorted({*others}.difference(excessive))
        if others:
            rest = [
                self._take(index, lengths[index]) for index in others if self._may_be(index, lengths[index])
            ]
        if others or excessive:
            ends = [*sorted([*others, *excessive]), count]
        if self._ipv6:
            self._turn_ipv6(count)
        else:
            self._turn_ipv4(count)
        if self._control_length and not self._ipv6:
            # Interface 0: the route back decides, which need not be the way in.
            self._interfaces[:] = self._no_interfaces
        refused, first = 0, 0
        for end in ends:
            if first < end:
                refused += len(self._out.send(descriptor, first, end))
            first = end + 1
        answered = count - len(others) - len(excessive)
        return Done(answered, refused, len(others) - len(rest), len(excessive), rest)

    def _turn_ipv4(self, count: int) -> None:
        """Requests to answers: the first four octets, and the last eight, which come from the source."""
        self._heads[:count] = self._answer_heads[:count]
        size = 8 * count
        change = self._change if count == self.count else self._change & ((1 << 8 * size) - 1)
        sources = int.from_bytes(self._sources[:count].tobytes(), "little")
        self._mapped[:count] = memoryview((sources ^ change).to_bytes(size, "little")).cast("Q")

    def _turn_ipv6(self, count: int) -> None:
        """The same; an address is changed by the transaction id, too, which stands in the answer itself."""
        for to, source in self._copies:
            to[:count] = source[:count]
        size = count * self._stride
        octets = int.from_bytes(self._answers[:size], "little")
        change = self._change if count == self.count else self._change & ((1 << 8 * size) - 1)
        octets ^= (octets & self._ids) << 8 * (_IPV6_AT - _COOKIE_AT)
        self._answers[:size] = (octets ^ change).to_bytes(size, "little")

    def _others(self, lengths: list[int]) -> list[int]:
        """Which datagrams are not plain."""
        return [
            index
            for index, length in enumerate(lengths)
            if length != HEADER_LENGTH
            or self._first[index] != _PLAIN_NUMBER
            or self._in.control_lengths[index] != self._control_length
        ]

    def _may_be(self, index: int, length: int) -> bool:
        """Whether the first octets are those of a message (RFC 8489 section 5). Garbage in bulk costs little so."""
        at = index * self._stride
        answers = self._answers
        if length and answers[at] in self._kept:
            return True
        return (
            length >= HEADER_LENGTH
            and answers[at] < 0x40
            and answers[at + 2] << 8 | answers[at + 3] == length - HEADER_LENGTH
        )

    def _take(self, index: int, length: int) -> Rest:
        at, further, name = index * self._stride, index * self._longest, index * _NAME_STRIDE
        datagram = self._answers[at : at + min(length, HEADER_LENGTH)]
        if length > HEADER_LENGTH:
            datagram += self._further[further : further + length - HEADER_LENGTH]
        control = index * mmsg.CONTROL_LENGTH
        control_length = self._in.control_lengths[index]
        return Rest(
            bytes(datagram),
            bytes(self._names[name : name + 28]),
            bytes(self._controls[control : control + control_length]),
        )
