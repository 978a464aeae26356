"""How this machine is connected at one moment, as far as that matters to paths that lead out of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ntcpsock._address import is_dialable_host, is_private_address
from ntcpsock._traversal.network.message import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    IFF_LOOPBACK,
    IFF_RUNNING,
    IFF_UP,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    Address,
    Device,
    Failed,
    Message,
    Route,
    RuleChanged,
)

# What containers, virtual machines and their bridges are made of: of interest only where a route leads out by it.
_INNER_KINDS: Final = frozenset({"bridge", "veth", "dummy", "ifb", "nlmon", "vcan", "macvtap", "ipvtap"})

#: A route to so much of the Internet counts as a default route: VPNs divide it into two halves.
_WIDE = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """addresses: own ones, numeric, at which others may reach us. fading: those of them from which nothing new begins
    any more (deprecated). dark: those whose device has no carrier just now. ways: (destination, device, gateway, own
    address) of what leaves; "" where unknown. links: the devices of those, and how often each has come up."""

    addresses: frozenset[str] = frozenset()
    fading: frozenset[str] = frozenset()
    dark: frozenset[str] = frozenset()
    ways: frozenset[tuple[str, str, str, str]] = frozenset()
    links: frozenset[tuple[str, int]] = frozenset()


def make_snapshot(table: Iterable[Message], ways: Sequence[tuple[str, Route]]) -> Snapshot:
    """Out of the kernel's whole tables, and its answers to where given destinations are reached."""
    devices: dict[int, Device] = {}
    addresses: list[Address] = []
    defaults: dict[tuple[bool, str], Route] = {}
    uplinks: set[int] = set()
    for message in table:
        if isinstance(message, Device):
            devices[message.index] = message
        elif isinstance(message, Address):
            addresses.append(message)
        elif isinstance(message, Route) and _is_default(message):
            uplinks |= {device for device, _ in message.ways}
            best = defaults.setdefault((message.ipv6, message.destination), message)
            if message.metric < best.metric:
                defaults[message.ipv6, message.destination] = message
    chosen = [("default6" if ipv6 else "default4", route) for (ipv6, _), route in defaults.items()]
    leaving = [(name, route) for name, route in (*chosen, *ways) if not _is_inner(route, devices)]
    uplinks |= {device for _, route in leaving for device, _ in route.ways}
    outer = {index for index, device in devices.items() if _is_outer(device, index in uplinks)}
    own = _choose([address for address in addresses if address.device in outer])
    hosts = frozenset(address.host for address in own)
    return Snapshot(
        hosts,
        frozenset(address.host for address in own if address.flags & IFA_F_DEPRECATED),
        frozenset(address.host for address in own if not devices[address.device].flags & IFF_RUNNING),
        frozenset(
            # A temporary source is tomorrow another one, and ours are not: see `prefer_lasting_source`.
            (name, _name(devices, device), gateway, route.source if route.source in hosts else "")
            for name, route in leaving
            for device, gateway in route.ways
        ),
        frozenset((device.name, device.carriers) for index in uplinks if (device := devices.get(index))),
    )


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which news may make another snapshot. inner: indexes of devices that lead nowhere; uplinks: of those that do."""

    inner: frozenset[int] = frozenset()
    uplinks: frozenset[int] = frozenset()

    def may_matter(self, message: Message) -> bool:
        """Whether to look again for a message's sake. Devices of containers come and go, and are no reason."""
        match message:
            case Address(host=host, flags=flags):
                return is_dialable_host(host) and not flags & IFA_F_TENTATIVE
            case Device(index=index, flags=flags, kind=kind):
                return index in self.uplinks or not (flags & IFF_LOOPBACK or kind in _INNER_KINDS)
            case Route(ways=ways, destination=destination, ipv6=ipv6):
                # Those of link-local addresses and of multicast come with every device.
                is_local = ipv6 and destination.startswith(("fe80:", "ff"))
                is_inner = bool(ways) and all(device in self.inner for device, _ in ways)
                return message.prefix_length <= _WIDE or not (is_local or is_inner)
            case RuleChanged() | Failed():
                return True
        return False


def make_relevance(table: Iterable[Message], snapshot: Snapshot) -> Relevance:
    """What to pass over, given what `snapshot` was made of."""
    uplinks = {name for name, _ in snapshot.links}
    devices = [message for message in table if isinstance(message, Device)]
    return Relevance(
        frozenset(
            device.index
            for device in devices
            if (device.kind in _INNER_KINDS or device.flags & IFF_LOOPBACK) and device.name not in uplinks
        ),
        frozenset(device.index for device in devices if device.name in uplinks),
    )


def _is_default(route: Route) -> bool:
    return (
        route.prefix_length <= _WIDE
        and route.table == RT_TABLE_MAIN
        and route.type == RTN_UNICAST
        and bool(route.ways)
    )


def _is_inner(route: Route, devices: dict[int, Device]) -> bool:
    """Whether a route stays in this machine."""
    known = [devices[device] for device, _ in route.ways if device in devices]
    return any(device.flags & IFF_LOOPBACK for device in known)


def _is_outer(device: Device, is_uplink: bool) -> bool:
    if not device.flags & IFF_UP or device.flags & IFF_LOOPBACK:
        return False
    return is_uplink or device.kind not in _INNER_KINDS


def _choose(addresses: Sequence[Address]) -> list[Address]:
    """Those that others may reach; a temporary one (RFC 8981) only where there is no lasting one of its kind."""
    usable = [
        address
        for address in addresses
        if is_dialable_host(address.host) and not address.flags & (IFA_F_DADFAILED | IFA_F_TENTATIVE)
    ]
    # The same bit says of an IPv4 address that it is the second one of its network.
    temporary = [address for address in usable if ":" in address.host and address.flags & IFA_F_TEMPORARY]
    lasting = [address for address in usable if address not in temporary]
    kinds = {is_private_address(address.host) for address in lasting if ":" in address.host}
    return lasting + [address for address in temporary if is_private_address(address.host) not in kinds]


def _name(devices: dict[int, Device], index: int) -> str:
    return devices[index].name if index in devices else str(index)
