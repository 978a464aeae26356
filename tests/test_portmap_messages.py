"""NAT-PMP, PCP and SSDP on the wire: octets laid out by hand as the RFCs draw them, round trips, and noise."""

from __future__ import annotations

import struct

import pytest
from fuzz_support import check_decoder
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.portmap import natpmp, pcp, ssdp
from ntcpsock._traversal.portmap.gateway import parse_routes

GATEWAY = "192.168.1.1"
NONCE = bytes(range(12))

# ::ffff:192.0.2.1 and ::ffff:192.168.1.2
EXTERNAL = "00000000000000000000ffffc0000201"
CLIENT = "00000000000000000000ffffc0a80102"


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


# NAT-PMP, the figures of RFC 6886 section 3.


def test_natpmp_requests() -> None:
    assert natpmp.encode_address_request() == octets("00 00")
    assert natpmp.encode_map_request(0x1234, 0x5678, 7200) == octets("00 02 0000 1234 5678 00001c20")
    # Section 3.4: to delete, the suggested port and the lifetime are zero.
    assert natpmp.encode_map_request(0x1234, 0, 0) == octets("00 02 0000 1234 0000 00000000")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("00 80 0000 0000000a c0000201", natpmp.ExternalAddress("192.0.2.1", 10)),
        ("00 82 0000 0000000a 1234 5678 00001c20", natpmp.MapResponse(0x1234, 0x5678, 7200, 10)),
        ("00 82 0002 0000000a 1234 0000 00000000", natpmp.ErrorResponse(2, 2)),
        ("00 80 0003 0000000a 00000000", natpmp.ErrorResponse(0, 3)),
        # Section 3.5, an unknown opcode: 8 octets suffice.
        ("00 82 0005 0000000a", natpmp.ErrorResponse(2, 5)),
        # A server that speaks PCP alone.
        ("02 80 0001 00000000 0000000a", natpmp.ErrorResponse(0, 1)),
    ],
)
def test_natpmp_responses(data: str, expected: natpmp.Response) -> None:
    assert natpmp.decode_response_untrusted(octets(data)) == expected


@pytest.mark.parametrize(
    "data",
    [
        "",
        "00 80 0000 0000000a c00002",  # too short
        "00 82 0000 0000000a 1234 5678 0000",
        "00 00",  # a request
        "01 80 0000 0000000a c0000201",  # another version
        "00 81 0000 0000000a 1234 5678 00001c20",  # a UDP mapping, which nobody asked for
    ],
)
def test_natpmp_refuses(data: str) -> None:
    with pytest.raises(BadMessage):
        natpmp.decode_response_untrusted(octets(data))


# PCP, the figures of RFC 6887 sections 7 and 11.

MAP_REQUEST = (
    f"02 01 0000 00000e10 {CLIENT}"
    "000102030405060708090a0b 06 000000 1234 5678 00000000000000000000ffff00000000"
)
MAP_RESPONSE = (
    "02 81 00 00 00000e10 0000000a 000000000000000000000000"
    f"000102030405060708090a0b 06 000000 1234 5678 {EXTERNAL}"
)


def test_pcp_requests() -> None:
    assert pcp.encode_announce_request("192.168.1.2") == octets(f"02 00 0000 00000000 {CLIENT}")
    request = pcp.encode_map_request("192.168.1.2", NONCE, 0x1234, 3600, external_port=0x5678)
    assert request == octets(MAP_REQUEST)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("02 80 00 00 00000000 0000000a 000000000000000000000000", pcp.AnnounceResponse(10)),
        (MAP_RESPONSE, pcp.MapResponse(NONCE, 6, 0x1234, 0x5678, "192.0.2.1", 3600, 10)),
        # With an option behind, which is none of ours (THIRD_PARTY, section 13.1).
        (
            f"{MAP_RESPONSE} 01 00 0010 {CLIENT}",
            pcp.MapResponse(NONCE, 6, 0x1234, 0x5678, "192.0.2.1", 3600, 10),
        ),
        (MAP_RESPONSE.replace("81 00 00", "81 00 08"), pcp.ErrorResponse(1, 8, 3600, NONCE)),
        ("02 81 00 02 00000708 0000000a 000000000000000000000000", pcp.ErrorResponse(1, 2, 1800)),
        # A gateway that speaks NAT-PMP alone (RFC 6886 section 3.5).
        ("00 81 0001 0000000a", pcp.ErrorResponse(1, 1, 0)),
    ],
)
def test_pcp_responses(data: str, expected: pcp.Response) -> None:
    assert pcp.decode_response_untrusted(octets(data)) == expected


@pytest.mark.parametrize(
    "data",
    [
        "",
        MAP_RESPONSE[:-8],  # the address cut off
        MAP_RESPONSE + "00",  # no multiple of four octets
        MAP_RESPONSE + "00" * 1100,
        MAP_REQUEST,
        MAP_RESPONSE.replace("02 81", "01 81"),
        MAP_RESPONSE.replace("02 81", "02 82"),  # PEER
    ],
)
def test_pcp_refuses(data: str) -> None:
    with pytest.raises(BadMessage):
        pcp.decode_response_untrusted(octets(data))


ports = st.integers(0, 65535)
words = st.integers(0, 2**32 - 1)


@given(ports, ports, words, words)
def test_natpmp_round_trip(internal: int, external: int, lifetime: int, epoch: int) -> None:
    """A gateway that grants every wish sends the request's own octets back."""
    request = natpmp.encode_map_request(internal, external, lifetime)
    response = b"\0\x82\0\0" + struct.pack("!I", epoch) + request[4:]
    assert natpmp.decode_response_untrusted(response) == natpmp.MapResponse(
        internal, external, lifetime, epoch
    )


@given(st.binary(min_size=12, max_size=12), ports, ports, words, words, st.ip_addresses(v=4))
def test_pcp_round_trip(
    nonce: bytes, internal: int, external: int, lifetime: int, epoch: int, address: object
) -> None:
    request = pcp.encode_map_request(
        "192.168.1.2", nonce, internal, lifetime, external_port=external, external_address=str(address)
    )
    response = b"\x02\x81\0\0" + struct.pack("!II", lifetime, epoch) + bytes(12) + request[24:]
    assert pcp.decode_response_untrusted(response) == pcp.MapResponse(
        nonce, 6, internal, external, str(address), lifetime, epoch
    )


def test_every_result_has_a_word() -> None:
    assert natpmp.describe(2) == pcp.describe(2) == "not authorized"
    assert natpmp.describe(4711) == "error 4711"


# SSDP.

SEARCH_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"Location: http://192.168.1.1:5000/rootDesc.xml\r\nEXT:\r\n\r\n"
)


def test_ssdp_search() -> None:
    assert ssdp.encode_search("239.255.255.250", "urn:x").split(b"\r\n") == [
        b"M-SEARCH * HTTP/1.1",
        b"HOST: 239.255.255.250:1900",
        b'MAN: "ssdp:discover"',
        b"MX: 1",
        b"ST: urn:x",
        b"",
        b"",
    ]


def test_ssdp_location() -> None:
    location = ssdp.decode_location_untrusted(SEARCH_RESPONSE, GATEWAY)
    assert location == "http://192.168.1.1:5000/rootDesc.xml"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"//192.168.1.1:", b"//192.168.1.9:"),  # a third machine
        (b"//192.168.1.1:", b"//192.168.1.1@192.168.1.9:"),
        (b"//192.168.1.1:", b"//user@192.168.1.1:"),
        (b"http:", b"file:"),
        (b":5000", b":99999"),
        (b":5000", b":0"),
        (b"/rootDesc", b"/root Desc"),
        (b"/rootDesc", b"/" + b"x" * 600),
        (b"200 OK", b"404 Not Found"),
        (b"HTTP/1.1 200 OK", b"NOTIFY * HTTP/1.1"),
        (b"InternetGatewayDevice", b"MediaServer"),
        (b"rootDesc", b"root\xc3\x96"),
        (b"EXT:", b"EXT: " + b"x" * 5000),
    ],
)
def test_ssdp_refuses(before: bytes, after: bytes) -> None:
    assert before in SEARCH_RESPONSE
    with pytest.raises(BadMessage):
        ssdp.decode_location_untrusted(SEARCH_RESPONSE.replace(before, after), GATEWAY)


# All decoders, with damage.


def decode_location(data: bytes) -> str:
    return ssdp.decode_location_untrusted(data, GATEWAY)


DECODERS = [
    (
        natpmp.decode_response_untrusted,
        [octets("0080 0000 0000000a c0000201"), octets("0082 0000 0000000a 1234 5678 00001c20")],
    ),
    (
        pcp.decode_response_untrusted,
        [octets(MAP_RESPONSE), octets("02 80 00 00 00000000 0000000a 000000000000000000000000")],
    ),
    (decode_location, [SEARCH_RESPONSE]),
]


@pytest.mark.parametrize(("decode", "seeds"), DECODERS, ids=["nat-pmp", "pcp", "ssdp"])
@pytest.mark.parametrize("count", [20_000, pytest.param(10**6, marks=pytest.mark.slow)])
def test_only_bad_message_leaves_a_decoder(decode: object, seeds: list[bytes], count: int) -> None:
    assert callable(decode)
    check_decoder(decode, seeds, count, random_seed=6886)


# /proc/net/route.

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def route(destination: str, gateway: str, flags: int, metric: int, mask: str = "0.0.0.0") -> str:
    def number(address: str) -> str:
        return f"{struct.unpack('=I', bytes(map(int, address.split('.'))))[0]:08X}"

    return f"eth0\t{number(destination)}\t{number(gateway)}\t{flags:04X}\t0\t0\t{metric}\t{number(mask)}\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([route("0.0.0.0", "192.168.1.1", 3, 100)], "192.168.1.1"),
        # The lowest metric counts.
        ([route("0.0.0.0", "10.0.0.1", 3, 600), route("0.0.0.0", "192.168.1.1", 3, 100)], "192.168.1.1"),
        # No gateway: a tunnel, another network, a route that is down, a network that begins at 0.
        ([route("0.0.0.0", "0.0.0.0", 1, 0)], None),
        ([route("192.168.1.0", "192.168.1.1", 3, 0, "255.255.255.0")], None),
        ([route("0.0.0.0", "192.168.1.1", 2, 0)], None),
        ([route("0.0.0.0", "192.168.1.1", 3, 0, "128.0.0.0")], None),
        (["eth0\tnonsense\n", "\n"], None),
    ],
)
def test_default_gateway(routes: list[str], expected: str | None) -> None:
    assert parse_routes(HEAD + "".join(routes)) == expected
