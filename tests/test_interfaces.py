"""Which of a machine's addresses are offered to others."""

from __future__ import annotations

import socket
import sys

import pytest

from ntcpsock._traversal.interfaces import (
    choose_ipv6,
    default_devices,
    default_devices6,
    further_uplinks,
    ipv4_addresses,
    ipv6_addresses,
    prefer_lasting_source,
)

LASTING, TEMPORARY, DAD_FAILED, DEPRECATED, TENTATIVE, PERMANENT = 0x00, 0x01, 0x08, 0x20, 0x40, 0x80
LOOPBACK = "00000000000000000000000000000001 01 80 10 80       lo"
LINK_LOCAL = "fe800000000000000000000000000001 02 40 20 80     eth0"


def line(address: str, flags: int) -> str:
    return f"{socket.inet_pton(socket.AF_INET6, address).hex()} 02 40 00 {flags:02x}     eth0\n"


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([], []),
        ([("2001:db8::5", PERMANENT)], ["2001:db8::5"]),
        ([("2001:db8::5", LASTING), ("fd00::5", PERMANENT)], ["2001:db8::5", "fd00::5"]),
        ([("2001:db8::7", TEMPORARY), ("2001:db8::5", LASTING)], ["2001:db8::5"]),
        # Only of one kind is there a lasting one.
        ([("2001:db8::7", TEMPORARY), ("fd00::5", LASTING)], ["fd00::5", "2001:db8::7"]),
        ([("2001:db8::7", TEMPORARY)], ["2001:db8::7"]),
        ([("2001:db8::7", TEMPORARY | DEPRECATED), ("2001:db8::5", DEPRECATED)], []),
        ([("2001:db8::5", TENTATIVE), ("2001:db8::6", DAD_FAILED | PERMANENT)], []),
        ([("2002:a00:1::1", PERMANENT), ("::ffff:192.0.2.1", PERMANENT)], []),
    ],
)
def test_ipv6(found: list[tuple[str, int]], chosen: list[str]) -> None:
    table = [LOOPBACK, LINK_LOCAL, *(line(*address) for address in found)]
    assert choose_ipv6(table) == chosen


def test_default_routes() -> None:
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    rows = [
        "wlan0 00000000 0103000A 0003 0 0 600 00000000 0 0 0\n",
        "eth0 00000000 0101000A 0003 0 0 100 00000000 0 0 0\n",
        "eth0 0001000A 00000000 0001 0 0 100 00FFFFFF 0 0 0\n",
        "tun0 00000000 0108000A 0003 0 0 50 00000080 0 0 0\n",
    ]
    assert default_devices([head, *rows]) == ["eth0", "wlan0"]
    assert default_devices([head]) == default_devices([]) == []


def test_default_routes_of_ipv6() -> None:
    nowhere, via = "0" * 32, "fe80" + "0" * 27 + "1"
    rows = [
        f"{nowhere} 00 {nowhere} 00 {via} 00000400 00000001 00000000 00000003     wlan0\n",
        f"{nowhere} 00 {nowhere} 00 {via} 00000064 00000001 00000000 00000003     eth0\n",
        f"20010db8{'0' * 24} 40 {nowhere} 00 {nowhere} 00000100 00000001 00000000 00000001     dock0\n",
        f"{nowhere} 00 {nowhere} 00 {nowhere} ffffffff 00000001 00000000 00200200       lo\n",
    ]
    assert default_devices6(rows) == ["eth0", "wlan0"]
    assert default_devices6([]) == []


def test_this_machine() -> None:
    assert set(further_uplinks()) <= {*ipv4_addresses(), *ipv6_addresses()}
    for address in ipv4_addresses():
        assert not address.startswith("127.")
        socket.inet_pton(socket.AF_INET, address)
    for address in ipv6_addresses():
        assert not address.startswith("fe8")
        with socket.socket(socket.AF_INET6) as own:
            own.bind((address, 0))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an option of Linux")
def test_a_socket_can_prefer_lasting_addresses_and_an_ipv4_one_is_left_alone() -> None:
    with socket.socket() as four:
        prefer_lasting_source(four)
    if socket.has_ipv6:
        with socket.socket(socket.AF_INET6) as six:
            prefer_lasting_source(six)
            preferences = six.getsockopt(socket.IPPROTO_IPV6, 72)
            assert preferences & 2
