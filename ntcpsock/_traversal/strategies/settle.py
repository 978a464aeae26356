"""The end of every technique over UDP: a path that may be used becomes a connection, or is closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.strategies.base import AttemptContext, Connection


async def settle(
    context: AttemptContext, path: PunchedPath, until_usable: Callable[[], Awaitable[None]]
) -> Connection:
    """Wait until the path may be used, authenticate the peer over it, and give the path a socket of its own.

    until_usable: what is waited for; it, or the authentication, raises OSError where nothing comes of the path, which
    is closed then; cancelled, too. What the checks saw stands in the report in any case.
    """
    assert context.datagram is not None, "a technique over UDP"
    try:
        await until_usable()
        carrier = await context.datagram.authenticate(path)
    except BaseException:
        path.close()
        raise
    finally:
        _note_checks(context, path)
    path.settle()
    return Connection(carrier, context.planned.technique, context.entry)


def _note_checks(context: AttemptContext, path: PunchedPath) -> None:
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
