"""The router's ports of a node's dials: each is asked for when a punch needs it, and kept while it is used."""

from __future__ import annotations

from collections import deque

import trio

from ntcpsock._config import Config
from ntcpsock._traversal.mapping import DialMapping, PortMapper

# Dials whose connection came by a port that the router maps for it: that many are kept mapped.
MAX_DIAL_MAPPINGS = 16


class DialMappings:
    """One node's. mapper: what asks the router, for the listeners too; None where the configuration forbids it."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        wanted = config.port_mapping == "auto" and "port-mapped" in config.usable_techniques
        self.mapper = PortMapper() if wanted else None
        self._nursery = nursery
        self._kept: deque[DialMapping] = deque()

    @property
    def refusal(self) -> str | None:
        """Why the router maps no port for a dial now, None where it might."""
        return "switched off" if self.mapper is None else self.mapper.refusal()

    def map_port(self, port: int) -> DialMapping:
        """Ask the router for one dial's port, where there is no refusal. The dial releases it."""
        assert self.mapper is not None, "`refusal` tells"
        if len(self._kept) >= MAX_DIAL_MAPPINGS:
            self._kept.popleft().release()
        mapping = DialMapping(self.mapper, port, self._nursery)
        self._kept.append(mapping)
        return mapping
