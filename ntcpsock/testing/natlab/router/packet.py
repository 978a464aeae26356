"""IPv4 packets in place: where their fields are, and how an address or port in them is exchanged.

Checksums are adjusted incrementally (RFC 1624), so a packet costs the same whatever its size. The kernel hands
over packets whose transport checksum is not finished yet (`partial`): that field holds the sum of the pseudo-header
alone, so only the addresses in it change.
"""

from __future__ import annotations

import struct

ICMP, TCP, UDP = 1, 6, 17

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED = 0, 3, 8, 11
_ICMP_ERRORS = (UNREACHABLE, 4, 5, TIME_EXCEEDED, 12)
PORT_UNREACHABLE, FRAGMENTATION_NEEDED, PROHIBITED = 3, 4, 13

_MORE_FRAGMENTS, _OFFSET = 0x2000, 0x1FFF
_SHORT = struct.Struct("!H")
_LONG = struct.Struct("!I")
_ADDRESSES = struct.Struct("!II")
_PORTS = struct.Struct("!HH")
_TCP_FIELDS = struct.Struct("!IIBBH")  # sequence, acknowledgement, offset, flags, window

Endpoint = tuple[int, int]
"""Address and port, or address and ICMP query identifier."""


class BadPacket(ValueError):
    """These bytes are no IPv4 packet that a NAT could translate."""


class Packet:
    """An IPv4 packet, or the beginning of one as an ICMP error quotes it. Raises BadPacket.

    `protocol`, `source` and `target` are what a NAT goes by; the ports are 0 in later fragments. An ICMP error has
    its `quoted` packet.
    """

    __slots__ = (
        "_base",
        "_partial",
        "_quote",
        "_transport",
        "data",
        "identification",
        "later_fragment",
        "more_fragments",
        "protocol",
        "quoted",
        "source",
        "target",
    )

    def __init__(self, data: bytearray, *, partial: bool = False, base: int = 0, quote: bool = False) -> None:
        if len(data) - base < 20 or data[base] >> 4 != 4:
            raise BadPacket("no IPv4 header")
        header = (data[base] & 15) * 4
        total = _SHORT.unpack_from(data, base + 2)[0]
        if header < 20 or total < header or len(data) - base < header:
            raise BadPacket("impossible lengths in the IPv4 header")
        if not quote:
            if total > len(data):
                raise BadPacket("packet shorter than its header says")
            del data[total:]  # padding of a link
        self.data = data
        self._base = base
        self._partial = partial
        self._quote = quote
        self._transport = transport = base + header
        self.protocol = data[base + 9]
        self.identification = _SHORT.unpack_from(data, base + 4)[0]
        fragment = _SHORT.unpack_from(data, base + 6)[0]
        self.later_fragment = bool(fragment & _OFFSET)
        self.more_fragments = bool(fragment & _MORE_FRAGMENTS)
        source, target = _ADDRESSES.unpack_from(data, base + 12)
        source_port = target_port = 0
        self.quoted: Packet | None = None
        if not self.later_fragment:
            # RFC 792 promises 8 bytes of the transport header to ICMP errors, and they hold the ports.
            needed = {TCP: 8 if quote else 20, UDP: 8, ICMP: 8}.get(self.protocol, 0)
            if len(data) - transport < needed:
                raise BadPacket("transport header cut short")
            if self.protocol in (TCP, UDP):
                source_port, target_port = _PORTS.unpack_from(data, transport)
                if self.protocol == TCP and not quote and data[transport + 12] >> 4 < 5:
                    raise BadPacket("impossible TCP data offset")
            elif self.protocol == ICMP:
                if data[transport] in (ECHO, ECHO_REPLY):
                    # One identifier names the query at both ends.
                    source_port = target_port = _SHORT.unpack_from(data, transport + 4)[0]
                elif data[transport] in _ICMP_ERRORS and not quote:
                    self.quoted = Packet(data, base=transport + 8, quote=True)
        self.source: Endpoint = (source, source_port)
        self.target: Endpoint = (target, target_port)

    @property
    def tcp_fields(self) -> tuple[int, int, int, int]:
        """Sequence number, acknowledgement number, flags and raw window of a whole TCP header."""
        sequence, acknowledgement, _, flags, window = _TCP_FIELDS.unpack_from(self.data, self._transport + 4)
        return sequence, acknowledgement, flags, window

    @property
    def tcp_length(self) -> int:
        """Bytes of TCP payload."""
        return len(self.data) - self._transport - (self.data[self._transport + 12] >> 4) * 4

    @property
    def tcp_window_scale(self) -> int | None:
        """The shift of the window scale option (RFC 7323) in this header; None without the option."""
        position = self._transport + 20
        end = min(self._transport + (self.data[self._transport + 12] >> 4) * 4, len(self.data))
        while position < end:
            kind = self.data[position]
            if kind == 0:
                break
            if kind == 1:
                position += 1
                continue
            if position + 1 >= end or (length := self.data[position + 1]) < 2:
                break
            if kind == 3 and length == 3 and position + 2 < end:
                return min(self.data[position + 2], 14)
            position += length
        return None

    @property
    def icmp_kind(self) -> tuple[int, int]:
        """Type and code."""
        return self.data[self._transport], self.data[self._transport + 1]

    @property
    def header_and_eight(self) -> bytes:
        """What an ICMP error quotes of this packet."""
        return bytes(self.data[self._base : self._transport + 8])

    def set_source(self, endpoint: Endpoint) -> None:
        """Give the packet another source."""
        self._set(12, self.source, endpoint, self._transport)
        self.source = endpoint

    def set_target(self, endpoint: Endpoint) -> None:
        """Give the packet another target."""
        self._set(16, self.target, endpoint, self._transport + 2)
        self.target = endpoint

    def _set(self, address_at: int, old: Endpoint, new: Endpoint, port_at: int) -> None:
        data = self.data
        base = self._base
        addresses = _difference(old[0], new[0])
        _LONG.pack_into(data, base + address_at, new[0])
        _adjust(data, base + 10, addresses)
        if self.later_fragment or self.protocol not in (TCP, UDP, ICMP):
            return
        transport = self._transport
        ports = (old[1] ^ 0xFFFF) + new[1]
        if self.protocol == ICMP:
            if data[transport] in (ECHO, ECHO_REPLY):
                _SHORT.pack_into(data, transport + 4, new[1])
                _adjust(data, transport + 2, ports)
                self.source, self.target = (self.source[0], new[1]), (self.target[0], new[1])
            return
        _SHORT.pack_into(data, port_at, new[1])
        check = transport + (16 if self.protocol == TCP else 6)
        if check + 2 > len(data):
            return  # a quoted TCP header, cut before its checksum
        if self._partial:
            # The kernel completes it from the bytes that it finds, ports included.
            total = _SHORT.unpack_from(data, check)[0] + addresses
            _SHORT.pack_into(data, check, _fold(total))
        elif self.protocol == TCP or data[check] or data[check + 1]:  # a UDP sender may send none
            _adjust(data, check, addresses + ports)
            if self.protocol == UDP and not (data[check] or data[check + 1]):
                _SHORT.pack_into(data, check, 0xFFFF)

    def finish_quote(self) -> None:
        """Recompute the checksum of an ICMP error whose quoted packet was changed."""
        _SHORT.pack_into(self.data, self._transport + 2, 0)
        _SHORT.pack_into(self.data, self._transport + 2, checksum(memoryview(self.data)[self._transport :]))


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The Internet checksum (RFC 1071)."""
    data = bytes(data) + b"\0" * (len(data) % 2)
    return _fold(sum(struct.unpack(f"!{len(data) // 2}H", data))) ^ 0xFFFF


def reset_for(packet: Packet) -> bytearray:
    """The RST that a closed port answers a TCP segment with (RFC 9293 section 3.10.7.1)."""
    sequence, acknowledgement, flags, _ = packet.tcp_fields
    if flags & ACK:
        ours, theirs, answer = acknowledgement, 0, RST
    else:
        length = packet.tcp_length + bool(flags & SYN) + bool(flags & FIN)
        ours, theirs, answer = 0, (sequence + length) & 0xFFFFFFFF, RST | ACK
    segment = struct.pack(
        "!HHIIBBHHH", packet.target[1], packet.source[1], ours, theirs, 0x50, answer, 0, 0, 0
    )
    pseudo = struct.pack("!IIBBH", packet.target[0], packet.source[0], 0, TCP, len(segment))
    segment = segment[:16] + _SHORT.pack(checksum(pseudo + segment)) + segment[18:]
    return _ip(TCP, packet.target[0], packet.source[0], segment)


def icmp_error_for(packet: Packet, sender: int, kind: int, code: int) -> bytearray:
    """An ICMP error from `sender` about a packet (RFC 792)."""
    body = struct.pack("!BBHI", kind, code, 0, 0) + packet.header_and_eight
    body = body[:2] + _SHORT.pack(checksum(body)) + body[4:]
    return _ip(ICMP, sender, packet.source[0], body)


def _ip(protocol: int, source: int, target: int, payload: bytes) -> bytearray:
    header = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, target)
    return bytearray(header[:10] + _SHORT.pack(checksum(header)) + header[12:] + payload)


def _difference(old: int, new: int) -> int:
    """What exchanging a 32-bit field adds to a one's complement sum."""
    old ^= 0xFFFFFFFF
    return (old >> 16) + (old & 0xFFFF) + (new >> 16) + (new & 0xFFFF)


def _adjust(data: bytearray, at: int, difference: int) -> None:
    total = (_SHORT.unpack_from(data, at)[0] ^ 0xFFFF) + difference
    _SHORT.pack_into(data, at, _fold(total) ^ 0xFFFF)


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
