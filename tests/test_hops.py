"""The TTL that passes our own NAT and not the other side's: what answers mean, and that it is right in the lab."""

from __future__ import annotations

import pytest
import trio

from ntcpsock._traversal.hops import MAX_HOPS, choose_low_ttl, find_low_ttl
from ntcpsock.testing.pytest_plugin import NatLabFactory

OURS, PEER = "192.0.2.1", "198.51.100.2"


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        ({1: "192.168.1.1", 2: "203.0.113.1", 3: "203.0.113.9"}, 2),
        # A carrier's NAT is the outermost one; its customers' network does not count.
        ({1: "192.168.1.1", 2: "100.64.0.1", 3: "10.9.0.1", 4: "203.0.113.1"}, 4),
        # A NAT that complains under its public address has not let it pass; and the other side's is too far.
        ({1: OURS, 2: "203.0.113.1"}, 2),
        ({1: "10.0.0.1", 2: PEER}, None),
        # Hops that keep silent.
        ({3: "203.0.113.1"}, 3),
        ({}, None),
    ],
)
def test_what_the_answers_mean(answered: dict[int, str], expected: int | None) -> None:
    assert choose_low_ttl(answered, frozenset({OURS, PEER})) == expected


async def test_ipv6_is_not_looked_at() -> None:
    assert await find_low_ttl("2001:db8::1", frozenset()) is None


def look(remote: str, own: str) -> int | None:
    return trio.run(find_low_ttl, remote, frozenset({own}))


@pytest.mark.lab
@pytest.mark.parametrize(
    ("nat_a", "cgn_a", "expected"),
    [
        ("default", None, 2),
        ("openwrt", None, 2),
        ("linux", "cgn", 3),
        ("default", "default", 3),
        ("udp-blocked", None, None),
    ],
)
def test_in_the_lab(nat_lab: NatLabFactory, nat_a: str, cgn_a: str | None, expected: int | None) -> None:
    lab = nat_lab(nat_a, "linux", delay=0.005, cgn_a=cgn_a)
    assert lab.host_a.call(look, lab.public_address_b, lab.public_address_a) == expected


def test_no_more_than_a_few_packets_and_none_that_goes_far(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr("ntcpsock._traversal.hops._send", lambda sock, host, ttl: sent.append((host, ttl)))
    monkeypatch.setattr("ntcpsock._traversal.hops.PROBE_DEADLINE", 0.05)
    assert look(PEER, OURS) is None
    assert sent == [(PEER, ttl) for ttl in range(1, MAX_HOPS + 1)]
