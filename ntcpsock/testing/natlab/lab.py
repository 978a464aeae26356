"""The lab: two hosts behind their routers, a server host, and the public segment between."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ntcpsock.testing.natlab.kinds import LAN, PRIVATE_NETWORKS, WAN, NatKind, public_ruleset
from ntcpsock.testing.natlab.namespace import (
    LabUnavailable,
    add_namespace,
    configure,
    namespaces_available,
    new_tag,
    remove_namespaces,
)
from ntcpsock.testing.natlab.place import Host, Place, Router

# Addresses that look public everywhere (miniupnpd, for one, maps nothing on a documentation range); they
# exist inside the namespaces only.
SERVER_ADDRESSES = ("11.22.55.2", "11.22.66.2")
_PUBLIC_ADDRESS = "11.22.0.1"

_NO_IPV6 = {"net.ipv6.conf.default.disable_ipv6": "1"}
_ROUTER_SYSCTLS = {"net.ipv4.ip_forward": "1"}
_LOOSE_SOURCES = {"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.default.rp_filter": "0"}
# Windows for hundreds of MB/s at 100 ms; and no memory of earlier connections, so that each run is like the
# first. The congestion control stays the machine's default: on a wire that loses nothing, cubic, bbr and reno
# came out alike, and the kernel lets a namespace choose only among the unrestricted ones anyway.
_HOST_WISHES = {
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 65536 67108864",
    "net.ipv4.tcp_no_metrics_save": "1",
}


@dataclass(frozen=True, slots=True)
class _Side:
    """The addresses of one side. `public` and `private` are the first three bytes of a /24."""

    letter: str
    public: str
    private: str

    def lan(self, kind: NatKind) -> str:
        return self.private if kind.translates else self.public

    def host_address(self, kind: NatKind, number: int = 0) -> str:
        return f"{self.lan(kind)}.{10 + number}"

    def public_address(self, kind: NatKind) -> str:
        return f"{self.public}.2" if kind.translates else self.host_address(kind)


class Lab:
    """An open lab. Made by `open_lab`."""

    def __init__(
        self, nat_a: NatKind, nat_b: NatKind, delay: float, same_nat: bool, same_range: bool, device: str
    ) -> None:
        side_a = _Side("a", "11.22.33", "10.1.0")
        side_b = _Side("b", "11.22.44", "10.1.0" if same_range else "10.2.0")
        self._tag = new_tag()
        self._sides = [side_a] if same_nat else [side_a, side_b]
        self._owner = os.getpid()
        self._device = device
        self._wire: subprocess.Popen[str] | None = None
        self.delay = delay
        """One-way seconds of each link between a router and the public segment."""
        self.nat_a = self._router(side_a, nat_a)
        self.nat_b = self.nat_a if same_nat else self._router(side_b, nat_b)
        self.host_a = Host("host-a", self._tag + "a", side_a.host_address(nat_a))
        address_b = side_a.host_address(nat_a, 1) if same_nat else side_b.host_address(nat_b)
        self.host_b = Host("host-b", self._tag + "b", address_b)
        self.server = Host("server", self._tag + "server", SERVER_ADDRESSES[0])
        self.server_addresses = SERVER_ADDRESSES
        """Two public addresses of the server host."""
        self.public = Place("public", self._tag + "public")
        """The router in the middle of the public segment."""

    @property
    def path_rtt(self) -> float:
        """Seconds from host A to host B and back: four times the delay, or next to nothing on one LAN."""
        return 0.0 if self.nat_a is self.nat_b else 4 * self.delay

    @property
    def places(self) -> list[Place]:
        """Every place, each once."""
        routers = [self.nat_a] if self.nat_b is self.nat_a else [self.nat_a, self.nat_b]
        return [self.host_a, self.host_b, self.server, *routers, self.public]

    def wire_counters(self) -> list[dict[str, float]]:
        """What each direction has carried and dropped, and its worst lateness in seconds.

        In this order: out of side A, into side A, out of side B, into side B.
        """
        assert self._wire is not None
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.write("counters\n")
        self._wire.stdin.flush()
        counters: list[dict[str, float]] = json.loads(self._wire.stdout.readline())
        return counters

    def open(self) -> None:
        """Build everything. Raises LabUnavailable where this process may not; `close` it in any case."""
        for place in self.places:
            add_namespace(place.namespace)
        self._start_wire()
        for place in self.places:
            configure(place.namespace, wishes=_NO_IPV6)
        self._wait_wire()
        self._configure_public()
        for side in self._sides:
            self._configure_side(side)

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
            assert wire.stdin is not None
            wire.stdin.close()
            try:
                wire.wait(10)
            except subprocess.TimeoutExpired:
                wire.kill()
                wire.wait()
            assert wire.stdout is not None
            wire.stdout.close()
        remove_namespaces([place.namespace for place in self.places])

    def _router(self, side: _Side, kind: NatKind) -> Router:
        return Router(f"nat-{side.letter}", f"{self._tag}nat-{side.letter}", kind, side.public_address(kind))

    def _start_wire(self) -> None:
        links: list[dict[str, Any]] = [
            {
                "delay": self.delay,
                "ends": [
                    [f"{self._tag}nat-{side.letter}", WAN],
                    [self.public.namespace, f"link-{side.letter}"],
                ],
            }
            for side in self._sides
        ]
        specification = {
            "owner": self._owner,
            "device": self._device,
            "links": links,
            "namespaces": [place.namespace for place in self.places],
        }
        self._wire = subprocess.Popen(
            [sys.executable, "-m", "ntcpsock.testing.natlab.wire", json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _wait_wire(self) -> None:
        assert self._wire is not None
        assert self._wire.stdout is not None
        answer = self._wire.stdout.readline().strip()
        if answer != "ready":
            raise LabUnavailable(f"the wire does not start: {answer or 'see its error above'}")

    def _configure_public(self) -> None:
        near = [address.rpartition(".")[0] + ".1" for address in SERVER_ADDRESSES]
        configure(
            self.public.namespace,
            sysctls=_ROUTER_SYSCTLS,
            wishes=_LOOSE_SOURCES,
            links=[
                f"address add {_PUBLIC_ADDRESS}/32 dev lo",
                f"link add srv0 type veth peer name eth0 netns {self.server.namespace}",
                *(f"address add {address}/24 dev srv0" for address in near),
                "link set srv0 up",
                *(f"link set link-{side.letter} up" for side in self._sides),
                *(f"route add {side.public}.0/24 dev link-{side.letter}" for side in self._sides),
                *(f"route add blackhole {network}" for network in PRIVATE_NETWORKS),
            ],
            rules=public_ruleset(),
        )
        configure(
            self.server.namespace,
            wishes=_HOST_WISHES | _LOOSE_SOURCES,
            links=[
                *(f"address add {address}/24 dev eth0" for address in SERVER_ADDRESSES),
                "link set eth0 up",
                f"route add default via {near[0]}",
            ],
        )

    def _configure_side(self, side: _Side) -> None:
        router = self.nat_a if side.letter == "a" else self.nat_b
        hosts = [
            host for host, nat in ((self.host_a, self.nat_a), (self.host_b, self.nat_b)) if nat is router
        ]
        gateway = f"{side.lan(router.kind)}.1"
        links = [f"link add {LAN} type bridge", f"address add {gateway}/24 dev {LAN}"]
        for number, host in enumerate(hosts):
            links += [
                f"link add port{number} type veth peer name eth0 netns {host.namespace}",
                f"link set port{number} master {LAN} up",
            ]
        if router.kind.translates:
            links.append(f"address add {router.public_address}/32 dev {WAN}")
        links += [f"link set {LAN} up", f"link set {WAN} up", f"route add default dev {WAN}"]
        configure(
            router.namespace,
            sysctls=_ROUTER_SYSCTLS,
            wishes=_LOOSE_SOURCES,
            links=links,
            rules=router.kind.ruleset(),
        )
        for host in hosts:
            configure(
                host.namespace,
                wishes=_HOST_WISHES,
                links=[
                    f"address add {host.address}/24 dev eth0",
                    "link set eth0 up",
                    f"route add default via {gateway}",
                ],
            )


@contextlib.contextmanager
def open_lab(
    nat_a: str | NatKind = "default",
    nat_b: str | NatKind = "default",
    *,
    delay: float = 0.025,
    same_nat: bool = False,
    same_private_range: bool = False,
    device: str = "auto",
) -> Iterator[Lab]:
    """Build a lab, lend it, and remove it.

        host A - router A ==== public segment ==== router B - host B
                                      |
                                    server (two public addresses)

    `nat_a`, `nat_b`: kinds of the routers, see `NatKind.parse`.
    `delay`: one-way seconds of each link drawn double; the round trip from a host to the server takes 2 of
    them, to the other host 4.
    `same_nat`: both hosts on the LAN of router A (`nat_b` is not used then).
    `same_private_range`: both private networks have the same addresses, and so have both hosts.
    `device`: what the wire uses: "tun", "packet" (packet sockets on veth pairs), or "auto": TUN where it may be
    opened.

    Raises LabUnavailable where `namespaces_available` has a reason, and ValueError for an unknown kind.
    Whatever ends the owner (an exception, Ctrl-C, SIGTERM, SIGKILL), no process and no namespace of it stays.
    """
    kinds = NatKind.parse(nat_a), NatKind.parse(nat_b)
    reason = namespaces_available()
    if reason is not None:
        raise LabUnavailable(reason)
    lab = Lab(*kinds, delay, same_nat, same_private_range, device)
    try:
        lab.open()
        yield lab
    finally:
        lab.close()
