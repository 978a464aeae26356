"""How both sides of a prediction, over TCP or UDP, tell each other what they have found out."""

from __future__ import annotations

import errno

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.prediction import Prediction, decode_prediction_untrusted, encode_prediction
from ntcpsock._traversal.strategies.base import AttemptContext

_WORD = "prediction"

# Seconds until a round is given up whose other side says nothing.
HEARING_DEADLINE = 3.5


async def exchange_predictions(
    context: AttemptContext, ours: Prediction | None, over: str
) -> tuple[Prediction, Prediction]:
    """Tell ours, hear theirs, and note both. over: how the servers were asked, for the text of an error.

    Raises OSError: ENODATA where nothing was observed, EPROTO where the other side's word cannot be used, ETIMEDOUT
    where it does not come.
    """
    assert context.talk is not None, "a joint technique"
    if ours is None:
        raise OSError(errno.ENODATA, f"no STUN server answered{over}, so no port can be predicted")
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
    return ours, theirs


def describe(prediction: Prediction) -> str:
    """A prediction in words, for the report."""
    if prediction.shape == "exact":
        return f"port {prediction.low}"
    if prediction.shape == "single":
        return f"port {prediction.low}, for one destination"
    if prediction.shape == "sequential":
        return f"every {prediction.step:+d} from {prediction.low}"
    return f"anywhere from {prediction.low} to {prediction.high}"
