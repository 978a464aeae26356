"""Properties of the user-space NAT: nothing that arrives breaks it, fills it, or leaves it with a wrong checksum."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import natlab_packets as p
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Behaviour,
    Filtering,
    Hairpin,
    Mapping,
    OnError,
    SequenceCheck,
    StrayAnswer,
    TcpBehaviour,
    UdpBehaviour,
)
from ntcpsock.testing.natlab.router.machine import Nat
from ntcpsock.testing.natlab.router.packet import BadPacket, Packet

PUBLIC, GATEWAY = "11.22.33.2", "10.1.0.1"
CAPACITY = 8

words = {
    "mapping": st.sampled_from(Mapping),
    "filtering": st.sampled_from(Filtering),
    "allocation": st.sampled_from(Allocation),
    "hairpin": st.sampled_from(Hairpin),
    "answer": st.sampled_from(StrayAnswer),
    "icmp_error": st.sampled_from(OnError),
    "band": st.sampled_from([1, 4, 512]),
}
behaviours = st.builds(
    Behaviour,
    udp=st.builds(UdpBehaviour, **words, idle=st.sampled_from([1.0, 100.0])),
    tcp=st.builds(
        TcpBehaviour, **words, rst=st.sampled_from(OnError), sequence_check=st.sampled_from(SequenceCheck)
    ),
    translates=st.booleans(),
    lifetime=st.sampled_from([None, 5.0]),
    capacity=st.just(CAPACITY),
)
addresses = st.sampled_from([PUBLIC, "10.1.0.10", "10.1.0.11", "11.22.55.2", "11.22.66.2"])
places = st.tuples(addresses, st.sampled_from([1, 1024, 4001, 65535]))
payloads = st.binary(max_size=9)
numbers = st.sampled_from([0, 1, 500, 501, 2**31, 2**32 - 1])
segments = st.builds(p.tcp, places, places, st.integers(0, 63), numbers, numbers, payloads)
datagrams = st.builds(p.udp, places, places, payloads)
pings = st.builds(p.echo, st.sampled_from([0, 8]), addresses, addresses, st.integers(0, 65535))
quotes = st.one_of(segments, datagrams, pings)
errors = st.builds(
    p.icmp_error, addresses, addresses, quotes.map(bytes), st.sampled_from([3, 11]), st.integers(0, 5)
)
packets = st.one_of(segments, datagrams, pings, errors)


def nat(behaviour: Behaviour) -> Nat:
    return Nat(behaviour, p.number(PUBLIC), p.number(GATEWAY), seed=0)


def ended(packet: bytearray, at: int, value: int) -> bytearray:
    packet[at % len(packet)] = value
    return packet


mangled = st.builds(ended, packets, st.integers(0, 200), st.integers(0, 255))
cut = st.builds(lambda packet, end: packet[:end], packets, st.integers(0, 60))


@given(
    behaviours,
    st.lists(st.tuples(st.booleans(), st.one_of(st.binary(max_size=80).map(bytearray), mangled, cut))),
)
def test_no_bytes_break_it(behaviour: Behaviour, inputs: list[tuple[bool, bytearray]]) -> None:
    router = nat(behaviour)
    for now, (outward, data) in enumerate(inputs):
        outputs = (router.outbound if outward else router.inbound)(data, float(now))
        assert all(20 <= len(output.data) <= 65535 for output in outputs)
    assert router.mappings(1e9) == []


@given(behaviours, st.lists(st.tuples(st.booleans(), packets, st.sampled_from([0.0, 0.5, 2.0]))))
def test_what_comes_out_is_sound_and_tables_are_bounded(
    behaviour: Behaviour, inputs: list[tuple[bool, bytearray, float]]
) -> None:
    router = nat(behaviour)
    now = 0.0
    for outward, data, pause in inputs:
        now += pause
        for output in (router.outbound if outward else router.inbound)(data, now):
            p.assert_sound(output.data)
            source, target = p.ends(output.data)
            if behaviour.translates and output.outward:
                assert source[0] == PUBLIC
            if behaviour.translates and not output.outward:
                assert target[0] != PUBLIC or outward or target[0] in ("10.1.0.10", "10.1.0.11", PUBLIC)
        rows = router.mappings(now)
        assert sum(len(row["remotes"]) for row in rows) <= CAPACITY
        assert len({(row["protocol"], row["outer"]) for row in rows}) == len(rows)  # REQ-3: no overloading


@given(behaviours, st.one_of(segments, datagrams))
def test_an_answer_comes_back_to_who_asked(behaviour: Behaviour, data: bytearray) -> None:
    router = nat(behaviour)
    source, target = p.ends(data)
    protocol = data[9]
    if target[0] == PUBLIC or (protocol == p.TCP and p.flags_of(data) & 23 != p.SYN):
        return
    (out,) = router.outbound(bytearray(data), 0.0)
    outer, _ = p.ends(out.data)
    number = (int.from_bytes(data[24:28], "big") + 1 + len(data) - 40) % 2**32
    answer = p.udp(target, outer) if protocol == p.UDP else p.tcp(target, outer, p.SYN | p.ACK, 9, number)
    (back,) = router.inbound(answer, 0.1)
    assert (back.outward, p.ends(back.data)) == (False, (target, source))


@given(st.one_of(segments, datagrams), places, places)
def test_unfinished_checksums_stay_the_sum_of_the_pseudo_header(
    data: bytearray, source: p.Place, target: p.Place
) -> None:
    """The kernel's own form: translate it, then finish it as the kernel does."""
    at = 20 + (16 if data[9] == p.TCP else 6)
    length = len(data) - 20

    def pseudo(packet: bytearray) -> bytes:
        return bytes(packet[12:20]) + struct.pack("!HH", packet[9], length)

    struct.pack_into("!H", data, at, 0xFFFF - p.internet_sum(pseudo(data)))
    packet = Packet(data, partial=True)
    packet.set_source((p.number(source[0]), source[1]))
    packet.set_target((p.number(target[0]), target[1]))
    finished = p.internet_sum(bytes(data[20:]))
    struct.pack_into("!H", data, at, finished or 0xFFFF)
    p.assert_sound(data)
    assert p.ends(data) == (source, target)


@pytest.mark.parametrize("size", [0, 19, 20, 27])
def test_short_packets(size: int) -> None:
    whole = p.udp(("10.1.0.10", 1), ("11.22.55.2", 2), b"1234")
    with pytest.raises(BadPacket):
        Packet(whole[:size])


def test_padding_is_cut_off() -> None:
    whole = p.udp(("10.1.0.10", 1), ("11.22.55.2", 2))
    assert Packet(whole + b"padding").data == whole
    assert str(IPv4Address(Packet(whole).source[0])) == "10.1.0.10"
