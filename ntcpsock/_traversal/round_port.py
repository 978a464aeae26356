"""The listener's UDP port for one later round of a dial, and how the dialer hears of it.

All dialers of a first round aim at the one shared port. A packet that came to its NAT before the listener's own may
have made that NAT show the port as another one from then on, to every newcomer; so a further round has a port that
nobody knows yet. It opens its NAT first, with checks that end on the way, and then the dialer is told: whatever the
two machines are busy with, nothing can come too early any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ntcpsock._traversal.gather_udp import WarmDatagramPort, gather_udp

#: The listener's word that brings the port's candidates.
ROUND_PORT = "port"

#: Such ports that one node has at once, those of paths in use not counted; dials beyond share the listening port.
MAX_ROUND_PORTS = 64


class RoundPorts:
    """Of all dials of a listening node."""

    def __init__(self) -> None:
        self._open = 0

    @asynccontextmanager
    async def gather(self, shared: WarmDatagramPort) -> AsyncIterator[WarmDatagramPort | None]:
        """A port for the block, seen by the STUN server of the shared one; None where it would be no better, or cannot
        be had. At the end it is closed, or left to the paths that use it."""
        if shared.server is None or not _is_translated(shared) or self._open >= MAX_ROUND_PORTS:
            yield None
            return
        fresh: WarmDatagramPort | None = None
        self._open += 1
        try:
            try:
                fresh = await gather_udp([shared.server])
            except OSError:
                fresh = None
            yield fresh if fresh is not None and _is_translated(fresh) else None
        finally:
            self._open -= 1
            if fresh is not None:
                fresh.close()


def _is_translated(port: WarmDatagramPort) -> bool:
    """Whether a NAT shows it as another one."""
    return any(candidate.type == "srflx" for candidate in port.candidates)
