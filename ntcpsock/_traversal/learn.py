"""What a node learns of its NAT in the background, beyond what its warm ports show by themselves.

Warm ports show how mappings vary. Who is let in, and what the others are answered, takes connections from a STUN
server: two, once in a node's life. It only completes the profile in card and offers; nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.discovery.driver import run_discovery
from ntcpsock._traversal.discovery.findings import conclude_transport, tcp_profile
from ntcpsock._traversal.discovery.machine import DiscoveryMachine
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.message import NATProfile

# Seconds after the ports are warm: a program that only connects once is gone by then, and asks nobody.
LEARN_AFTER = 2.0


class Learned:
    """The filtering of the network that `servers` see this node in."""

    def __init__(self, servers: Sequence[Endpoint]) -> None:
        self.set_servers(servers)
        self.forget()

    def set_servers(self, servers: Sequence[Endpoint]) -> None:
        """Others, from the next time on."""
        # Over loopback there is nothing to learn.
        self._servers = [server for server in servers if not is_loopback(server.host)]

    def forget(self) -> None:
        """The network is another one."""
        self._profile = NATProfile()
        self._public: frozenset[str] = frozenset()

    async def learn(self) -> bool:
        """Ask. Whether anything is known now."""
        if not self._servers:
            return False
        await trio.sleep(LEARN_AFTER)
        machine = DiscoveryMachine(
            self._servers[:1], transports=("tcp",), questions=("filtering-address", "filtering-port")
        )
        found = conclude_transport("tcp", await run_discovery(machine))
        self._profile, self._public = tcp_profile(found), frozenset(found.public)
        return found.filtering.is_known or found.stray.is_known

    def inform(self, warm: WarmPort) -> WarmPort:
        """Complete the profile of a port that is seen from the same public address."""
        if any(candidate.host in self._public for candidate in warm.candidates):
            warm.profile = msgspec.structs.replace(
                warm.profile, filtering=self._profile.filtering, stray_syn=self._profile.stray_syn
            )
        return warm
