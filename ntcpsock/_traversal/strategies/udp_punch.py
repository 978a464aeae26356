"""`udp-punch`: connectivity checks between all UDP candidates of both sides (RFC 8445), and QUIC over what works.

The leader's first QUIC packet goes out beside its first check: with both sides starting at once it arrives when the
follower's own check has opened the way, so a connection costs one and a half round trips in all.
"""

from __future__ import annotations

import errno

import trio

from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.strategies.base import AttemptContext, Connection


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; without a deadline it waits for a peer that never comes."""
    access = context.datagram
    assert access is not None, "planned with UDP candidates only"
    assert access.plan is not None, "planned with UDP candidates only"
    port = access.take_port()
    if port is None:
        raise OSError(errno.EADDRNOTAVAIL, "this side has no UDP port")
    path = access.open_path(port, context.role, context.rtt)
    try:
        if context.role == "leader":
            # Where the other side is late, a packet before its first would only be in its way.
            early = max((target.low_for for target in access.plan.targets), default=0.0)
            with trio.move_on_after(early):
                await path.wait_alive()
            if not access.plan.guesses:
                await path.wait_alive()
        else:
            await path.wait_alive()
        carrier = await access.authenticate(path)
    except BaseException:
        path.close()
        raise
    finally:
        note_checks(context, path)
    path.settle()
    return Connection(carrier, context.planned.technique, context.entry)


def note_checks(context: AttemptContext, path: PunchedPath) -> None:
    """What the checks saw, for the report."""
    context.entry.tries = path.machine.sent
    if path.remote.port:
        context.entry.remote = path.remote
    if path.mapped is not None:
        context.entry.notes["seen as"] = str(path.mapped)
    if path.machine.refused:
        context.entry.notes["refused"] = ", ".join(
            f"{reason} x {count}" for reason, count in path.machine.refused.most_common(4)
        )
