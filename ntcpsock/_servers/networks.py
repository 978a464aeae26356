"""Sets of addresses and networks, as operators write them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


class Networks:
    """`host in networks` for numeric hosts. entries: addresses and networks (192.0.2.0/24)."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises ValueError for what is neither."""
        self._networks = [ipaddress.ip_network(entry) for entry in entries]

    def __contains__(self, host: str) -> bool:
        if not self._networks:
            return False
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self._networks)
