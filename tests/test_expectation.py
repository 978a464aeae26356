"""Which pairs of routers have a direct path: the yardstick of `ntcp lab matrix`."""

from __future__ import annotations

import pytest

from ntcpsock.cli.matrix import DEFAULT_KINDS
from ntcpsock.testing.natlab import Way, expected_direct, gives_ports_sparingly, hairpins

REACHABLE, STABLE, PREDICTABLE = Way.REACHABLE, Way.STABLE, Way.PREDICTABLE


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "way"),
    [
        # One side can be reached: by anybody, or by whoever has the right address.
        ("none", "none", REACHABLE),
        ("none", "fully-random", REACHABLE),
        ("none-accept", "mobile", REACHABLE),
        ("full-cone", "mobile", REACHABLE),
        ("cgn", "cisco", REACHABLE),
        ("rfc", "fully-random", REACHABLE),
        ("eim+adf+random", "random", REACHABLE),
        ("firewall+adf", "mobile", REACHABLE),
        # Both show the same port to everybody, and are strict.
        ("default", "default", STABLE),
        ("reject", "openwrt", STABLE),
        ("firewall", "mikrotik", STABLE),
        ("linux", "udp-blocked", STABLE),
        ("eim+band=64", "eim+random", STABLE),
        # Other ports for others, but foreseeable ones.
        ("default", "symmetric", PREDICTABLE),
        ("symmetric", "mobile-sequential", PREDICTABLE),
        ("firewall", "apdm+preserving", PREDICTABLE),
        ("adm+sequential=-2", "adm+preserving=7", PREDICTABLE),
        ("cgn-session", "cgn-session", PREDICTABLE),
        ("apdm+band=512", "default", PREDICTABLE),
        # Being let in by address is of no use where nobody knows the port.
        ("adm+adf+sequential", "default", PREDICTABLE),
        ("apdm+eif+band=256", "default", PREDICTABLE),
        # Unforeseeable.
        ("default", "random", None),
        ("fully-random", "fully-random", None),
        ("firewall", "cisco", None),
        ("apdm+band=1024", "default", None),
        ("apdm+eif+random", "default", None),
        ("symmetric", "mobile", None),
        # Nothing gets out.
        ("none", "only-443", None),
        ("proxy-only", "none", None),
    ],
)
def test_pairs(nat_a: str, nat_b: str, way: Way | None) -> None:
    assert expected_direct(nat_a, nat_b) is way
    assert expected_direct(nat_b, nat_a) is way


def test_only_predictable_pairs_predict() -> None:
    assert [way for way in Way if way.predicts] == [PREDICTABLE]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown"):
        expected_direct("default", "nonsense")


@pytest.mark.parametrize(
    ("nat", "sparing"),
    [
        ("cgn-session", True),
        ("apdm+band=512", True),
        ("cgn", False),
        ("apdm+band=1024", False),
        ("mobile", False),
        ("default", False),
        ("only-443", False),
    ],
)
def test_small_blocks_of_ports(nat: str, sparing: bool) -> None:
    assert gives_ports_sparingly(nat) is sparing


def test_the_matrix_has_every_kind_of_pair() -> None:
    assert len(set(DEFAULT_KINDS)) >= 12
    ways = {expected_direct(a, b) for a in DEFAULT_KINDS for b in DEFAULT_KINDS}
    the_labs = {Way.MAPPED, Way.RELAYED, Way.NEIGHBOURS, Way.IPV6}  # to say
    assert ways == {*Way, None} - the_labs


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "way"),
    [
        ("none", "mobile", REACHABLE),
        ("rfc", "fully-random", REACHABLE),
        ("default", "firewall", STABLE),
        ("cisco", "cisco", PREDICTABLE),  # where TCP draws from thousands of ports
        ("symmetric", "cgn-session", PREDICTABLE),
        ("mobile", "mobile", None),
        ("default", "random", None),
        ("udp-blocked", "none", None),
        ("only-443", "none", None),
    ],
)
def test_pairs_over_udp(nat_a: str, nat_b: str, way: Way | None) -> None:
    assert expected_direct(nat_a, nat_b, udp=True) is way
    assert expected_direct(nat_b, nat_a, udp=True) is way


@pytest.mark.parametrize(
    ("nat", "leads_back"), [("cgn", True), ("cgn-session", False), ("default", False), ("only-443", False)]
)
def test_carriers_that_lead_back_in(nat: str, leads_back: bool) -> None:
    assert hairpins(nat) is leads_back
