"""Names, node ids, broker URIs, and which places a peer may make us dial."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import (
    BrokerAddress,
    Endpoint,
    decode_node_id,
    encode_node_id,
    is_ntcp_name,
    is_private_address,
    may_be_dialled,
    normalize_name,
    parse_broker,
    parse_host_port,
    parse_node_address,
    site_of,
)
from ntcpsock._errors import ConfigurationError


@given(st.binary(min_size=32, max_size=32))
def test_node_id_round_trip(key: bytes) -> None:
    text = encode_node_id(key)
    assert len(text) == 52
    assert decode_node_id(text) == decode_node_id(text.upper()) == key


@given(st.text(max_size=60))
def test_decoding_a_node_id_never_raises(text: str) -> None:
    assert decode_node_id(text) is None or len(text) == 52


def test_node_id_has_one_spelling() -> None:
    text = encode_node_id(bytes(32))
    assert decode_node_id(text[:-1] + "b") is None


@pytest.mark.parametrize(
    ("text", "label"),
    [("alice", "alice"), ("Alice.NTCP", "alice"), ("a-b.c_d.ntcp.", "a-b.c_d"), ("x" * 63, "x" * 63)],
)
def test_names(text: str, label: str) -> None:
    assert normalize_name(text) == label


@pytest.mark.parametrize("text", ["", ".ntcp", "-a", "a-", "a b", "a..b", "x" * 64, "ä", "a/b", "a\n"])
def test_bad_names(text: str) -> None:
    with pytest.raises(ConfigurationError):
        normalize_name(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.ntcp", True),
        (b"A.NTCP.", True),
        ("ntcp", False),
        ("a.ntcp.org", False),
        (None, False),
        (b"\xff", False),
    ],
)
def test_is_ntcp_name(host: object, expected: bool) -> None:
    assert is_ntcp_name(host) is expected


def test_broker_uri_round_trip() -> None:
    address = BrokerAddress("broker.example", 7000, bytes(range(32)))
    assert parse_broker(str(address)) == address
    assert parse_broker("ntcp://[2001:db8::1]") == BrokerAddress("2001:db8::1", 6060)
    assert parse_broker("192.0.2.1:99") == BrokerAddress("192.0.2.1", 99)


@pytest.mark.parametrize(
    "uri", ["http://x", "ntcp://", "ntcp://x:99999", "ntcp://x/path", "ntcp://x?key=short"]
)
def test_bad_broker_uris(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_broker(uri)


@pytest.mark.parametrize("text", ["alice:80", "ntcp://alice:80", "ALICE.ntcp:80", "ntcp://alice.ntcp:80/"])
def test_node_addresses(text: str) -> None:
    assert parse_node_address(text) == ("alice", 80)


@pytest.mark.parametrize("text", ["alice", "alice:", "alice:0", "alice:65536", "alice:x", ":80"])
def test_bad_node_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_node_address(text)


def test_host_port() -> None:
    assert parse_host_port("[::1]:5", 1) == ("::1", 5)
    assert parse_host_port("host", 1) == ("host", 1)
    with pytest.raises(ConfigurationError):
        parse_host_port("host:port", 1)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("10.1.2.3", True),
        ("100.64.0.1", True),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("fe80::1", True),
    ],
)
def test_documentation_ranges_are_public(host: str, private: bool) -> None:
    assert is_private_address(host) is private


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("192.0.2.1", 1, True),
        ("10.0.0.1", 80, True),
        ("127.0.0.1", 80, False),
        ("0.0.0.0", 80, False),
        ("0.1.2.3", 80, False),
        ("224.0.0.1", 80, False),
        ("255.255.255.255", 80, False),
        ("::", 80, False),
        ("::1", 80, False),
        ("192.0.2.1", 0, False),
        ("2001:db8::1", 80, True),
        ("2a00::1", 0, False),
        ("fd12::1", 80, True),
        ("ff02::1", 80, False),
        ("fe80::1", 80, False),
        ("fe80::1%1", 80, False),
        ("fec0::1", 80, False),
        ("100::1", 80, False),
        ("::ffff:192.0.2.1", 80, False),
        ("::ffff:127.0.0.1", 80, False),
        ("::192.0.2.1", 80, False),
        # 6to4, NAT64 and Teredo stand for an IPv4 address: a public one, or none of ours to send to.
        ("2002:c000:201::1", 80, True),
        ("2002:a00:1::1", 80, False),
        ("2002:7f00:1::1", 80, False),
        ("64:ff9b::c000:201", 80, True),
        ("64:ff9b::c0a8:101", 80, False),
        ("64:ff9b:1::c000:201", 80, False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", 80, True),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", 80, False),
        ("host", 80, False),
    ],
)
def test_what_a_peer_may_make_us_dial(host: str, port: int, allowed: bool) -> None:
    assert may_be_dialled(Endpoint(host, port)) is allowed


def test_the_site_of_an_address() -> None:
    assert site_of("2001:db8::1") == site_of("2001:db8:0:0:ffff::2") != site_of("2001:db8:0:1::1")
    assert site_of("fe80::1%2") == site_of("fe80::2%2")
    assert site_of("192.0.2.1") != site_of("192.0.2.2")


def test_brokers_of_a_cluster() -> None:
    address = parse_broker("ntcp://One.example,192.0.2.7,[2001:db8::1],[2001:db8::2]:7070")
    assert address == BrokerAddress("one.example,192.0.2.7,2001:db8::1,2001:db8::2", 7070)
    assert address.hosts == ("one.example", "192.0.2.7", "2001:db8::1", "2001:db8::2")
    assert str(address) == "ntcp://one.example,192.0.2.7,[2001:db8::1],[2001:db8::2]:7070"
    assert parse_broker(str(address)) == address
    assert parse_broker("wss://a,b") == BrokerAddress("a,b", 443, None, True)
    assert parse_broker("a").hosts == ("a",)


@pytest.mark.parametrize(
    "uri", ["a:1,b:2", "a,,b", ",a", "a,", "2001:db8::1,b", "[a],b", "a@b,c", "[::1],a]:1", "a b,c"]
)
def test_lists_of_brokers_that_are_none(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_broker(uri)
