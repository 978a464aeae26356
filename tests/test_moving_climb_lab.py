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

#: Whose ports have to be foreseen, of a block that earlier looks have taken ports of.
FROM_A_BLOCK = [("cisco", "cgn-session"), ("cgn-session", "cisco"), ("udp-blocked", "cgn-session")]


@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [("symmetric", "default"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)],
)
def test_a_pair_leaves_the_relay(nat_a: str, nat_b: str) -> None:
    climb = measure(nat_a, nat_b, 2.0)
    assert not climb.message
    assert climb.technique not in ("", "relay", "turn")
    assert climb.seconds is not None


@pytest.mark.slow
@pytest.mark.parametrize(("nat_a", "nat_b"), FROM_A_BLOCK)
def test_looking_in_vain_leaves_ports_to_be_found(nat_a: str, nat_b: str) -> None:
    climb = measure(nat_a, nat_b, 11.0)
    assert not climb.message
    assert climb.technique in ("udp-predict", "tcp-predict")


@pytest.mark.slow
def test_after_the_move_the_throughput_is_the_direct_path_s() -> None:
    """Beside a stream that was direct from the start, on the same machine in turns."""
    climb = measure("default", "default", 3.0, throughput=True)
    assert not climb.message
    assert climb.beside == climb.technique
    assert climb.relayed > 0
    # Less than what the benchmark asks for: the machine is busy with other tests.
    assert climb.moved > 0.5 * climb.direct


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nat_a", "nat_b"), [("cgn-session", "symmetric"), ("apdm+preserving", "cgn-session")]
)
def test_a_burst_in_vain_leaves_ports_for_the_relay_and_is_made_again(nat_a: str, nat_b: str) -> None:
    """A block of 256 ports, whose NAT has seen all that was tried."""
    climb = measure(nat_a, nat_b, 25.0, beyond=True)
    assert not climb.message
    assert climb.technique in ("udp-predict", "tcp-predict")
    # In the midst of a full try, or in the next one.
    assert climb.seconds is not None
    assert climb.seconds < 15
    assert climb.held < 256
