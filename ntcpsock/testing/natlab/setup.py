"""Bring the places of a lab up: devices, addresses, routes and rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ntcpsock.testing.natlab.kinds import (
    LAN,
    PRIVATE_NETWORKS,
    WAN,
    NatKind,
    ipv6_ruleset,
    public_ruleset,
)
from ntcpsock.testing.natlab.namespace import configure
from ntcpsock.testing.natlab.place import Host, Place
from ntcpsock.testing.natlab.topology import (
    CARRIER_NETWORK,
    PUBLIC_ADDRESS,
    SERVER_ADDRESSES,
    SERVER_ADDRESSES6,
    Carrier,
    Uplink,
)

_NO_IPV6 = {"net.ipv6.conf.default.disable_ipv6": "1"}
# No duplicate address detection: an address is of use at once.
_IPV6 = {
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
    "net.ipv6.conf.default.autoconf": "0",
}
_ROUTER_SYSCTLS = {"net.ipv4.ip_forward": "1"}
_ROUTER_SYSCTLS6 = {"net.ipv6.conf.all.forwarding": "1"}
_LOOSE_SOURCES = {"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.default.rp_filter": "0"}
# Windows for hundreds of MB/s at 100 ms; and no memory of earlier connections, so that each run is like the
# first. The congestion control stays the machine's default: on a wire that loses nothing, cubic, bbr and reno
# came out alike, and the kernel lets a namespace choose only among the unrestricted ones anyway.
_HOST_WISHES = {
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 65536 67108864",
    "net.ipv4.tcp_no_metrics_save": "1",
}


def prepare(place: Place, *, ipv6: bool) -> None:
    """What must hold before a place has devices."""
    configure(place.namespace, wishes=_IPV6 if ipv6 else _NO_IPV6)


def set_up_public(
    public: Place, server: Host, routes: Iterable[tuple[str, str]], mtu: dict[str, int], *, ipv6: bool
) -> None:
    """The public segment and the server. `routes`: the device of each way in, and a network behind it."""
    near = [address.rpartition(".")[0] + ".1" for address in SERVER_ADDRESSES]
    near6 = [address.rpartition(":")[0] + ":1" for address in SERVER_ADDRESSES6]
    configure(
        public.namespace,
        sysctls=_forwarding(ipv6),
        wishes=_LOOSE_SOURCES,
        links=[
            f"address add {PUBLIC_ADDRESS}/32 dev lo",
            f"link add srv0 type veth peer name eth0 netns {server.namespace}",
            *(f"address add {address}/24 dev srv0" for address in near),
            *(f"address add {address}/64 dev srv0 nodad" for address in near6 if ipv6),
            "link set srv0 up",
            *(f"link set {device} mtu {size} up" for device, size in mtu.items()),
            *(f"route add {network} dev {device}" for device, network in routes),
            *(f"route add blackhole {network}" for network in PRIVATE_NETWORKS),
        ],
        rules=public_ruleset(),
    )
    configure(
        server.namespace,
        wishes=_HOST_WISHES | _LOOSE_SOURCES,
        links=[
            *(f"address add {address}/24 dev eth0" for address in SERVER_ADDRESSES),
            *(f"address add {address}/64 dev eth0 nodad" for address in SERVER_ADDRESSES6 if ipv6),
            "link set eth0 up",
            f"route add default via {near[0]}",
            *([f"route add ::/0 via {near6[0]}"] if ipv6 else []),
        ],
    )


def set_up_uplink(uplink: Uplink, ipv6: str) -> None:
    """A router and its hosts' ends of the LAN."""
    router = uplink.router
    links = [f"link add {LAN} type bridge", f"address add {uplink.gateway}/24 dev {LAN}"]
    for number, host in enumerate(uplink.hosts):
        device = host.devices[router.name]
        links += [
            f"link add port{number} type veth peer name {device} netns {host.namespace}",
            f"link set port{number} master {LAN} up",
        ]
    links += _wan_lines(
        router.kind, uplink.translates, router.public_address, uplink.gateway, uplink.link.mtu
    )
    links.append(f"link set {LAN} up")
    if ipv6 != "none":
        links += [f"address add {uplink.side.public6}:1/64 dev {LAN} nodad", f"route add ::/0 dev {WAN}"]
    configure(
        router.namespace,
        sysctls=_forwarding(ipv6 != "none"),
        wishes=_LOOSE_SOURCES,
        links=links,
        rules=_rules(router.kind) + _rules6(ipv6),
    )


def set_up_carrier(carrier: Carrier, *, ipv6: bool) -> None:
    """A carrier's router and its ends of the customers' links."""
    router = carrier.router
    inner = [net for net in PRIVATE_NETWORKS if net != CARRIER_NETWORK]
    links = [
        f"address add {carrier.gateway}/32 dev lo",
        *(f"link set {u.parent_device} mtu {u.link.mtu} up" for u in carrier.customers),
        *(
            f"route add {u.wan_network}.0/24 dev {u.parent_device} src {carrier.gateway}"
            for u in carrier.customers
        ),
        *_wan_lines(router.kind, True, router.public_address, carrier.gateway, carrier.link.mtu),
        *(f"route add blackhole {network}" for network in inner),
    ]
    if ipv6:
        links += [f"route add {u.side.public6}:/64 dev {u.parent_device}" for u in carrier.customers]
        links.append(f"route add ::/0 dev {WAN}")
    configure(
        router.namespace,
        sysctls=_forwarding(ipv6),
        wishes=_LOOSE_SOURCES,
        links=links,
        rules=_rules(router.kind),
    )


def set_up_host(host: Host, uplinks: Sequence[Uplink], *, ipv6: bool) -> None:
    """A host's addresses and routes; the first uplink is its default, each other goes with its own address."""
    links: list[str] = []
    links6: list[str] = []
    for number, uplink in enumerate(uplinks):
        device = host.devices[uplink.router.name]
        address = host.addresses[number]
        links += [f"address add {address}/24 dev {device}", f"link set {device} up"]
        if ipv6:
            links.append(f"address add {host.addresses6[number]}/64 dev {device} nodad")
            links.append(f"route add ::/0 via {uplink.side.public6}:1 dev {device} metric {number + 1}")
        links.append(f"route add default via {uplink.gateway} metric {number + 1}")
        if number:
            table = 100 + number
            links += [
                f"route add default via {uplink.gateway} dev {device} table {table}",
                f"rule add from {address} table {table}",
            ]
            if ipv6:
                links6 += [
                    f"route add default via {uplink.side.public6}:1 dev {device} table {table}",
                    f"rule add from {host.addresses6[number]} table {table}",
                ]
    wishes = _HOST_WISHES | (_LOOSE_SOURCES if len(uplinks) > 1 else {})
    configure(host.namespace, wishes=wishes, links=links, links6=links6)


def _wan_lines(kind: object, translates: bool, public: str, gateway: str, mtu: int) -> list[str]:
    """The router's own end of its link.

    A user-space NAT has the public address itself: the kernel must not, or it would take what is for the NAT.
    """
    lines = [f"link set {WAN} mtu {mtu} up"]
    if isinstance(kind, NatKind):
        if translates:
            lines.insert(0, f"address add {public}/32 dev {WAN}")
        return [*lines, f"route add default dev {WAN}"]
    return [*lines, f"route add default dev {WAN} src {gateway}"]


def _rules(kind: object) -> str:
    return kind.ruleset() if isinstance(kind, NatKind) else ""


def _rules6(ipv6: str) -> str:
    return ipv6_ruleset(reject=ipv6 == "reject") if ipv6 in ("firewall", "reject") else ""


def _forwarding(ipv6: bool) -> dict[str, str]:
    return _ROUTER_SYSCTLS | (_ROUTER_SYSCTLS6 if ipv6 else {})
