"""Networks of `ntcp lab matrix` that are more than a router for each host: the rows of its strip (pure).

Each is tried with several kinds of routers, one in each column; what else it consists of is always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ntcpsock.testing.natlab import Behaviour, Outward, Way, expected_direct, hairpins, parse_kind

#: Stands for the column's kind in the options of a topology.
KIND = "KIND"

#: A home router, where the column's kind is a carrier's, or an uplink beside it.
HOME = "default"

#: The columns: one of each sort, from the easiest NAT to a network that has a proxy only.
TOPOLOGY_KINDS = (
    "full-cone",
    "cgn",
    "default",
    "openwrt",
    "symmetric",
    "cgn-session",
    "fully-random",
    "mobile",
    "udp-blocked",
    "only-443",
    "proxy-only",
)


@dataclass(frozen=True, slots=True)
class Topology:
    """about: in a few words, of which the column's kind is "it"; options: of `ntcp lab pair`; direct: why there must be
    a direct path with a kind, or None."""

    name: str
    about: str
    options: tuple[str, ...]
    direct: Callable[[str], Way | None]

    def options_with(self, kind: str) -> list[str]:
        """The options for a column."""
        return [kind if word == KIND else word for word in self.options]


def direct_way(nat_a: str, nat_b: str) -> Way | None:
    """Why there must be a direct path, over TCP or UDP; None where there need not be one."""
    return expected_direct(nat_a, nat_b) or expected_direct(nat_a, nat_b, udp=True)


def _of_both(kind: str) -> Way | None:
    """With a home router before it a NAT filters more strictly, and maps as before."""
    way = direct_way(kind, kind)
    return Way.STABLE if way is Way.REACHABLE else way


def _of_one(kind: str) -> Way | None:
    way = direct_way(kind, HOME)
    return Way.STABLE if way is Way.REACHABLE else way


def _of_second_uplink(kind: str) -> Way | None:
    """The other uplink is found by the STUN servers: where the first lets nothing out to them, nobody waits for it."""
    behaviour = parse_kind(kind)
    blocked = isinstance(behaviour, Behaviour) and behaviour.outward in (Outward.ONLY_443, Outward.PROXY)
    return None if blocked else Way.STABLE


_BOTH = ("--nat-a", KIND, "--nat-b", KIND)
_HOMES = ("--nat-a", HOME, "--nat-b", HOME)

_ALL = (
    Topology("same-nat", "both hosts behind it", ("--nat-a", KIND, "--same-nat"), lambda _: Way.NEIGHBOURS),
    Topology(
        "same-carrier",
        f"a {HOME} router each, both behind it as one carrier's NAT",
        (*_HOMES, "--cgn-a", KIND, "--same-cgn"),
        lambda kind: Way.NEIGHBOURS if hairpins(kind) else None,
    ),
    Topology(
        "two-carriers",
        f"a {HOME} router each, each behind it as a carrier's NAT of its own",
        (*_HOMES, "--cgn-a", KIND, "--cgn-b", KIND),
        _of_both,
    ),
    Topology(
        "one-carrier",
        f"a {HOME} router each, the dialer's behind it as a carrier's NAT",
        (*_HOMES, "--cgn-a", KIND),
        _of_one,
    ),
    Topology(
        "equal-lans",
        "each host behind it, both with the same private addresses",
        (*_BOTH, "--same-range"),
        lambda kind: direct_way(kind, kind),
    ),
    Topology(
        "second-uplink",
        f"the dialer behind it and a {HOME} router, the listener behind a {HOME} router",
        ("--nat-a", KIND, "--second-a", HOME, "--nat-b", HOME),
        _of_second_uplink,
    ),
    Topology(
        "ipv6-open",
        "each host behind it, both with IPv6 that lets everything in",
        (*_BOTH, "--ipv6", "open"),
        lambda _: Way.IPV6,
    ),
    Topology(
        "ipv6-firewall",
        "each host behind it, both with IPv6 behind silent firewalls",
        (*_BOTH, "--ipv6", "firewall"),
        lambda _: Way.IPV6,
    ),
    Topology(
        "ipv6-reject",
        "each host behind it, both with IPv6 behind firewalls that answer with RST",
        (*_BOTH, "--ipv6", "reject"),
        lambda _: Way.IPV6,
    ),
    Topology(
        "ipv6-one-side",
        "each host behind it, only the dialer with IPv6",
        (*_BOTH, "--ipv6", "firewall,none"),
        lambda kind: direct_way(kind, kind),
    ),
)

TOPOLOGIES = {topology.name: topology for topology in _ALL}


def topology_cells(names: tuple[str, ...], kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each topology with each kind, the topology first; a carrier has a NAT."""
    return [(name, kind) for name in names for kind in kinds if _fits(TOPOLOGIES[name], kind)]


def _fits(topology: Topology, kind: str) -> bool:
    return "--cgn-a" not in topology.options or parse_kind(kind).translates
