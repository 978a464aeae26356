"""Who is where in a lab: its routers, what hangs behind each, and their addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ntcpsock.testing.natlab.kinds import LAN, PRIVATE_NETWORKS, SECOND_LAN, WAN, NatKind
from ntcpsock.testing.natlab.link import Link
from ntcpsock.testing.natlab.place import Host, Place, Router
from ntcpsock.testing.natlab.router.behaviour import Behaviour

# Addresses that look public everywhere (miniupnpd, for one, maps nothing on a documentation range); they
# exist inside the namespaces only.
SERVER_ADDRESSES = ("11.22.55.2", "11.22.66.2")
SERVER_ADDRESSES6 = ("2001:db8:55::2", "2001:db8:66::2")
PUBLIC_ADDRESS = "11.22.0.1"
CARRIER_NETWORK = "100.64.0.0/10"
_CARRIER_GATEWAY = "100.64.0.1"


@dataclass(frozen=True, slots=True)
class Side:
    """The addresses of one side. `public` and `private` are the first three bytes of a /24, `public6` a /64's."""

    letter: str
    public: str
    private: str
    public6: str


SIDE_A = Side("a", "11.22.33", "10.1.0", "2001:db8:33:")
SIDE_B = Side("b", "11.22.44", "10.2.0", "2001:db8:44:")
SECOND_A = Side("a2", "11.22.35", "10.3.0", "2001:db8:35:")


@dataclass(slots=True)
class Uplink:
    """A router and its way to the world."""

    router: Router
    side: Side
    wan_network: str
    """First three bytes of the /24 that leads to it."""
    parent: Place
    """Where the far end of its link is: the public segment or a carrier's router."""
    parent_device: str
    link: Link
    hosts: list[Host] = field(default_factory=list)
    behind_carrier: bool = False

    @property
    def translates(self) -> bool:
        return self.router.kind.translates

    @property
    def lan(self) -> str:
        """First three bytes of the hosts' network."""
        return self.side.private if self.translates else self.wan_network

    @property
    def gateway(self) -> str:
        return f"{self.lan}.1"

    def host_address(self, number: int = 0) -> str:
        return f"{self.lan}.{10 + number}"

    def wire_entry(self) -> dict[str, Any]:
        """What the wire must know."""
        networks = [net for net in PRIVATE_NETWORKS if not (self.behind_carrier and net == CARRIER_NETWORK)]
        return _wire_entry(self.router, self.gateway, self.parent, self.parent_device, self.link, networks)


@dataclass(slots=True)
class Carrier:
    """A carrier's router with its customers' routers behind."""

    router: Router
    side: Side
    parent: Place
    parent_device: str
    link: Link
    customers: list[Uplink] = field(default_factory=list)
    gateway: str = _CARRIER_GATEWAY

    def wire_entry(self) -> dict[str, Any]:
        """What the wire must know."""
        networks = list(PRIVATE_NETWORKS)
        return _wire_entry(self.router, self.gateway, self.parent, self.parent_device, self.link, networks)


def customer_network(number: int) -> str:
    """First three bytes of the carrier-side /24 of a customer."""
    return f"100.64.{number + 1}"


def customer_device(number: int) -> str:
    """The carrier's end of the link to a customer."""
    return (LAN, SECOND_LAN)[number]


def public_address(kind: NatKind | Behaviour, network: str) -> str:
    """What the world sees: the address of the NAT, or of the host."""
    return f"{network}.2" if kind.translates else f"{network}.10"


def _wire_entry(
    router: Router, gateway: str, parent: Place, parent_device: str, link: Link, networks: list[str]
) -> dict[str, Any]:
    kind = router.kind
    nat = None
    if isinstance(kind, Behaviour):
        addresses = (int(IPv4Address(router.public_address)), int(IPv4Address(gateway)))
        nat = (kind, *addresses, [IPv4Network(net) for net in networks])
    return {
        "router": router.name,
        "ends": [(router.namespace, WAN), (parent.namespace, parent_device)],
        "link": link,
        "nat": nat,
    }
