"""Whole IPv4 packets for tests of the user-space NAT, built and judged independently of it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 1, 2, 4, 16

Place = tuple[str, int]


def number(address: str) -> int:
    return int(IPv4Address(address))


def internet_sum(data: bytes) -> int:
    """0 for data with a right Internet checksum in it."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return 0xFFFF - ((total - 1) % 0xFFFF + 1) if total else 0xFFFF


def ip(
    protocol: int, source: str, target: str, payload: bytes, *, fragment: int = 0, number_: int = 7
) -> bytearray:
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        number_,
        fragment,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return bytearray(header[:10] + struct.pack("!H", internet_sum(header)) + header[12:] + payload)


def _transport(protocol: int, source: str, target: str, payload: bytes, at: int) -> bytes:
    pseudo = (
        IPv4Address(source).packed + IPv4Address(target).packed + struct.pack("!HH", protocol, len(payload))
    )
    return payload[:at] + struct.pack("!H", internet_sum(pseudo + payload)) + payload[at + 2 :]


def udp(source: Place, target: Place, payload: bytes = b"") -> bytearray:
    datagram = struct.pack("!HHHH", source[1], target[1], 8 + len(payload), 0) + payload
    return ip(UDP, source[0], target[0], _transport(UDP, source[0], target[0], datagram, 6))


def tcp(
    source: Place,
    target: Place,
    flags: int,
    sequence: int = 0,
    acknowledgement: int = 0,
    payload: bytes = b"",
    window: int = 65535,
) -> bytearray:
    header = struct.pack(
        "!HHIIBBHHH", source[1], target[1], sequence, acknowledgement, 0x50, flags, window, 0, 0
    )
    return ip(TCP, source[0], target[0], _transport(TCP, source[0], target[0], header + payload, 16))


def echo(kind: int, source: str, target: str, identifier: int) -> bytearray:
    body = struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + b"ping"
    return ip(ICMP, source, target, body[:2] + struct.pack("!H", internet_sum(body)) + body[4:])


def icmp_error(
    sender: str, target: str, quoted: bytes | bytearray, kind: int = 3, code: int = 3
) -> bytearray:
    body = struct.pack("!BBHI", kind, code, 0, 0) + bytes(quoted)
    return ip(ICMP, sender, target, body[:2] + struct.pack("!H", internet_sum(body)) + body[4:])


def ends(packet: bytes | bytearray) -> tuple[Place, Place]:
    """Source and target of a first or whole packet."""
    transport = (packet[0] & 15) * 4
    source, target = (str(IPv4Address(bytes(packet[at : at + 4]))) for at in (12, 16))
    ports = struct.unpack_from("!HH", packet, transport) if packet[9] in (TCP, UDP) else (0, 0)
    return (source, ports[0]), (target, ports[1])


def flags_of(packet: bytes | bytearray) -> int:
    return packet[(packet[0] & 15) * 4 + 13]


def assert_sound(packet: bytes | bytearray) -> None:
    """Every checksum of an unfragmented packet is right."""
    transport = (packet[0] & 15) * 4
    assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
    assert internet_sum(bytes(packet[:transport])) == 0
    body = bytes(packet[transport:])
    if packet[9] in (TCP, UDP):
        if packet[9] == UDP and body[6:8] == b"\0\0":
            return  # the sender wanted none
        body = bytes(packet[12:20]) + struct.pack("!HH", packet[9], len(body)) + body
    assert internet_sum(body) == 0
