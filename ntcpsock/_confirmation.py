"""A non-blocking connect over loopback is done when the peer's accept queue has the connection, as plain TCP's is.

The dialler speaks last before a session (TLS 1.3's client does), so a word from the listener takes one more round trip.
Over loopback that is some 0.1 ms, and there programs and their tests rely on the order. On every other path it is not
waited for: connect() may return before the listener's process has been told. Nor does a blocking connect wait: its
socket is connected after the dial, and the listener's program would often have the connection before the dialler's.
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


async def wait_confirmed(stream: Stream) -> None:
    """In the dialler's engine, before anybody else has the stream. Not for long."""
    if _is_local(stream):
        assert isinstance(stream, NTCPStream)
        # A stream that has broken meanwhile tells its user so.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(DEADLINE):
                await stream.wait_confirmed()
