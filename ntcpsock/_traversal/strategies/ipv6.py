"""`ipv6`: both sides have IPv6, so no address is translated; only firewalls are on the way.

A stateful firewall lets a simultaneous open through (RFC 6092 section 3.3.1, REC-31), so the crossing SYNs open both
sides. One that answers a SYN which came too early needs another try after a random pause, as with IPv4.
"""

from __future__ import annotations

from ntcpsock._traversal.punch.machine import PunchMachine
from ntcpsock._traversal.strategies.base import AttemptContext, Connection, punch_and_authenticate


async def attempt(context: AttemptContext) -> Connection:
    return await punch_and_authenticate(context, PunchMachine(context.rtt))
