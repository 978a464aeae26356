"""`udp-punch`: connectivity checks between all UDP candidates of both sides (RFC 8445), and QUIC over what works.

The leader's first QUIC packet goes out beside its first check: with both sides starting at once it arrives when the
follower's own check has opened the way, so a connection costs one and a half round trips in all.
"""

from __future__ import annotations

import errno

import trio

from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.settle import settle


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; without a deadline it waits for a peer that never comes."""
    access = context.datagram
    assert access is not None, "planned with UDP candidates only"
    assert access.plan is not None, "planned with UDP candidates only"
    port = access.take_port()
    if port is None:
        raise OSError(errno.EADDRNOTAVAIL, "this side has no UDP port")
    path = access.open_path(port, context.role, context.rtt)
    # Where the other side is late, a packet before its first would only be in its way.
    early = max((target.low_for for target in access.plan.targets), default=0.0)
    guesses = access.plan.guesses

    async def until_usable() -> None:
        if context.role == "leader":
            with trio.move_on_after(early):
                await path.wait_alive()
            if guesses:
                return
        await path.wait_alive()

    return await settle(context, path, until_usable)
