"""Pairs of routers that have a direct path: a stream that began on the relay goes over to it when it is let through."""

from __future__ import annotations

import pytest

from benchmarks.climb import measure
from ntcpsock.testing.natlab import namespaces_available

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(200),
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

SLOW = [
    ("default", "default"),
    ("none", "mobile"),
    ("full-cone", "fully-random"),
    ("cgn-session", "openwrt"),
    ("cisco", "apdm+preserving"),
]


@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [("symmetric", "default"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)],
)
def test_a_pair_leaves_the_relay(nat_a: str, nat_b: str) -> None:
    climb = measure(nat_a, nat_b, 2.0)
    assert not climb.message
    assert climb.technique not in ("", "relay", "turn")
    assert climb.seconds is not None
