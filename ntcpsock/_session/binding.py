"""The first frame on a carrier, before a driver has it: BIND, and what else is said there."""

from __future__ import annotations

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import BIND_LENGTH, HEADER_LENGTH, Bind, decode_bind, encode_frame


async def send_bind(carrier: Carrier, dial_id: bytes, token: bytes) -> None:
    """Send the dialer's first frame: the dial (16 bytes) it belongs to, and its one-time token (32).

    OSError where the carrier breaks. After a cancellation the carrier must be closed.
    """
    await write_all(carrier, encode_frame(Bind(dial_id, token)))


async def write_all(carrier: Carrier, data: bytes) -> None:
    """Before a driver has the carrier: send all of `data`. OSError where it breaks."""
    view = memoryview(data)
    await trio.lowlevel.checkpoint()
    while view or carrier.has_unsent:
        view = view[carrier.try_send(view) :]
        if view or carrier.has_unsent:
            await carrier.wait_writable()


async def read_exactly(carrier: Carrier, length: int) -> bytes:
    """Before a driver has the carrier: its next `length` bytes. OSError where it breaks, BadMessage where it ends."""
    await trio.lowlevel.checkpoint()
    data = memoryview(bytearray(length))
    filled = 0
    while filled < length:
        count = carrier.try_receive_into(data[filled:])
        if count is None:
            await carrier.wait_readable()
        elif count == 0:
            raise BadMessage("the carrier ended before its first frame")
        else:
            filled += count
    return bytes(data)


async def receive_bind(carrier: Carrier) -> tuple[bytes, bytes, bytes]:
    """The dial id, the token, and what arrived behind them (always b"": nothing is read ahead).

    BadMessage for anything else, OSError where the carrier breaks. The caller sets the deadline and
    compares the token in constant time.
    """
    bind = decode_bind(await read_exactly(carrier, HEADER_LENGTH + BIND_LENGTH))
    return bind.dial_id, bind.token, b""
