"""How both sides of a prediction, over TCP or UDP, tell each other what they have found out."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import trio
from msgspec.structs import replace

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.bursts import Burst
from ntcpsock._traversal.prediction import (
    Prediction,
    decode_prediction_untrusted,
    encode_prediction,
    is_costly,
    is_scarce,
)
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.strategies.base import AttemptContext

_WORD = "prediction"

MAX_PORT = 65535

# Seconds until a round is given up whose other side says nothing.
HEARING_DEADLINE = 3.5


@dataclass(frozen=True)
class Agreed:
    """ours, theirs: where each side's next packets will come from; burst: what both have made before and make again,
    None for a new one."""

    ours: Prediction
    theirs: Prediction
    burst: Burst | None = None


def known_band(context: AttemptContext, transport: Transport) -> Prediction | None:
    """Our NAT's block, where it was seen a moment ago and is not looked at again."""
    return context.bursts.own.known_band(transport, context.taken(transport), trio.current_time())


async def exchange_predictions(
    context: AttemptContext, foreseen: Prediction | None, transport: Transport, sessions: int
) -> Agreed:
    """Tell ours, hear theirs, and note both. sessions: of one side at most, the same at both.

    Raises OSError: ENODATA where nothing was observed, EPROTO where the other side's word cannot be used, ETIMEDOUT
    where it does not come, ENOBUFS where too few ports of a block are left, ENETUNREACH where one side's packets do not
    leave its network.
    """
    assert context.talk is not None, "a joint technique"
    if foreseen is None:
        over = " over UDP" if transport == "udp" else ""
        raise OSError(errno.ENODATA, f"no STUN server answered{over}, so no port can be predicted")
    now, own = trio.current_time(), context.bursts.own
    made = context.bursts.made(transport, now)
    ours = replace(foreseen, again=0 if made is None else made.name)
    if ours.shape == "band":
        ours = replace(ours, most=min(MAX_PORT, own.left(transport, ours, context.taken(transport), now)))
    context.talk.say(_WORD, encode_prediction(ours))
    try:
        with trio.fail_after(HEARING_DEADLINE):
            word = await context.talk.hear(_WORD)
        theirs = decode_prediction_untrusted(word, context.remote.host)
    except trio.TooSlowError:
        raise OSError(errno.ETIMEDOUT, "the other side did not join") from None
    except BadMessage as error:
        raise OSError(errno.EPROTO, f"the other side's prediction: {error}") from error
    context.entry.notes |= {"ours": describe(ours), "theirs": describe(theirs)}
    if is_scarce(ours, theirs, sessions=sessions):
        if made is None or made.name != theirs.again:
            raise OSError(
                errno.ENOBUFS, "too few ports are left of a NAT's block: earlier attempts hold them"
            )
        context.entry.notes["again"] = f"{len(made.sessions)} sessions"
        return Agreed(ours, theirs, made)
    if is_costly(ours, theirs) and False in (ours.leaves, theirs.leaves):
        which = "this" if ours.leaves is False else "the other"
        raise OSError(errno.ENETUNREACH, f"packets of {which} side do not leave its network")
    return Agreed(ours, theirs)


def describe(prediction: Prediction) -> str:
    """A prediction in words, for the report."""
    if prediction.shape == "exact":
        return f"port {prediction.low}"
    if prediction.shape == "single":
        return f"port {prediction.low}, for one destination"
    if prediction.shape == "sequential":
        return f"every {prediction.step:+d} from {prediction.low}"
    return f"anywhere from {prediction.low} to {prediction.high}"
