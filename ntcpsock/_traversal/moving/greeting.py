"""The first words on a carrier to which an open stream moves, at either end. See `ntcpsock._session.resumption`."""

from __future__ import annotations

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.frames import (
    HEADER_LENGTH,
    RESUME_LENGTH,
    Reset,
    Resume,
    decode_resume,
    decode_resumed,
    encode_frame,
    encode_resumed,
)
from ntcpsock._session.stream import read_exactly, write_all

#: Seconds that the other end may take for its word.
DEADLINE = 5.0


async def ask(carrier: Carrier, resume: bytes) -> int | None:
    """The dialer's: say RESUME (encoded); the listener's position, None where it refuses.

    Raises OSError where the carrier breaks or nothing comes, BadMessage for another word.
    """
    try:
        with trio.fail_after(DEADLINE):
            await write_all(carrier, resume)
            return decode_resumed(await read_exactly(carrier, HEADER_LENGTH))
    except trio.TooSlowError:
        raise TimeoutError("no answer to RESUME") from None


async def hear(carrier: Carrier) -> Resume:
    """The listener's: the RESUME that opens the carrier. Raises as `ask`."""
    try:
        with trio.fail_after(DEADLINE):
            return decode_resume(await read_exactly(carrier, HEADER_LENGTH + RESUME_LENGTH))
    except trio.TooSlowError:
        raise TimeoutError("no RESUME came") from None


async def grant(carrier: Carrier, position: int) -> None:
    """The listener's: say RESUMED. Raises OSError."""
    try:
        with trio.fail_after(DEADLINE):
            await write_all(carrier, encode_resumed(position))
    except trio.TooSlowError:
        raise TimeoutError("the carrier takes nothing") from None


async def refuse(carrier: Carrier) -> None:
    """The listener's: there is no such stream. Closes the carrier."""
    try:
        with trio.move_on_after(DEADLINE):
            await write_all(carrier, encode_frame(Reset(0)))
    except (OSError, BadMessage, trio.ClosedResourceError):
        pass
    finally:
        carrier.close()
