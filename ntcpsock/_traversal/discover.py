"""A whole discovery: ask, conclude. Used by `ntcp doctor`, and by nodes for their card."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._diagnosis import Discovery, Finding
from ntcpsock._traversal.discovery.driver import DISCOVERY_DEADLINE, run_discovery
from ntcpsock._traversal.discovery.evidence import Outcome, Question
from ntcpsock._traversal.discovery.finding import no, undecided, yes
from ntcpsock._traversal.discovery.findings import conclude
from ntcpsock._traversal.discovery.machine import DiscoveryMachine
from ntcpsock._traversal.punch.driver import source_address

# Only to ask the kernel for the way out; nothing is sent there (RFC 3849).
_SOMEWHERE_IN_IPV6 = Endpoint("2001:db8::1", 9)


# There is no NAT, but most routers have a firewall (RFC 6092).
_OVER_IPV6: tuple[Question, ...] = ("filtering-address", "filtering-port")


async def discover(
    servers: Sequence[Endpoint],
    *,
    trouble: bool = False,
    deadline: float = DISCOVERY_DEADLINE,
) -> Discovery:
    """What kind of NAT is between this host and `servers` (STUN, IPv4 and IPv6), in `deadline` seconds at most.

    trouble: something was silent before, see `DiscoveryMachine`. What goes wrong on the network is a finding; raises
    nothing but what cancelling does.
    """
    started = trio.current_time()
    over_ipv4 = [server for server in servers if not server.is_ipv6]
    over_ipv6 = [server for server in servers if server.is_ipv6]
    found: dict[str, list[Outcome]] = {"ipv4": [], "ipv6": []}

    async def run(family: str, machine: DiscoveryMachine) -> None:
        found[family] = await run_discovery(machine, deadline=deadline)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "ipv4", DiscoveryMachine(over_ipv4, trouble=trouble))
        nursery.start_soon(run, "ipv6", DiscoveryMachine(over_ipv6, questions=_OVER_IPV6))
    return conclude(
        found["ipv4"],
        servers=servers,
        over_ipv6=found["ipv6"],
        ipv6=_ipv6(found["ipv6"]),
        seconds=trio.current_time() - started,
    )


def _ipv6(outcomes: Sequence[Outcome]) -> Finding:
    """Whether this host has IPv6 to the world; without a server that speaks it, only whether it has an address."""
    answered = [item for item in outcomes if item.answer == "answered"]
    if answered:
        host = answered[0].mapped.host if answered[0].mapped else ""
        return yes(f"{host} reaches a server", answered)
    try:
        address = source_address(_SOMEWHERE_IN_IPV6)
    except OSError:
        return no("this host has no way into IPv6")
    if is_private_address(address):
        return no(f"{address} is a local address only")
    if outcomes:
        return no(f"{address} reaches no server", outcomes)
    return undecided(
        f"this host has the address {address}; no STUN server with IPv6 is known that could try it"
    )
