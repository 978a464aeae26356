"""What `tcp-stunt2`, `tcp-natblaster` and `tcp-stunt1` begin with: one fresh port of each side, which the other knows.

It is no warm port: those belong to the other attempts, which must not lose their mappings to a port that is closed
and listened on again.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.hops import find_low_ttl
from ntcpsock._traversal.observe import hold_ports
from ntcpsock._traversal.prediction import (
    Prediction,
    decode_prediction_untrusted,
    encode_prediction,
    predict,
    punching_port,
)
from ntcpsock._traversal.strategies.base import AttemptContext
from ntcpsock._traversal.strategies.predictions import known_band


@dataclass(frozen=True)
class Rendezvous:
    """port: ours, on this machine; mapped: the same as the world sees it; remote: the other side's."""

    port: int
    mapped: Endpoint
    remote: Endpoint


@asynccontextmanager
async def agree(context: AttemptContext, word: str = "port") -> AsyncIterator[Rendezvous]:
    """Observe a fresh port, tell the other side and hear its own; the mapping is held as long as the block.

    word: another one each time that an attempt does it.

    Raises OSError: ENODATA where nothing was observed, EHOSTUNREACH where a NAT gives each connection any port,
    EPROTO where the other side's word cannot be used.
    """
    assert context.talk is not None, "a joint technique"
    band = known_band(context, "tcp")
    async with hold_ports(() if band else context.servers, context.taken("tcp")) as held:
        ours = band or predict(held.observations, held.spare)
        context.note_mapped("tcp", [item.mapped.port for item in held.observations])
        if ours is None:
            raise OSError(errno.ENODATA, "no STUN server answered, so no port is known")
        context.talk.say(word, encode_prediction(ours))
        try:
            theirs = decode_prediction_untrusted(await context.talk.hear(word), context.remote.host)
        except BadMessage as error:
            raise OSError(errno.EPROTO, f"the other side's port: {error}") from error
        mapped, remote = _endpoint(ours, "this"), _endpoint(theirs, "the other")
        known = ours.shape in ("exact", "single")
        port = punching_port(held.observations, held.spare) if known else held.fresh(1)[0]
        context.entry.notes |= {"ours": str(mapped), "theirs": str(remote)}
        yield Rendezvous(port, mapped, remote)


async def low_ttl_of(context: AttemptContext, meeting: Rendezvous) -> int | None:
    """The TTL of a segment that passes our own NAT and does not reach the other side's; None where it could not be
    found, and an ordinary one has to do."""
    ttl = await find_low_ttl(meeting.remote.host, frozenset({meeting.mapped.host}))
    context.entry.notes["low TTL"] = "not found" if ttl is None else str(ttl)
    return ttl


def _endpoint(prediction: Prediction, side: str) -> Endpoint:
    """Where the next connection is expected to come from."""
    if prediction.shape == "band":
        raise OSError(
            errno.EHOSTUNREACH, f"the NAT of {side} side gives each connection any port, so none is known"
        )
    return Endpoint(prediction.host, prediction.low)


async def connect_in_time(sock: trio.socket.SocketType, remote: Endpoint, seconds: float) -> OSError | None:
    """connect(); what came of it. ETIMEDOUT after `seconds`."""
    with trio.move_on_after(seconds):
        try:
            await sock.connect(remote)
        except OSError as error:
            return error
        return None
    return OSError(errno.ETIMEDOUT, "no answer")
