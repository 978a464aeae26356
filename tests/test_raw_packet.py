"""Segments by hand: what is built is right to scapy and to an independent checksum; noise is refused."""

from __future__ import annotations

import struct
from typing import Any

import natlab_packets as p
import pytest
from fuzz_support import check_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._raw.packet import (
    LINK_HEADERS,
    Syn,
    build_syn_ack,
    decode_syn_untrusted,
    encode_syn,
    parse_syn_untrusted,
    syn_filter,
)

SOURCE, TARGET = Endpoint("192.0.2.1", 23456), Endpoint("198.51.100.2", 34567)
ETHERNET = 1

u32 = st.integers(0, 2**32 - 1)
syns = st.builds(
    Syn,
    u32,
    st.integers(0, 65535),
    st.integers(1, 65535),
    st.none() | st.integers(0, 14),
    st.booleans(),
    st.none() | u32,
)


def options(syn: Syn) -> bytes:
    """The options of a SYN, spelled out by RFC 9293, 2018 and 7323."""
    data = struct.pack("!BBH", 2, 4, syn.maximum_segment)
    if syn.selective_acknowledgement:
        data += bytes((4, 2))
    if syn.timestamp is not None:
        data += struct.pack("!BBII", 8, 10, syn.timestamp, 0)
    if syn.window_scale is not None:
        data += bytes((1, 3, 3, syn.window_scale))
    return data + bytes(-len(data) % 4)


def frame_of(syn: Syn, flags: int = p.SYN, link: int = ETHERNET) -> bytes:
    packet = bytes(p.tcp(SOURCE, TARGET, flags, syn.sequence, 0, options(syn), syn.window))
    offset = 5 + len(options(syn)) // 4
    return bytes(LINK_HEADERS[link]) + packet[:32] + bytes((offset << 4,)) + packet[33:]


def scapy_segment(packet: bytes) -> Any:
    from scapy.layers.inet import IP, TCP

    return IP(packet)[TCP]


@given(syns, st.sampled_from(sorted(LINK_HEADERS)))
@settings(deadline=None)
def test_a_captured_syn_says_what_was_sent(syn: Syn, link: int) -> None:
    assert parse_syn_untrusted(frame_of(syn, link=link), link) == syn


@given(syns, syns)
@settings(deadline=None)
def test_a_syn_ack_is_what_a_kernel_would_answer(ours: Syn, theirs: Syn) -> None:
    packet = build_syn_ack(SOURCE, TARGET, ours, theirs)
    p.assert_sound(packet)
    assert p.ends(packet) == (SOURCE, TARGET)
    assert p.flags_of(packet) == p.SYN | p.ACK
    sequence, acknowledgement = struct.unpack_from("!II", packet, 24)
    assert (sequence, acknowledgement) == (ours.sequence, (theirs.sequence + 1) % 2**32)
    assert struct.unpack_from("!H", packet, 34)[0] == ours.window
    found = dict(scapy_segment(packet).options)
    assert found["MSS"] == ours.maximum_segment
    assert ("SAckOK" in found) == (ours.selective_acknowledgement and theirs.selective_acknowledgement)
    both_scale = None not in (ours.window_scale, theirs.window_scale)
    assert found.get("WScale") == (ours.window_scale if both_scale else None)
    both_stamp = None not in (ours.timestamp, theirs.timestamp)
    assert found.get("Timestamp") == ((ours.timestamp, theirs.timestamp) if both_stamp else None)


@given(syns, syns)
@settings(deadline=None)
def test_checksums_are_scapys_own(ours: Syn, theirs: Syn) -> None:
    from scapy.layers.inet import IP, TCP

    packet = build_syn_ack(SOURCE, TARGET, ours, theirs)
    again = IP(packet)
    del again.chksum, again[TCP].chksum
    assert bytes(again) == packet


@pytest.mark.parametrize("flags", [p.SYN | p.ACK, p.ACK, p.RST, 0])
def test_other_segments_are_refused(flags: int) -> None:
    with pytest.raises(BadMessage, match="not a SYN"):
        parse_syn_untrusted(frame_of(Syn(5, 100), flags), ETHERNET)


@pytest.mark.parametrize(
    ("frame", "link"),
    [(b"", ETHERNET), (bytes(40), ETHERNET), (frame_of(Syn(1, 2))[:40], ETHERNET), (b"x", 999)],
)
def test_what_is_no_segment_is_refused(frame: bytes, link: int) -> None:
    with pytest.raises(BadMessage):
        parse_syn_untrusted(frame, link)


def test_noise_for_the_parser() -> None:
    seeds = [frame_of(Syn(1, 2)), frame_of(Syn(1, 2, 1400, 7, True, 99))]
    check_decoder(lambda data: parse_syn_untrusted(data, ETHERNET), seeds, 2_000, 1)


def test_noise_for_the_decoder() -> None:
    def decode(data: bytes) -> None:
        syn = decode_syn_untrusted(data)
        assert decode_syn_untrusted(encode_syn(syn)) == syn

    check_decoder(decode, [encode_syn(Syn(1, 2)), encode_syn(Syn(1, 2, 1400, 7, True, 99))], 20_000, 1)


@given(syns)
def test_what_is_said_is_heard(syn: Syn) -> None:
    assert decode_syn_untrusted(encode_syn(syn)) == syn


def test_a_filter_is_of_one_connection() -> None:
    text = syn_filter(23456, TARGET)
    assert "src port 23456" in text
    assert "dst host 198.51.100.2 and dst port 34567" in text
