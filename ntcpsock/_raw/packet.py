"""TCP segments by hand, for the techniques in which the kernel does not write all of them itself (pure).

scapy builds and parses. Importing it takes half a second, so it is imported inside the functions that need it, and
those are called in worker threads.
"""

from __future__ import annotations

import logging
import struct
from typing import Annotated, Any

import msgspec

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage

#: libpcap's link types (pcap/dlt.h), and the length of what stands before the IP header.
LINK_HEADERS = {1: 14, 12: 0, 101: 0, 113: 16, 276: 20}  # Ethernet, raw (twice), Linux cooked 1 and 2

_U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_U16 = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_PORTS = struct.Struct("!HH")


class Syn(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a SYN says of its sender, and its SYN-ACK has to say too (RFC 9293 section 3.1, RFC 7323, RFC 2018)."""

    sequence: _U32
    window: _U16
    #: Bytes of the largest segment that it takes (RFC 9293 section 3.7.1: 536 where nothing is said).
    maximum_segment: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 536
    #: The shift of its windows; None: it does not scale.
    window_scale: Annotated[int, msgspec.Meta(ge=0, le=14)] | None = None
    selective_acknowledgement: bool = False
    #: The clock of its time stamps; None: it has none.
    timestamp: _U32 | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Syn)


def encode_syn(syn: Syn) -> bytes:
    return _encoder.encode(syn)


def decode_syn_untrusted(data: bytes) -> Syn:
    """What the other side says of its SYN. Raises BadMessage."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(f"SYN: {error}") from error


def syn_filter(port: int, remote: Endpoint) -> str:
    """The BPF filter (pcap-filter(7)) of the SYNs that leave from a local port towards `remote`."""
    return (
        f"tcp and src port {port} and dst host {remote.host} and dst port {remote.port}"
        " and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
    )


def parse_syn_untrusted(frame: bytes, link_type: int) -> Syn:
    """What a captured SYN says. Raises BadMessage for anything else."""
    inet = _scapy()
    if link_type not in LINK_HEADERS:
        raise BadMessage(f"link type {link_type} is not known")
    try:
        segment = inet.IP(frame[LINK_HEADERS[link_type] :])[inet.TCP]
        flags = int(segment.flags)
        options = dict(option for option in segment.options if len(option) == 2)
        timestamp = options.get("Timestamp")
        syn = Syn(
            int(segment.seq),
            int(segment.window),
            _number(options.get("MSS"), 536),
            None if "WScale" not in options else min(_number(options["WScale"], 0), 14),
            "SAckOK" in options,
            int(timestamp[0]) if isinstance(timestamp, tuple) else None,
        )
    except Exception as error:  # scapy raises whatever a malformed packet makes it raise
        raise BadMessage(f"not a TCP segment: {error}") from error
    if flags & 0x12 != 0x02:
        raise BadMessage("not a SYN")
    return syn


def build_syn_ack(source: Endpoint, target: Endpoint, ours: Syn, theirs: Syn) -> bytes:
    """The IPv4 packet in which the sender of the SYN `ours` answers the SYN `theirs`: as its own kernel would have
    done, had it been listening. An option counts only where both have it."""
    inet = _scapy()
    options: list[tuple[str, Any]] = [("MSS", ours.maximum_segment)]
    if ours.selective_acknowledgement and theirs.selective_acknowledgement:
        options.append(("SAckOK", b""))
    if ours.timestamp is not None and theirs.timestamp is not None:
        options.append(("Timestamp", (ours.timestamp, theirs.timestamp)))
    if ours.window_scale is not None and theirs.window_scale is not None:
        options += [("NOP", None), ("WScale", ours.window_scale)]
    packet = inet.IP(src=source.host, dst=target.host, ttl=64, flags="DF") / inet.TCP(
        sport=source.port,
        dport=target.port,
        flags="SA",
        seq=ours.sequence,
        ack=(theirs.sequence + 1) & 0xFFFFFFFF,
        window=ours.window,
        options=options,
    )
    return bytes(packet)


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _scapy() -> Any:
    # It complains about interfaces and routes that nobody here asked it for.
    logging.getLogger("scapy").setLevel(logging.ERROR)
    import scapy.layers.inet as inet

    return inet
