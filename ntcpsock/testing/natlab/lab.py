"""The lab: two hosts behind their routers, a server host, and the public segment between."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from ntcpsock.testing.natlab import proxy, setup
from ntcpsock.testing.natlab.kinds import NatKind
from ntcpsock.testing.natlab.link import Link
from ntcpsock.testing.natlab.namespace import (
    LabUnavailable,
    add_namespace,
    namespaces_available,
    new_tag,
    remove_namespaces,
)
from ntcpsock.testing.natlab.place import Host, Place, Router
from ntcpsock.testing.natlab.presets import parse_kind
from ntcpsock.testing.natlab.router.behaviour import Behaviour, Outward
from ntcpsock.testing.natlab.sighting import HostSightings, Sighting, from_wire
from ntcpsock.testing.natlab.topology import (
    SECOND_A,
    SERVER_ADDRESSES,
    SERVER_ADDRESSES6,
    SIDE_A,
    SIDE_B,
    Carrier,
    Side,
    Uplink,
    customer_device,
    customer_network,
    public_address,
)
from ntcpsock.testing.natlab.wire_process import WireProcess

IPV6 = ("none", "open", "firewall", "reject")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a lab shall be: the arguments of `open_lab`, read."""

    nat_a: NatKind | Behaviour
    nat_b: NatKind | Behaviour
    link_a: Link
    link_b: Link
    cgn_a: NatKind | Behaviour | None = None
    cgn_b: NatKind | Behaviour | None = None
    second_a: NatKind | Behaviour | None = None
    same_nat: bool = False
    same_cgn: bool = False
    same_range: bool = False
    ipv6: tuple[str, str] = ("none", "none")
    device: str = "auto"
    seed: int | None = None
    record: bool = False

    @property
    def has_ipv6(self) -> bool:
        return self.ipv6 != ("none", "none")


class Lab:
    """An open lab. Made by `open_lab`."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._tag = new_tag()
        self._owner = os.getpid()
        self._wire: WireProcess | None = None
        self._watched: list[HostSightings] = []
        self.delay = wishes.link_a.delay
        """One-way seconds of the link between router A and the public segment."""
        self.public = Place("public", self._tag + "public")
        """The router in the middle of the public segment."""
        self.cgn_a: Router | None = None
        """The carrier's router before router A."""
        self.cgn_b: Router | None = None
        self._carriers: list[Carrier] = []
        side_b = replace(SIDE_B, private=SIDE_A.private) if wishes.same_range else SIDE_B
        a = self._uplink(SIDE_A, wishes.nat_a, wishes.link_a, wishes.cgn_a)
        self._uplinks = [a]
        self.nat_a = a.router
        if wishes.same_nat:
            b = a
        else:
            shared = self._carriers[0] if wishes.same_cgn else None
            b = self._uplink(side_b, wishes.nat_b, wishes.link_b, wishes.cgn_b, shared)
            self._uplinks.append(b)
        self.nat_b = b.router
        second = [] if wishes.second_a is None else [self._uplink(SECOND_A, wishes.second_a, wishes.link_a)]
        self._uplinks += second
        self.second_nat_a = second[0].router if second else None
        """The other router of a multi-homed host A."""
        self.host_a = self._host("a", [a, *second])
        self.host_b = self._host("b", [b])
        for carrier in self._carriers:
            if carrier.customers[0] is a:
                self.cgn_a = carrier.router
            if b in carrier.customers or (wishes.same_nat and carrier.customers[0] is a):
                self.cgn_b = carrier.router
        self.server = Host("server", self._tag + "server", SERVER_ADDRESSES[0])
        self.server_addresses = SERVER_ADDRESSES
        """Two public addresses of the server host."""
        self.ipv6 = wishes.ipv6
        """How host A and host B have IPv6."""
        self.server_addresses6: tuple[str, ...] = SERVER_ADDRESSES6 if wishes.has_ipv6 else ()
        """The same for IPv6, where the lab has it."""
        for router in self.routers:
            router._lab = self

    @property
    def path_rtt(self) -> float:
        """Seconds from host A to host B and back: two of each link's delay, or next to nothing on one LAN."""
        if self.nat_a is self.nat_b:
            return 0.0
        return 2 * (self._wishes.link_a.delay + self._wishes.link_b.delay)

    @property
    def public_address_a(self) -> str:
        """The address as which the world sees host A: of its NAT, or of the carrier's before that."""
        return (self.cgn_a or self.nat_a).public_address

    @property
    def public_address_b(self) -> str:
        """The same for host B."""
        return (self.cgn_b or self.nat_b).public_address

    @property
    def routers(self) -> list[Router]:
        """Every router, the carriers' last."""
        return [uplink.router for uplink in self._uplinks] + [carrier.router for carrier in self._carriers]

    @property
    def places(self) -> list[Place]:
        """Every place, each once."""
        return [self.host_a, self.host_b, self.server, *self.routers, self.public]

    def wire_counters(self) -> list[dict[str, float]]:
        """What each direction has carried and dropped, and its worst lateness in seconds.

        In this order: out of side A, into side A, out of side B, into side B, then the same for the second router of
        a multi-homed host A, and for each carrier.
        """
        counters: list[dict[str, float]] = self._ask("counters")
        return counters

    def open(self) -> None:
        """Build everything. Raises LabUnavailable where this process may not; `close` it in any case."""
        for place in self.places:
            add_namespace(place.namespace)
        entries: list[Uplink | Carrier] = [*self._uplinks, *self._carriers]
        self._wire = WireProcess(
            [entry.wire_entry() for entry in entries],
            [place.namespace for place in self.places],
            self._wishes.device,
            self._wishes.seed,
            record=self._wishes.record,
        )
        ipv6 = self._wishes.has_ipv6
        for place in self.places:
            setup.prepare(place, ipv6=ipv6)
        self._wire.wait_ready()
        self._set_up_public()
        for carrier in self._carriers:
            setup.set_up_carrier(carrier, ipv6=ipv6)
        kinds6 = dict(zip((self.nat_b, self.nat_a), self._wishes.ipv6[::-1], strict=True))
        for uplink in self._uplinks:
            setup.set_up_uplink(uplink, kinds6.get(uplink.router, self._wishes.ipv6[0]))
        for host in (self.host_a, self.host_b):
            behind = [uplink for uplink in self._uplinks if host in uplink.hosts]
            with6 = ipv6 and bool(host.addresses6)
            setup.set_up_host(host, behind, ipv6=with6)
        for entry in entries:
            kind = entry.router.kind
            if isinstance(kind, Behaviour) and kind.outward is Outward.PROXY:
                self._start_proxy(entry)
        if self._wishes.record:
            self._watched = [HostSightings(host) for host in (self.host_a, self.host_b)]

    def sightings(self) -> list[Sighting]:
        """Every packet at both hosts and on the links until now, the earliest first; the hosts' end with this.
        Empty unless the lab was opened with `record`."""
        at_hosts = [sighting for watched in self._watched for sighting in watched.stop()]
        return sorted(at_hosts + from_wire(self._ask("sightings")), key=lambda sighting: sighting.time)

    def close(self) -> None:
        """End every process, stop the wire, remove the namespaces. Repeating it is harmless."""
        if os.getpid() != self._owner:  # a forked child leaves the `with` block too
            return
        for place in self.places:
            place.terminate()
        for place in self.places:
            place.reap()
        if self._wire is not None:
            wire, self._wire = self._wire, None
            wire.stop()
        remove_namespaces([place.namespace for place in self.places])

    def _uplink(
        self,
        side: Side,
        kind: NatKind | Behaviour,
        link: Link,
        cgn: NatKind | Behaviour | None = None,
        shared: Carrier | None = None,
    ) -> Uplink:
        carrier = shared or (None if cgn is None else self._carrier(side, cgn, link))
        device = f"link-{side.letter}"
        if carrier is None:
            network, parent = side.public, self.public
        else:
            number = len(carrier.customers)
            network, parent, device = customer_network(number), carrier.router, customer_device(number)
        name = f"nat-{side.letter}"
        router = Router(name, self._tag + name, kind, public_address(kind, network))
        uplink = Uplink(router, side, network, parent, device, link, behind_carrier=carrier is not None)
        if carrier is not None:
            carrier.customers.append(uplink)
        return uplink

    def _carrier(self, side: Side, kind: NatKind | Behaviour, link: Link) -> Carrier:
        name = f"cgn-{side.letter}"
        router = Router(name, self._tag + name, kind, public_address(kind, side.public))
        # The customer's link has all the delay, so the path is as long as without a carrier.
        far = Link(delay=0.0, mtu=link.mtu)
        carrier = Carrier(router, side, self.public, f"link-{side.letter}", far)
        self._carriers.append(carrier)
        return carrier

    def _host(self, letter: str, uplinks: list[Uplink]) -> Host:
        ipv6 = self._wishes.ipv6[letter == "b"] != "none"
        addresses, addresses6 = [], []
        for uplink in uplinks:
            number = len(uplink.hosts)
            addresses.append(uplink.host_address(number))
            if ipv6:
                addresses6.append(f"{uplink.side.public6}:{10 + number}")
        host = Host(f"host-{letter}", self._tag + letter, *addresses)
        host.addresses6 = tuple(addresses6)
        for number, uplink in enumerate(uplinks):
            uplink.hosts.append(host)
            host.devices[uplink.router.name] = f"eth{number}"
        return host

    def _set_up_public(self) -> None:
        entries: list[Uplink | Carrier] = [
            *(uplink for uplink in self._uplinks if not uplink.behind_carrier),
            *self._carriers,
        ]
        routes = []
        for entry in entries:
            routes.append((entry.parent_device, f"{entry.side.public}.0/24"))
            if self._wishes.has_ipv6:
                customers = entry.customers if isinstance(entry, Carrier) else [entry]
                routes += [(entry.parent_device, f"{customer.side.public6}:/64") for customer in customers]
        setup.set_up_public(
            self.public,
            self.server,
            routes,
            {entry.parent_device: entry.link.mtu for entry in entries},
            ipv6=self._wishes.has_ipv6,
        )

    def _start_proxy(self, entry: Uplink | Carrier) -> None:
        argv = [sys.executable, "-m", proxy.__name__, entry.gateway, str(proxy.PORT)]
        process = entry.router.popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            if process.stdout.readline() != "ready\n":
                raise LabUnavailable("the proxy does not start: see its error above")
        entry.router.proxy = (entry.gateway, proxy.PORT)
        for uplink in entry.customers if isinstance(entry, Carrier) else [entry]:
            for host in uplink.hosts:
                # A second uplink leads out beside the first.
                if uplink.router.name in list(host.devices)[:1] and host.proxy is None:
                    host.proxy = entry.router.proxy

    def _ask(self, what: str, router: Router | None = None, **more: Any) -> Any:
        assert self._wire is not None
        return self._wire.ask(what, None if router is None else router.name, **more)

    def _forward(self, router: Router, port: int, inner: tuple[str, int] | None) -> None:
        number = None if inner is None else (int(IPv4Address(inner[0])), inner[1])
        self._ask("forward", router, port=port, inner=number)

    def _gateway(self, router: Router) -> str:
        entries: list[Uplink | Carrier] = [*self._uplinks, *self._carriers]
        return next(entry.gateway for entry in entries if entry.router is router)

    def _mappings(self, router: Router) -> list[dict[str, Any]]:
        return [
            {
                "protocol": row["protocol"],
                "inner": _place(row["inner"]),
                "outer": _place(row["outer"]),
                "remotes": [_place(remote) for remote in row["remotes"]],
            }
            for row in self._ask("mappings", router)
        ]


def _place(endpoint: list[int]) -> tuple[str, int]:
    return str(IPv4Address(endpoint[0])), endpoint[1]


@contextlib.contextmanager
def open_lab(
    nat_a: str | NatKind | Behaviour = "default",
    nat_b: str | NatKind | Behaviour = "default",
    *,
    delay: float = 0.025,
    link_a: Link | None = None,
    link_b: Link | None = None,
    same_nat: bool = False,
    same_private_range: bool = False,
    cgn_a: str | NatKind | Behaviour | None = None,
    cgn_b: str | NatKind | Behaviour | None = None,
    same_cgn: bool = False,
    second_a: str | NatKind | Behaviour | None = None,
    ipv6: str | tuple[str, str] = "none",
    device: str = "auto",
    seed: int | None = None,
    record: bool = False,
) -> Iterator[Lab]:
    """Build a lab, lend it, and remove it.

        host A - router A ==== public segment ==== router B - host B
                                      |
                                    server (two public addresses)

    `nat_a`, `nat_b`: kinds of the routers, see `parse_kind`: real Linux ones, presets, or a `Behaviour`.
    `delay`: one-way seconds of each link drawn double; the round trip from a host to the server takes 2 of
    them, to the other host 4. `link_a`, `link_b`: everything about the link of one side, instead.
    `same_nat`: both hosts on the LAN of router A (`nat_b` is not used then).
    `same_private_range`: both private networks have the same addresses, and so have both hosts.
    `cgn_a`, `cgn_b`: a carrier's NAT before router A or B. `same_cgn`: router B behind `cgn_a` too.
    `second_a`: another router for host A, on another network: it is multi-homed then.
    `ipv6`: of both hosts, or (A, B): "none", "open", "firewall" (stateful, silent) or "reject" (stateful, answers).
    `device`: what the wire uses: "tun", "packet" (packet sockets on veth pairs), or "auto": TUN where it may be
    opened. `seed`: makes what user-space routers and links do by chance the same again. `record`: note every packet,
    for `Lab.sightings`.

    Raises LabUnavailable where `namespaces_available` has a reason, and ValueError for what does not fit together.
    Whatever ends the owner (an exception, Ctrl-C, SIGTERM, SIGKILL), no process and no namespace of it stays.
    """
    both6 = (ipv6, ipv6) if isinstance(ipv6, str) else ipv6
    if not set(both6) <= set(IPV6):
        raise ValueError(f"ipv6 is one of {', '.join(IPV6)}, or two of them, not {ipv6!r}")
    if same_cgn and (cgn_a is None or cgn_b is not None or same_nat):
        raise ValueError("same_cgn puts router B behind cgn_a: give cgn_a alone, and no same_nat")
    wishes = Wishes(
        nat_a=parse_kind(nat_a),
        nat_b=parse_kind(nat_b),
        link_a=link_a or Link(delay),
        link_b=link_b or Link(delay),
        cgn_a=None if cgn_a is None else parse_kind(cgn_a),
        cgn_b=None if cgn_b is None else parse_kind(cgn_b),
        second_a=None if second_a is None else parse_kind(second_a),
        same_nat=same_nat,
        same_cgn=same_cgn,
        same_range=same_private_range,
        ipv6=both6,
        device=device,
        seed=seed,
        record=record,
    )
    reason = namespaces_available()
    if reason is not None:
        raise LabUnavailable(reason)
    lab = Lab(wishes)
    try:
        lab.open()
        yield lab
    finally:
        lab.close()
