"""A connect over loopback returns when the peer's program has the connection in its accept queue, as plain TCP's.

The dialler speaks last before a session (TLS 1.3's client does), so a word from the listener takes one more round trip.
Over loopback that is some 0.1 ms, and there programs and their tests rely on the order. On every other path it is not
waited for: connect() may return before the listener's process has been told.
"""

from __future__ import annotations

from contextlib import suppress

import trio

from ntcpsock._pump import Stream
from ntcpsock._session.stream import NTCPStream

# A full accept queue lets a connect wait; so long, then the connection is used as it is.
DEADLINE = 1.0

_LOOPBACK = ("127.", "::1")


def _is_local(stream: Stream) -> bool:
    return isinstance(stream, NTCPStream) and stream.carrier.remote.host.startswith(_LOOPBACK)


def confirm(stream: Stream) -> None:
    """In the listener's engine: the program's accept queue has it. Before the pump has the stream."""
    if _is_local(stream):
        assert isinstance(stream, NTCPStream)
        stream.confirm()


async def wait_confirmed(stream: Stream, patience: float) -> None:
    """In the dialler's engine, before anybody else has the stream; for `patience` seconds at most."""
    if _is_local(stream):
        assert isinstance(stream, NTCPStream)
        # A stream that has broken meanwhile tells its user so.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(max(0.0, min(DEADLINE, patience))):
                await stream.wait_confirmed()
